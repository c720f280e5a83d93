"""What a risk knows of a batch, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from steering.dro.online.metrics import Metrics
from steering.dro.online.temperature import Follow


@dataclass(frozen=True)
class Estimate:
    """One batch of a stochastic DRO risk.

    Attributes:
        loss: (), its value estimates the risk, its gradient is the stochastic gradient (weights
            detached).
        weights: p_ij, (..., n), detached, ≥ 0; rows sum to 1 for an estimator without history and ε
            = 0.
        metrics: detached scalars for a log, computed when they are read.
    """

    loss: Tensor
    weights: Tensor
    metrics: Metrics


@dataclass(frozen=True)
class Visit:
    """What a risk knows of a batch before it sees the losses.

    Attributes:
        keys: of the rows, int64, (...).
        sharded: whether the rows differ between the ranks.
        learn: whether the state may change.
        tau: temperatures, detached, () or (...).
        alpha: strength, a number or ().
        follow: how τ learns from slopes, see `Temperatures.visit`.
    """

    keys: Tensor
    sharded: bool
    learn: bool
    tau: Tensor
    alpha: float | Tensor
    follow: Follow


@dataclass(frozen=True)
class Reply:
    """The adversary's answer to a batch: weights p, (..., n); F/τ − R per row, (...); and what
    makes the slopes that `StochasticRisk.finish` may ask for. All detached."""

    weights: Tensor
    height: Tensor
    slopes: Callable[[], tuple[Tensor, Tensor]]
