"""Half chi-square: the divergence whose weights are filled like water."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence, tilted
from steering.dro.divergences.proximal import of_ramps
from steering.dro.divergences.rows import Rows, Solution


@DIVERGENCES.register("chi2")
@dataclass(frozen=True)
class ChiSquare(Divergence):
    """HALF chi-square, φ(t) = (t − 1)²/2, φ*(s) = s + s²/2 for s ≥ −1 and −1/2 below.

    Where the literature drops the 1/2, its radius is twice ours and its penalty half of ours.

    Both solutions are water filling, t = [x − η]_+ / C. If the items above η are known, η is known
    in closed form; starting from all items, η only rises and items only drop out, so the exact set
    is met after a few passes, without a sort.
    """

    def phi(self, t: Tensor) -> Tensor:
        return ((t - 1).square() / 2).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        s = s.clamp_min(-1)
        return s + s.square() / 2

    def ratio(self, s: Tensor) -> Tensor:
        return (1 + s).clamp_min(0)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = [1 + s_i − ν]_+: a projection onto the simplex. Source: our derivation from φ′(t) =
        t − 1 = s − ν."""
        return tilted(self, scores, mask, prior)

    def proximal(
        self, s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By a sort: its ratios are ramps."""
        return of_ramps(s, mask, before, lam)

    def penalised(self, rows: Rows) -> Solution:
        """t = [1 + x − ν]_+; over the active items A, Σ_A q t = 1 reads ν = (Σ_A q x − q(not A)) /
        q(A)."""
        x, work = rows.x, rows.like_x(0)
        nu, inside = rows.mean(x), torch.full_like(rows.extent, 2.0)
        while True:
            active = torch.gt(x, rows.column(nu - 1), out=work)
            share = rows.mean(active)
            # Items only drop out, so a share that has not become less is that of the same set.
            if (share >= inside).all():
                break
            inside = share
            outside = rows.mean(torch.sub(1, active, out=rows.like_x(1)))
            nu = torch.maximum(nu, (rows.mean(active.mul_(x)) - outside) / share)
        excess = x.sub_(rows.column(nu)).clamp_min_(-1)  # t − 1
        # Σ p x = ν + Σ q (t − 1)², as x − ν = t − 1 wherever t > 0; the price takes half of the
        # second term.
        value = nu + rows.mean(torch.square(excess, out=work)) / 2
        t = excess.add_(1)
        # Over their own mean, which is 1 up to rounding: weights sum to 1.
        return Solution(rows.weights(t, rows.mean(t)), value, torch.ones_like(nu), nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """t = [x − η]_+ / C; over the active items A with share Q, mean μ, variance v: (μ − η)² = v
        / (2 R Q − q(not A)).

        Source: our derivation, from Σ_A q t² = 1 + 2R with C = Q (μ − η); τ = C, ν = η + C.
        """
        x, work, other = rows.x, rows.like_x(0), rows.like_x(1)
        eta, inside = torch.full_like(radius, -math.inf), torch.full_like(radius, 2.0)
        while True:
            active = torch.gt(x, rows.column(eta), out=work)
            share = rows.mean(active)
            if (share >= inside).all():
                break
            inside, outside = share, rows.mean(torch.sub(1, active, out=other))
            mu = rows.mean(torch.mul(active, x, out=other)) / share
            variance = (
                rows.mean(active.mul_(torch.sub(x, rows.column(mu), out=other)).square_()) / share
            )
            # Positive as long as the radius does not reach the largest items alone; rounding may
            # make it 0.
            surplus = (2 * radius * share - outside).clamp_min(torch.finfo(torch.float64).tiny)
            eta = torch.maximum(eta, mu - (variance / surplus).sqrt())
        t = torch.sub(x, rows.column(eta), out=work).clamp_min_(0)
        level = rows.mean(t)
        value = rows.mean(torch.mul(t, x, out=other)) / level
        return Solution(rows.weights(t, level), value, level, eta + level)
