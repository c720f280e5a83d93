"""φ-divergences D_φ(p‖1/n) = (1/n) Σ_i φ(n p_i): how the adversary of a row pays for leaving the uniform weights.

A divergence answers four questions: φ, its conjugate φ*, whether its size can be scaled, and the best tilt of one row.
The solver in `exact.py` knows nothing else about it, so a new divergence is a new class here and no line there.

Legend: n items of a row, k of them in a tail, t_i = n p_i the likelihood ratio of item i to uniform (mean 1).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


class Divergence(ABC):
    """Convex φ ≥ 0 on t ≥ 0 with φ(1) = 0; +∞ for t < 0. φ and φ* are elementwise and keep shape and floating dtype."""

    name: ClassVar[str]
    """What a config calls it."""
    takes_budget: ClassVar[bool]
    """Whether a penalty or a radius sets its strength; False when φ is 0 or +∞ only: scaling would change nothing."""

    @abstractmethod
    def phi(self, t: Tensor) -> Tensor:
        """φ(t)."""

    @abstractmethod
    def conjugate(self, s: Tensor) -> Tensor:
        """φ*(s) = max_t (t s − φ(t))."""

    @abstractmethod
    def ratio(self, s: Tensor) -> Tensor:
        """t = φ*′(s) ≥ 0, the likelihood ratio that a score s buys; where φ* has a kink, the smaller one."""

    @abstractmethod
    def tilt(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Best reply to one row of scores: the maximiser of mean(t s) − mean φ(t) over t ≥ 0 with mean(t) = 1.

        Equal scores get equal ratios. They come as t, not p = t/n, because D(p) of a nearly uniform row hangs on t − 1.

        Args:
            scores: s, (..., n), pure numbers, finite where the mask is True.
            mask: bool, (..., n), True where an item counts; at least one in each row.

        Returns:
            t, (..., n), zero where masked, and the multiplier ν of mean(t) = 1, (...): t_i ∈ ∂φ*(s_i − ν).
        """


@dataclass(frozen=True)
class KL(Divergence):
    """Kullback–Leibler, φ(t) = t log t − t + 1, φ*(s) = e^s − 1, nats."""

    name: ClassVar[str] = "kl"
    takes_budget: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        # Around t = 1, φ is (t − 1)²/2: log(t) would drown it in rounding, log1p(t − 1) does not. Around t = 0, where
        # t − 1 has lost t, the clamp keeps 0 · log 0 = 0 and costs less than one rounding of φ = 1.
        e = t - 1
        floor = torch.finfo(t.dtype).eps / 2 - 1
        return (t * e.clamp_min(floor).log1p() - e).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        return s.expm1()

    def ratio(self, s: Tensor) -> Tensor:
        return s.exp()

    def tilt(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """t_i = exp(s_i − ν), ν = log mean exp(s). Source: φ'(t) = log t = s − ν, our derivation."""
        n = mask.sum(-1)  # (...)
        s = scores.masked_fill(~mask, -torch.inf)
        top = s.amax(-1)
        s = s - top[..., None]
        # Nearly flat rows need log1p of the mean of expm1, sharp rows the mean of exp; each loses digits for the other.
        dip = masked_mean(s.expm1(), mask)  # in (−1, 0]
        nu = torch.where(dip > -0.5, dip.log1p(), (s.exp().sum(-1) / n).log())
        return (s - nu[..., None]).exp(), top + nu


@dataclass(frozen=True)
class ChiSquare(Divergence):
    """HALF chi-square, φ(t) = (t − 1)²/2, φ*(s) = s + s²/2 for s ≥ −1 and −1/2 below.

    Where the literature drops the 1/2, its radius is twice ours and its penalty half of ours.
    """

    name: ClassVar[str] = "chi2"
    takes_budget: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        return ((t - 1).square() / 2).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        s = s.clamp_min(-1)
        return s + s.square() / 2

    def ratio(self, s: Tensor) -> Tensor:
        return (1 + s).clamp_min(0)

    def tilt(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """t_i = [1 + s_i − ν]_+: water filling, a projection onto the simplex.

        When the m largest scores stay positive, mean(t) = 1 reads ν = (s_(1) + ... + s_(m) + m − n) / m; m is the
        largest count whose smallest member is still positive. Source: our derivation from φ'(t) = t − 1 = s − ν.
        """
        n = mask.sum(-1, keepdim=True)  # (..., 1)
        s = scores.masked_fill(~mask, -torch.inf)
        top = s.amax(-1, keepdim=True)
        s = s - top
        m = torch.arange(1, s.shape[-1] + 1, device=s.device)  # (n,)
        falling = s.sort(-1, descending=True).values.masked_fill(m > n, 0.0)
        nus = (falling.cumsum(-1) + (m - n)) / m  # (..., n), ν if exactly m items stay positive
        positive = (1 + falling - nus > 0) & (m <= n)
        nu = nus.gather(-1, positive.sum(-1, keepdim=True).clamp_min(1) - 1)
        return (1 + s - nu).clamp_min(0), (top + nu)[..., 0]


@dataclass(frozen=True)
class CVaR(Divergence):
    """Conditional value at risk, φ(t) = 0 for t ≤ 1/level and +∞ above, φ*(s) = max(s, 0)/level.

    The worst case is the mean of the k = level · n largest losses; when k is not whole, the next loss enters with the
    fraction that is left. Below level = 1/n it is the largest loss.

    Attributes:
        level: share of the items in the tail, 0 < level ≤ 1.
    """

    level: float

    name: ClassVar[str] = "cvar"
    takes_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.level <= 1:
            raise ValueError(f"level: expected 0 < level <= 1, got {self.level}")

    def phi(self, t: Tensor) -> Tensor:
        # The bound is met with equality by every optimum, so it must bear the rounding of n p.
        bound = (1 + 8 * torch.finfo(t.dtype).eps) / self.level
        return torch.zeros_like(t).masked_fill((t < 0) | (t > bound), torch.inf).masked_fill(t.isnan(), torch.nan)

    def conjugate(self, s: Tensor) -> Tensor:
        return s.clamp_min(0) / self.level

    def ratio(self, s: Tensor) -> Tensor:
        return (s > 0).to(s.dtype) / self.level

    def tilt(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """t_i = 1/level above the (1 − level)-quantile ν; what is left goes to the items at ν in equal shares.

        Source: Rockafellar and Uryasev (2000), Theorem 1, for ν and the value; equal shares among ties are our choice.
        """
        n = mask.sum(-1, keepdim=True).to(scores.dtype)  # (..., 1)
        k = self.level * n
        whole = k.round()
        k = torch.where((k - whole).abs() <= 4 * torch.finfo(k.dtype).eps * k, whole, k)  # 0.55 · 100 is 55, not 55 + ε
        s = scores.masked_fill(~mask, -torch.inf)
        nu = s.sort(-1, descending=True).values.gather(-1, k.ceil().long() - 1)
        above, tied = s > nu, s == nu
        rest = (n - n / k * above.sum(-1, keepdim=True)).clamp_min(0) / tied.sum(-1, keepdim=True)
        return torch.where(above, n / k, torch.where(tied, rest, 0.0)), nu[..., 0]


def divergence(name_or_object: str | Divergence, level: float | None = None) -> Divergence:
    """The divergence that a config or a caller means.

    Args:
        name_or_object: "kl", "chi2" (half chi-square) or "cvar"; an object comes back as it is.
        level: share of items in the tail, 0 < level ≤ 1; for "cvar" and for nothing else.

    Raises:
        ValueError: unknown name, a missing level, or a level where there is none.
    """
    if name_or_object == CVaR.name:
        if level is None:
            raise ValueError("level: 'cvar' needs the share of items in the tail, 0 < level <= 1, got None")
        return CVaR(level)
    if level is not None:
        raise ValueError(f"level: belongs to 'cvar' only, got {level} together with {name_or_object!r}")
    if isinstance(name_or_object, Divergence):
        return name_or_object
    known: dict[str, Divergence] = {KL.name: KL(), ChiSquare.name: ChiSquare()}
    if name_or_object not in known:
        raise ValueError(f"divergence: expected 'kl', 'chi2' or 'cvar', got {name_or_object!r}")
    return known[name_or_object]


def distance(p: Tensor, phi: Divergence, mask: Tensor | None = None) -> Tensor:
    """D_φ(p‖uniform) = (1/n) Σ_i φ(n p_i) of each row, where n counts the items that the mask leaves.

    Args:
        p: weights, (..., n); those that count are non-negative and sum to 1, the others are not looked at.
        phi: which divergence.
        mask: bool, broadcasts to p, True where an item counts; None means all do.

    Returns:
        (...), dtype of p: nats for KL, pure numbers else; +∞ where a weight leaves the domain of φ. Nothing is raised.
    """
    mask = torch.ones_like(p, dtype=torch.bool) if mask is None else mask.expand_as(p)
    return masked_mean(phi.phi(p * mask.sum(-1, keepdim=True)), mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the items that count, (..., n) → (...); what stands at the others does not matter, not even NaN."""
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
