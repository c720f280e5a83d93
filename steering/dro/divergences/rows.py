"""Scaled rows and their solution: what the divergences work on.

Legend: m rows, n items in a row, t_i = p_i / q_i the likelihood ratio of item i (mean 1 under q). A
row is solved scaled: x = (h − max h) / (max h − min h) ∈ [−1, 0], so neither the unit nor the
offset of the losses costs digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Rows:
    """Scaled rows and their prior.

    Attributes:
        x: (m, n), float32 or float64, ≤ 0, 0 at the largest item (and where the prior is 0).
        extent: −min x, (m,), float64: 1 where a radius rules, the spread of the losses over τ where
            a penalty does.
        prior: q, (m, n), float64, ≥ 0, each row sums to 1; None is uniform.
        spare: memory of temporaries that blocks of rows share; fresh megabytes would cost more than
            a pass over them.
    """

    x: Tensor
    extent: Tensor
    prior: Tensor | None = None
    spare: dict[int, Tensor] = field(default_factory=dict)

    def like_x(self, number: int) -> Tensor:
        """Uninitialised (m, n): temporary 0 or 1."""
        held = self.spare.get(number)
        if held is None or held.dtype != self.x.dtype or held.numel() < self.x.numel():
            held = self.spare[number] = torch.empty_like(self.x).view(-1)
        return held[: self.x.numel()].view_as(self.x)

    def mean(self, values: Tensor) -> Tensor:
        """Σ_i q_i v_i, (m, n) → (m,), float64."""
        if self.prior is None:
            return values.sum(-1).double() / values.shape[-1]
        # φ(0) may be ∞, and times a prior of 0 it would be NaN.
        return torch.where(self.prior > 0, values * self.prior, 0.0).sum(-1)

    def share(self, items: Tensor) -> Tensor:
        """Prior mass of the items that are True, (m, n) → (m,), float64."""
        return self.mean(items.to(self.x.dtype))

    def weights(self, ratios: Tensor, level: Tensor | None = None) -> Tensor:
        """p = q·t, or q·t/level for ratios of that mean, (m, n). Overwrites the ratios."""
        if self.prior is None:
            n = ratios.shape[-1]
            return ratios.div_(n if level is None else self.column(n * level))
        return (ratios if level is None else ratios.div_(self.column(level))).mul_(self.prior)

    def ratios(self, weights: Tensor) -> Tensor:
        """t = p / q, (m, n), float64; zero where the prior is zero."""
        if self.prior is None:
            return weights.double() * weights.shape[-1]
        return torch.where(self.prior > 0, weights / self.prior, 0.0)

    def column(self, rows: Tensor) -> Tensor:
        """(m,) → (m, 1) in the dtype of x."""
        return rows.to(self.x.dtype)[:, None]


class Solution(NamedTuple):
    """Worst case of scaled rows: weights p (m, n) in the dtype of x; value, τ and ν, (m,), float64,
    in the unit of x."""

    weights: Tensor
    value: Tensor
    tau: Tensor
    nu: Tensor


def variance_of(rows: Rows) -> Tensor:
    """Var_q(x), (m,), and never below what a row with x = 0 and x = −1 can have; float64."""
    deviation = rows.x - rows.column(rows.mean(rows.x))
    return rows.mean(deviation.square_()).clamp_min(torch.finfo(torch.float64).tiny)
