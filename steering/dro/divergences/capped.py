"""KL with a ceiling: CVaR that pays for what it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence


@DIVERGENCES.register("cvar-kl")
@dataclass(frozen=True)
class CappedKL(Divergence):
    """φ(t) = t log t − t + 1 for t ≤ c = 1/level and +∞ above, φ*(s) = e^s − 1 for s ≤ log c, a
    straight line of slope c beyond.

    The weights of KL, none above q/level. With a penalty it is CVaR with a KL price, which smooths
    it: τ → 0 is CVaR, level → 0 is KL.

    Source: Levy et al. (2020), arXiv 2010.05893, for the risk; φ and its conjugate are our
    derivation.
    """

    has_ceiling: ClassVar[bool] = True

    level: float
    """Least share of the items that bear the weight, in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"level: expected 0 < level <= 1, got {self.level}")

    def phi(self, t: Tensor) -> Tensor:
        e = t - 1
        floor = torch.finfo(t.dtype).eps / 2 - 1  # keeps 0 · log 0 = 0
        price = t * e.clamp_min(floor).log1p() - e
        # The ceiling is met by many an optimum, so it must bear the rounding of n p.
        ceiling = (1 + 8 * torch.finfo(t.dtype).eps) / self.level
        return price.masked_fill((t < 0) | (t > ceiling), torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        edge = -math.log(self.level)
        beyond = (s - edge).clamp_min(0) / self.level
        return s.clamp_max(edge).expm1() + beyond

    def ratio(self, s: Tensor) -> Tensor:
        return s.exp().clamp_max(1 / self.level)
