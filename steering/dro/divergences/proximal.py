"""The proximal step of a dual variable, argmin_x x + mean φ*(s − x) + (x − ν)²/(2λ): by sections for
any φ, by a sort where φ*′ is piecewise linear.

Its slope 1 − mean t(x) + (x − ν)/λ, with t = φ*′(s − x), rises in x. Legend: (...) rows, n items in
a row, all float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_WORK = 1 << 13
"""Numbers that a pass over a few rows handles in the time that its calls take anyway."""


def by_sections(
    ratio: Callable[[Tensor], Tensor],
    s: Tensor,
    mask: Tensor | None,
    before: Tensor,
    lam: Tensor,
) -> tuple[Tensor, Tensor]:
    """t, (..., n), and x, (...), by sections of a bracket of the root; `ratio` is φ*′.

    Each pass cuts the bracket into k + 1 parts at once: for short rows, k points cost little more
    than one. Between the two ends of the last bracket t is mixed such that the slope is zero: at a
    kink of φ* that is the only right ratio.
    """
    counts = counted(s, mask)

    def ratios(x: Tensor) -> Tensor:
        """t at one or more points of each row, (..., points) to (..., points, n)."""
        t = ratio(s[..., None, :] - x[..., None])
        return t if mask is None else t.masked_fill(~mask[..., None, :], 0.0)

    smallest, largest = s, s
    if mask is not None:
        smallest, largest = s.masked_fill(~mask, math.inf), s.masked_fill(~mask, -math.inf)
    # The slope is ≤ 0 at the one end, where every t ≥ 1, and ≥ 0 at the other, where every t ≤ 1.
    low = torch.minimum(smallest.amin(-1), before) - 1
    high = torch.maximum(largest.amax(-1), before)
    points = min(31, max(1, _WORK // max(1, s.numel())))
    cuts = torch.arange(1, points + 1, dtype=s.dtype, device=s.device) / (points + 1)
    # A pass brings log2(points + 1) bits, and float64 has 52 to tell.
    for _ in range(math.ceil(52 / math.log2(points + 1))):
        x = low[..., None] + (high - low)[..., None] * cuts  # (..., points)
        slope = 1 - ratios(x).sum(-1) / counts[..., None] + (x - before[..., None]) / lam[..., None]
        below = (slope <= 0).sum(-1, keepdim=True)  # cuts left of the root
        # The slope rises, so the root lies between the last cut with a slope ≤ 0 and the next one.
        edges = torch.cat([low[..., None], x, high[..., None]], -1)
        low, high = edges.gather(-1, below)[..., 0], edges.gather(-1, below + 1)[..., 0]
    steep, gentle = ratios(low[..., None])[..., 0, :], ratios(high[..., None])[..., 0, :]
    goal = counts * (1 + (high - before) / lam)
    span = (steep - gentle).sum(-1)
    share = torch.where(span > 0, (goal - gentle.sum(-1)) / span, 0.0).clamp(0, 1)
    t = gentle + share[..., None] * torch.where(steep > gentle, steep - gentle, 0.0)
    return t, high


def of_ramps(s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """The step for t = [1 + s − x]_+ (half chi-square).

    If the k largest items are those with t > 0, the slope is a straight line with the root
    x_k = (ν/λ − 1 + (k + Σ_k s)/n) / (1/λ + k/n). As in a projection onto the simplex, k is the
    number of items that stand above the root of their own line, s_(k) + 1 > x_k.
    """
    falling, ranks, counts = _sorted(s, mask)
    share = ranks / counts[..., None]
    sums = falling.cumsum(-1) / counts[..., None]
    roots = ((before / lam)[..., None] - 1 + share + sums) / (1 / lam[..., None] + share)
    inside = (falling + 1 > roots).sum(-1, keepdim=True)
    # None inside: ν itself is far above all items, and moves by λ alone.
    x = torch.where(
        inside[..., 0] > 0, roots.gather(-1, (inside - 1).clamp_min(0))[..., 0], before - lam
    )
    t = (1 + s - x[..., None]).clamp_min_(0)
    return (t if mask is None else t.masked_fill_(~mask, 0.0)), x


def of_jumps(
    s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """The step for t = 1/level where s > x, and 0 below (CVaR).

    With the k largest items above it the root is x_k = ν + λ·(k/(level·n) − 1), which rises in k as
    s_(k) falls. So K, the number of items with s_(k) > x_k, are above; the next one holds x up if
    it lies between, and then it, and those tied with it, get the ratio that makes the slope zero.
    """
    falling, ranks, counts = _sorted(s, mask)
    roots = before[..., None] + lam[..., None] * (ranks / (level * counts[..., None]) - 1)
    above = (falling > roots).sum(-1, keepdim=True)
    after = before + lam * (above[..., 0] / (level * counts) - 1)
    following = falling.gather(-1, above.clamp_max(s.shape[-1] - 1))[..., 0]
    x = torch.where(above[..., 0] < s.shape[-1], torch.maximum(after, following), after)
    side = torch.sign(s - x[..., None])  # 1 above x, 0 at it, −1 below
    if mask is not None:
        side = side.masked_fill(~mask, -1.0)
    tied = (side == 0).sum(-1)
    larger = (side > 0).to(s.dtype)
    goal = counts * (1 + (x - before) / lam) - larger.sum(-1) / level
    rest = torch.where(tied > 0, goal / tied.clamp_min(1), 0.0).clamp(0, 1 / level)
    return torch.where(side == 0, rest[..., None], larger / level), x


def counted(s: Tensor, mask: Tensor | None) -> Tensor:
    """How many items of each row count, (...), in the dtype of s."""
    if mask is None:
        return torch.full_like(s[..., 0], s.shape[-1])
    return mask.sum(-1).to(s.dtype)


def _sorted(s: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Scores from the largest down, those that are masked last, as −∞; ranks 1, 2, ..., (n,); and
    counts, (...)."""
    shown = s if mask is None else s.masked_fill(~mask, -math.inf)
    ranks = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype, device=s.device)
    return shown.sort(-1, descending=True).values, ranks, counted(s, mask)
