"""The strength α of the reference: a number, a schedule, or estimated as the control-variate
coefficient while training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.estimator import stateful
from steering.items import Units
from steering.registry import Registry
from steering.schedules import SCHEDULES, Constant, Schedule

_RESOLVED = 64
"""A standard deviation below this many units of rounding counts as none. As α ≤ std ℓ / std ℓ_ref
(Cauchy and Schwarz), the rounding of α·ℓ_ref, which is about α·ε·max |ℓ_ref|, then stays below std
ℓ / 64."""


@dataclass(frozen=True)
class Auto:
    """α tracks the strength that minimises the variance of the excess losses."""

    rate: float = 0.1
    """Share of the newest batch in the running moments, in (0, 1]."""


STRENGTHS: Registry[Schedule | Auto] = Registry(
    "strength", "steering.strengths", number=Constant, also=SCHEDULES
)
STRENGTHS.register("auto")(Auto)


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
        part: a schedule of finite numbers ≥ 0, or `Auto`; a number, or the name "auto", will do.

    Attributes:
        value: α now; of "auto" 0, which stands for a reference that is not there.

    Raises:
        ValueError: α or the rate out of range.

    Source: control variates, e.g. Owen (2013), section 8.9; docs/theory.md, section 8, our
    derivation for rows.
    """

    def __init__(self, part: float | str | Schedule | Auto) -> None:
        super().__init__()
        part = as_strength(part)
        self.auto = isinstance(part, Auto)
        self.schedule: Schedule | None = None
        self.value, self.rate = 0.0, 1.0
        self.covariance: Tensor
        self.variance: Tensor
        self.visited: Tensor
        # A given strength has no memory.
        if isinstance(part, Auto):
            if not 0 < part.rate <= 1:
                raise ValueError(f"rate must lie in (0, 1], got {part.rate}")
            self.rate = part.rate
            self.register_buffer("covariance", torch.zeros((), dtype=torch.float64))
            self.register_buffer("variance", torch.zeros((), dtype=torch.float64))
            self.register_buffer("visited", torch.zeros((), dtype=torch.bool))
        else:
            self.schedule = part
            self.at(0.0)

    def at(self, progress: float) -> None:
        """Take the value of the schedule at this share of the run, in [0, 1]."""
        if self.schedule is None:
            return
        self.value = self.schedule(progress)
        if not 0 <= self.value < math.inf:
            raise ValueError(f"strength must be a number ≥ 0 or 'auto', got {self.value!r}")

    @property
    def uses_reference(self) -> bool:
        return self.auto or self.schedule != Constant(0.0)

    def now(
        self, moments: Callable[[], Tensor] | None, dtype: torch.dtype, *, learn: bool
    ) -> float | Tensor:
        """α for a batch: the number, or () in the dtype of the losses.

        Args:
            moments: makes the sums that `track` wants; None: the batch has no reference. Only
                "auto" asks.
            dtype: of the losses.
        """
        if not self.auto or moments is None:
            return self.value
        return self.track(moments(), dtype, learn=learn)

    @stateful
    def forward(self, units: Units, *, learn: bool) -> float | Tensor:
        """α for this batch: the number, or () in the dtype of the losses; "auto" takes the batch in
        first.

        The estimate sees the batch it is used on, and so makes the variance of that batch's excess
        losses look smaller, by the share 1/n on a first batch of n items and rate·(3 − 2·rate)/((2
        − rate)·n) later (to first order in 1/n; our derivation).
        """
        known = None if units.reference is None else lambda: unit_moments(units)
        return self.now(known, units.target.dtype, learn=learn)

    @stateful
    def track(self, moments: Tensor, dtype: torch.dtype, *, learn: bool) -> Tensor:
        """α after a batch of which these sums are known; "auto" only.

        Args:
            moments: Σ (ℓ − ℓ̄)(ℓ_ref − ℓ̄_ref), Σ (ℓ_ref − ℓ̄_ref)², Σ 1 over rows and items, times
                any factor; float64, (3,).
            dtype: of the losses.
        """
        # float64, unless somebody called `float()` on the module.
        batch = (moments[:2] / moments[2]).to(self.covariance.dtype)
        # One overflow must not stay in the averages for ever.
        usable = batch.isfinite().all()
        batch = torch.where(usable, batch, 0.0)
        # The first batch counts whole: the averages' zeros are no estimate. All on the device, so
        # that no GPU is asked.
        rate = torch.where(usable, torch.where(self.visited, self.rate, 1.0), 0.0)
        covariance, variance = (
            self.covariance.lerp(batch[0], rate),
            self.variance.lerp(batch[1], rate),
        )
        if learn:
            self.covariance.copy_(covariance)
            self.variance.copy_(variance)
            self.visited |= usable
        # (30): each is averaged for itself, as a mean of quotients would be biased.
        alpha = (covariance / variance).clamp_min(0.0).to(dtype)
        # A variance of zero, or an α beyond the dtype.
        return torch.where(alpha.isfinite(), alpha, 0.0)


def unit_moments(units: Units) -> Tensor:
    """Sums over rows and items of (ℓ − ℓ̄)(ℓ_ref − ℓ̄_ref), of (ℓ_ref − ℓ̄_ref)², and of 1,
    float64, (3,); bars: row means. Of rows that are split over the ranks it is the mean over these.

    The number of items is that of all rows. Rows whose reference is constant up to rounding add to
    it alone. Takes units with a reference.
    """
    if units.reference is None:
        raise ValueError("moments need a reference")
    mask = torch.ones_like(units.target, dtype=torch.bool) if units.mask is None else units.mask
    counts = mask.sum(-1, keepdim=True)
    target, reference = (
        x.detach().double().masked_fill(~mask, 0.0) for x in (units.target, units.reference)
    )
    # Masked once more: less its row's mean, what does not count is no longer 0.
    deviation = (target - target.sum(-1, keepdim=True) / counts).masked_fill(~mask, 0.0)
    guide = (reference - reference.sum(-1, keepdim=True) / counts).masked_fill(~mask, 0.0)
    rounding = torch.finfo(units.reference.dtype).eps * reference.abs().amax(-1, keepdim=True)
    spread = (guide.square().sum(-1, keepdim=True) / counts).sqrt()
    guide = guide.masked_fill(spread <= _RESOLVED * rounding, 0.0)
    sums = torch.stack([(deviation * guide).sum(), guide.square().sum(), counts.sum().double()])
    return distributed.mean(sums) if units.sharded else sums


def as_strength(value: float | str | Schedule | Auto) -> Schedule | Auto:
    """A part as it is; a number as a constant, "auto" as `Auto`; ValueError for anything else."""
    if isinstance(value, Schedule | Auto):
        return value
    if value == "auto":
        return Auto()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Constant(float(value))
    raise ValueError(f"strength must be a number ≥ 0 or 'auto', got {value!r}")
