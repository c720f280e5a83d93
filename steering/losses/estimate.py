"""What a steered loss knows of one batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Estimate:
    """One batch of a steered loss.

    Attributes:
        loss: (), what `forward` returns: its value estimates the risk, its gradient steers.
        weights: what the loss multiplies the gradient of each item of this process by, detached, in
            the shape of the losses that were given; zero where masked. Each class says what its items
            are and what its weights sum to. None for a loss that weighs nothing.
        metrics: scalars for a log by name, detached, () each; docs/guide-clip.md explains them.
    """

    loss: Tensor
    weights: Tensor | None
    metrics: Mapping[str, Tensor]
