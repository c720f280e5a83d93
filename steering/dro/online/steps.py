"""One step of a dual variable ν on one batch, as functions: mirror descent and the proximal
point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.dro.divergences.base import Divergence

_WORK = 1 << 13
"""Numbers that a pass over a few rows handles in the time that its calls take anyway."""


def mirror_step(nu: Tensor, s: Tensor, log_alpha: float | Tensor) -> Tensor:
    """argmin_x e^{s − x} + x + (1/α)·[e^−x − e^−ν + e^−ν (x − ν)], elementwise: ν + log(1 + α e^s)
    − log(1 + α e^ν).

    Written as a mean in log space, log((1 − g) e^ν + g e^s) with g = σ(log α + ν), which lies
    between ν and s in floating point too. Source: arXiv 2602.02877.
    """
    rate = nu + log_alpha
    return torch.logaddexp(F.logsigmoid(-rate) + nu, F.logsigmoid(rate) + s)


def proximal_step(
    divergence: Divergence, scores: Tensor, mask: Tensor, nu: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """t, (..., n), and argmin_x x + mean φ*(s − x) + (x − ν)²/(2λ), (...), by sections of a bracket
    of its root.

    The derivative 1 − mean t(x) + (x − ν)/λ, t = φ*′(s − x), rises. Each pass cuts the bracket into
    k + 1 parts at once: for short rows, k points cost little more than one. Between the two ends of
    the last bracket t is mixed such that the derivative is zero: at a kink of φ* that is the only
    right ratio.
    """
    s, before, counts = scores.double(), nu.double(), mask.sum(-1)
    lam = step.double().clamp_min(1e-300)

    def ratios(x: Tensor) -> Tensor:
        """t at one or more points of each row, (..., points) to (..., points, n)."""
        return divergence.ratio(s[..., None, :] - x[..., None]).masked_fill(
            ~mask[..., None, :], 0.0
        )

    low = torch.minimum(s.masked_fill(~mask, math.inf).amin(-1), before) - 1  # there t ≥ 1
    high = torch.maximum(s.masked_fill(~mask, -math.inf).amax(-1), before)  # there t ≤ 1
    points = min(31, max(1, _WORK // max(1, s.numel())))
    cuts = torch.arange(1, points + 1, dtype=s.dtype, device=s.device) / (points + 1)
    for _ in range(math.ceil(52 / math.log2(points + 1))):
        x = low[..., None] + (high - low)[..., None] * cuts  # (..., points)
        slope = 1 - ratios(x).sum(-1) / counts[..., None] + (x - before[..., None]) / lam[..., None]
        below = (slope <= 0).sum(-1, keepdim=True)  # cuts left of the root
        edges = torch.cat([low[..., None], x, high[..., None]], -1)
        low, high = edges.gather(-1, below)[..., 0], edges.gather(-1, below + 1)[..., 0]
    steep, gentle = ratios(low[..., None])[..., 0, :], ratios(high[..., None])[..., 0, :]
    goal = counts * (1 + (high - before) / lam)
    span = (steep - gentle).sum(-1)
    share = torch.where(span > 0, (goal - gentle.sum(-1)) / span, 0.0).clamp(0, 1)
    t = gentle + share[..., None] * torch.where(steep > gentle, steep - gentle, 0.0)
    return t.to(scores.dtype), high.to(scores.dtype)
