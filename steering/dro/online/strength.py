"""The strength α of the reference: a number, or estimated as the control-variate coefficient while
training."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.estimator import stateful
from steering.items import Units

_RESOLVED = 64
"""A standard deviation below this many units of rounding counts as none. As α ≤ std ℓ / std ℓ_ref
(Cauchy and Schwarz), the rounding of α·ℓ_ref, which is about α·ε·max |ℓ_ref|, then stays below std
ℓ / 64."""


class Strength(nn.Module):
    """α in h = ℓ − α·ℓ_ref.

    "auto" tracks  α* = Cov(ℓ, ℓ_ref) / Var(ℓ_ref),  the α that minimises the variance of the excess
    loss, which is what the adversary of a row, and the generalisation bound, pay for. Deviations
    are taken from the mean of each row, because the adversary of a row does not feel a constant of
    that row. Both moments are averaged over the batch's rows (of all ranks) and then over time,
    each for itself; the first batch counts whole. α* < 0 counts as 0: a reference that
    anti-correlates is ignored. So is one that is constant in its row, up to rounding, and a batch
    whose moments are not finite. Scaling the reference's losses by any c > 0 scales α by 1/c and
    leaves h as it is.

    Args:
        value: a finite number ≥ 0, or "auto".
        rate: share of the newest batch in the running moments, in (0, 1].

    Raises:
        ValueError: value or rate out of range.

    Source: control variates, e.g. Owen (2013), section 8.9; docs/theory.md, section 8, our
    derivation for rows.
    """

    def __init__(self, value: float | str, rate: float = 0.1) -> None:
        super().__init__()
        self.auto = value == "auto"
        if not self.auto and not (_is_number(value) and 0 <= float(value) < math.inf):
            raise ValueError(f"strength must be a number ≥ 0 or 'auto', got {value!r}")
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        self.value, self.rate = (0.0 if self.auto else float(value)), rate
        self.covariance: Tensor
        self.variance: Tensor
        self.visited: Tensor
        if self.auto:  # a fixed strength has no memory
            self.register_buffer("covariance", torch.zeros((), dtype=torch.float64))
            self.register_buffer("variance", torch.zeros((), dtype=torch.float64))
            self.register_buffer("visited", torch.zeros((), dtype=torch.bool))

    @property
    def uses_reference(self) -> bool:
        return self.auto or self.value > 0

    @stateful
    def forward(self, units: Units, *, learn: bool) -> float | Tensor:
        """α for this batch: the number, or () in the dtype of the losses; "auto" takes the batch in
        first.

        The estimate sees the batch it is used on, and so makes the variance of that batch's excess
        losses look smaller, by the share 1/n on a first batch of n items and rate·(3 − 2·rate)/((2
        − rate)·n) later: docs/theory.md, section 8.
        """
        if not self.auto or units.reference is None:
            return self.value
        moments = _moments(units)
        if units.sharded:
            moments = distributed.mean(moments)
        return self.track(moments, units.target.dtype, learn=learn)

    @stateful
    def track(self, moments: Tensor, dtype: torch.dtype, *, learn: bool) -> Tensor:
        """α after a batch of which these sums are known; "auto" only.

        Args:
            moments: Σ (ℓ − ℓ̄)(ℓ_ref − ℓ̄_ref), Σ (ℓ_ref − ℓ̄_ref)², Σ 1 over rows and items, times
                any factor; float64, (3,).
            dtype: of the losses.
        """
        batch = (moments[:2] / moments[2]).to(
            self.covariance.dtype
        )  # float64, unless somebody called `float()` on the module
        usable = batch.isfinite().all()  # one overflow must not stay in the averages for ever
        batch = torch.where(usable, batch, 0.0)
        rate = torch.where(usable, torch.where(self.visited, self.rate, 1.0), 0.0)
        covariance, variance = (
            self.covariance.lerp(batch[0], rate),
            self.variance.lerp(batch[1], rate),
        )
        if learn:
            self.covariance.copy_(covariance)
            self.variance.copy_(variance)
            self.visited |= usable
        alpha = (covariance / variance).clamp_min(0.0).to(dtype)
        return torch.where(
            alpha.isfinite(), alpha, 0.0
        )  # a variance of zero, or an α beyond the dtype


def _moments(units: Units) -> Tensor:
    """Sums over rows and items of (ℓ − ℓ̄)(ℓ_ref − ℓ̄_ref), of (ℓ_ref − ℓ̄_ref)², and of 1,
    float64, (3,); bars: row means.

    The number of items is that of all rows. Rows whose reference is constant up to rounding add to
    it alone.
    """
    assert units.reference is not None
    mask = torch.ones_like(units.target, dtype=torch.bool) if units.mask is None else units.mask
    counts = mask.sum(-1, keepdim=True)
    target, reference = (
        x.detach().double().masked_fill(~mask, 0.0) for x in (units.target, units.reference)
    )
    deviation = (target - target.sum(-1, keepdim=True) / counts).masked_fill(~mask, 0.0)
    guide = (reference - reference.sum(-1, keepdim=True) / counts).masked_fill(~mask, 0.0)
    rounding = torch.finfo(units.reference.dtype).eps * reference.abs().amax(-1, keepdim=True)
    spread = (guide.square().sum(-1, keepdim=True) / counts).sqrt()
    guide = guide.masked_fill(spread <= _RESOLVED * rounding, 0.0)
    return torch.stack([(deviation * guide).sum(), guide.square().sum(), counts.sum().double()])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
