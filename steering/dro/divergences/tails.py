"""Divergences whose φ is piecewise linear: the adversary moves mass until a wall or a price stops
it.

The worst case is found by sorting, or by selecting the largest items alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence, tilted
from steering.dro.divergences.proximal import of_jumps
from steering.dro.divergences.rows import EPS, Rows, Solution


@DIVERGENCES.register("cvar")
@dataclass(frozen=True)
class CVaR(Divergence):
    """Conditional value at risk, φ(t) = 0 for t ≤ 1/level and +∞ above, φ*(s) = max(s, 0)/level.

    The worst case is the mean of the k = level · n largest losses; when k is not whole, the next
    loss enters with the fraction that is left. Below level = 1/n it is the largest loss. With a
    prior, p_i ≤ q_i/level.

    Attributes:
        level: share of the items in the tail, 0 < level ≤ 1.
    """

    level: float
    """Share of the items in the tail, in (0, 1]."""

    takes_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"level: expected 0 < level <= 1, got {self.level}")

    def phi(self, t: Tensor) -> Tensor:
        # The bound is met with equality by every optimum, so it must bear the rounding of n p.
        bound = (1 + 8 * torch.finfo(t.dtype).eps) / self.level
        return (
            torch.zeros_like(t)
            .masked_fill((t < 0) | (t > bound), torch.inf)
            .masked_fill(t.isnan(), torch.nan)
        )

    def conjugate(self, s: Tensor) -> Tensor:
        return s.clamp_min(0) / self.level

    def ratio(self, s: Tensor) -> Tensor:
        return (s > 0).to(s.dtype) / self.level

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = 1/level above the (1 − level)-quantile ν; what is left goes to the items at ν in
        equal shares."""
        return tilted(self, scores, mask, prior)

    def proximal(
        self, s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By a sort: its ratios jump from 0 to 1/level."""
        return of_jumps(s, mask, before, lam, self.level)

    def penalised(self, rows: Rows) -> Solution:
        """The tail itself, in any unit.

        Source: Rockafellar and Uryasev (2000), Theorem 1, for ν and the value; equal shares among
        ties are our choice.
        """
        nu, value, above = self._quantile(rows)
        side = rows.x.sub_(rows.column(nu)).sign_()  # 1 above the quantile, 0 at it, −1 below
        tied = 1 - rows.mean(torch.abs(side, out=rows.like_x(0)))
        # Ratio of the tied items, in units of 1/level: what the items above them leave of the level.
        rest = ((self.level - above) / tied).clamp(0, 1)
        t = side.add_(rows.column(rest)).clamp_(0, 1)
        return Solution(rows.weights(t, above + rest * tied), value, torch.ones_like(nu), nu)

    def _quantile(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """ν, the largest item such that those at or above it have a share of at least the level;
        value; share above ν."""
        x, n = rows.x, rows.x.shape[-1]
        if rows.prior is None:
            k = self.level * n
            whole = round(k)
            # 0.55 · 100 is 55, not 55 + ε.
            count = max(1, whole if abs(k - whole) <= 4 * EPS * k else int(k) + 1)
            tail = x.topk(count, sorted=False).values
            nu = tail.amin(-1, keepdim=True)
            excess = tail.sub_(nu).sum(-1).double() / k
            return nu[:, 0].double(), nu[:, 0].double() + excess, tail.sign_().sum(-1).double() / n
        falling, order = x.sort(-1, descending=True)
        short = rows.prior.gather(-1, order).cumsum(-1) < self.level * (1 - 4 * EPS)
        nu = falling.gather(-1, short.sum(-1, keepdim=True).clamp_max(n - 1))
        return (
            nu[:, 0],
            nu[:, 0] + rows.mean((x - nu).clamp_min(0)) / self.level,
            rows.share(x > nu),
        )

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        raise NotImplementedError("CVaR has no radius: its level is its size")


@DIVERGENCES.register("tv")
@dataclass(frozen=True)
class TotalVariation(Divergence):
    """Total variation, φ(t) = |t − 1|/2, φ*(s) = max(s, −1/2) for s ≤ 1/2 and +∞ above; D = (1/2) Σ
    |p_i − q_i|, in [0, 1).

    The adversary moves mass from the smallest losses to the largest: as much as the radius says,
    or, with a penalty, from all that lie more than τ below.
    """

    has_wall: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        return ((t - 1).abs() / 2).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        # Every optimum has its largest item at s = 1/2, so the wall must bear rounding.
        beyond = s > 0.5 * (1 + 8 * torch.finfo(s.dtype).eps)
        return s.clamp_min(-0.5).masked_fill(beyond, torch.inf)

    def ratio(self, s: Tensor) -> Tensor:
        return (s > -0.5).to(s.dtype)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = 0 for s_i < max s − 1; the largest take what these had, the others keep t = 1. ν =
        max s − 1/2."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows) -> Solution:
        """Moves the mass of all x < −1 to the largest, for the price of its amount. Source: our
        derivation from φ*."""
        kept = (rows.x >= -1).double()
        weights = self._moved(rows, kept)
        value = (weights.double() * rows.x).sum(-1) - rows.mean(1 - kept)
        # In a row shorter than 1 nothing moves, and any ν near it does.
        nu = -rows.extent.clamp_max(1) / 2
        return Solution(weights, value, torch.ones_like(nu), nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """Moves the share R of the smallest items; equal items lose equal parts. τ = max x − the
        last item touched."""
        x, order = rows.x.sort(-1)
        q = (
            torch.full_like(x, 1 / x.shape[-1], dtype=torch.float64)
            if rows.prior is None
            else rows.prior
        )
        emptied = q.gather(-1, order).cumsum(-1) <= radius[:, None] * (1 - 4 * EPS)
        edge = x.gather(-1, emptied.sum(-1, keepdim=True).clamp_max(x.shape[-1] - 1))
        above, tied = (rows.x > edge).double(), (rows.x == edge).double()
        share_tied = rows.mean(tied)
        left = ((1 - radius - rows.mean(above)) / share_tied).clamp(0, 1)
        # Of the items at the edge each keeps what is left, so that equal losses get equal ratios.
        weights = self._moved(rows, above + left[:, None] * tied)
        tau = -edge[:, 0].double()
        return Solution(weights, (weights.double() * rows.x).sum(-1), tau, -tau / 2)

    def _moved(self, rows: Rows, kept: Tensor) -> Tensor:
        """Weights p, (m, n), when the items keep these ratios and the largest get the rest."""
        top = (rows.x == 0).double()
        extra = rows.mean(1 - kept) / rows.mean(top)
        return rows.weights(kept + extra[:, None] * top).to(rows.x.dtype)
