"""Estimators of the duals as parts that a config chooses: `estimator: {name: moving_average, gamma: 0.9}`.

One of your own is a frozen dataclass with a `build`, registered in one file:

    @ESTIMATORS.register("mine")
    @dataclass(frozen=True)
    class Mine(EstimatorSpec):
        def build(self, divergence, num_rows, layout): return MyEstimator(num_rows)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from steering.dro.defaults import defaults
from steering.dro.divergences.base import Divergence
from steering.dro.online.estimator import Estimator, require_rows
from steering.dro.online.estimators import (
    MiniBatchDual,
    MirrorDescentDual,
    MovingAverageDual,
    ProximalDual,
)
from steering.dro.online.row_table import Layout
from steering.errors import SteeringError
from steering.registry import Registry


class EstimatorSpec(ABC):
    """What builds an `Estimator`."""

    @abstractmethod
    def build(self, divergence: Divergence, num_rows: int, layout: Layout) -> Estimator:
        """The estimator of a data set's rows.

        Args:
            divergence: whose dual it tracks.
            num_rows: adversaries in the whole data set.
            layout: how a table of running estimates is kept, for those that have one.

        Raises:
            ValueError: an option out of range, or a divergence that it does not work for.
        """

    def for_unit(self, unit: str) -> Self:  # noqa: ARG002
        """The same with what null means for losses of this unit."""
        return self


ESTIMATORS: Registry[EstimatorSpec] = Registry("estimator", "steering.estimators")


@ESTIMATORS.register("batch")
@dataclass(frozen=True)
class Batch(EstimatorSpec):
    """ν of the batch alone, for any divergence: no memory; biased, the more the smaller the
    batch."""

    def build(self, divergence: Divergence, num_rows: int, layout: Layout) -> Estimator:  # noqa: ARG002
        require_rows(num_rows)
        return MiniBatchDual(divergence)


@ESTIMATORS.register("moving_average")
@dataclass(frozen=True)
class MovingAverage(EstimatorSpec):
    """u ← (1 − γ)·u + γ·(mean e^s of the batch), KL. Source: arXiv 2407.01445 (FastCLIP)."""

    gamma: float | None = None
    """Final rate over visits, in (0, 1]; 1 keeps no history. null: 0.9 for examples and sequences,
    else 1."""
    decay_epochs: int = 0
    """Epochs of the cosine that takes the rate from 1 to gamma."""

    def for_unit(self, unit: str) -> Self:
        return self if self.gamma is not None else replace(self, gamma=defaults(unit).gamma)

    def build(self, divergence: Divergence, num_rows: int, layout: Layout) -> Estimator:
        gamma = 1.0 if self.gamma is None else self.gamma
        _require(divergence.has_log_means, self, divergence)
        _require_number("gamma", gamma, 0 < gamma <= 1, "in (0, 1]")
        _require_number("decay_epochs", self.decay_epochs, self.decay_epochs >= 0, "≥ 0")
        return MovingAverageDual(num_rows, gamma, self.decay_epochs, layout)


@ESTIMATORS.register("mirror_descent")
@dataclass(frozen=True)
class MirrorDescent(EstimatorSpec):
    """A moving average with the rate σ(log α + ν), KL. Source: arXiv 2602.02877 (SCENT)."""

    log_alpha: float = 0.0
    """Log of its step; −ν gives the rate 1/2."""

    def build(self, divergence: Divergence, num_rows: int, layout: Layout) -> Estimator:
        _require(divergence.has_log_means, self, divergence)
        _require_number("log_alpha", self.log_alpha, math.isfinite(self.log_alpha), "finite")
        return MirrorDescentDual(num_rows, self.log_alpha, layout)


@ESTIMATORS.register("proximal")
@dataclass(frozen=True)
class Proximal(EstimatorSpec):
    """A stochastic proximal point, for any divergence without a wall.

    Its table is whole in any layout, on each rank: a batch of examples has one row; pairs have two
    for each pair of the data.
    """

    step: float = 1.0
    """Step of the second visit, in units of τ; it falls with the square root of the visits."""

    def build(self, divergence: Divergence, num_rows: int, layout: Layout) -> Estimator:  # noqa: ARG002
        _require(not divergence.has_wall, self, divergence)
        _require_number("step", self.step, 0 < self.step < math.inf, "a number > 0")
        return ProximalDual(num_rows, divergence, self.step)


def usual_estimator(divergence: Divergence) -> EstimatorSpec:
    """What `estimator: null` means: a moving average where log means suffice (KL), the batch where
    φ* is a wall (total variation), else the proximal point."""
    if divergence.has_log_means:
        return MovingAverage()
    return Batch() if divergence.has_wall else Proximal()


def estimator_type(name: str) -> type[EstimatorSpec]:
    """The dataclass of that name; ValueError that lists the known ones."""
    try:
        return ESTIMATORS.find(name)
    except SteeringError:
        known = ", ".join(ESTIMATORS.names())
        raise ValueError(f"estimator must be one of {known}, got {name!r}") from None


def _require(works: bool, spec: EstimatorSpec, divergence: Divergence) -> None:
    if not works:
        raise ValueError(
            f"estimator {ESTIMATORS.name_of(spec)!r} does not work for the divergence "
            f"{divergence.name!r}; use 'batch'"
        )


def _require_number(name: str, value: float, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name} must be {expected}, got {value!r}")
