"""What the loss of an example is: a function of the scores and the label, by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from steering.errors import SteeringError
from steering.registry import Registry
from steering.weak_labels import generalized_cross_entropy


class LabelLoss(ABC):
    """A loss of each example, of the target and of the reference alike."""

    @abstractmethod
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses ≥ 0, (b,), of logits (b, C) and class numbers, int64, (b,)."""


LOSSES: Registry[LabelLoss] = Registry("loss", "steering.classification_losses")


@LOSSES.register("cross_entropy")
@dataclass(frozen=True)
class CrossEntropy(LabelLoss):
    """−log p_y, nats."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="none")


@LOSSES.register("gce")
@dataclass(frozen=True)
class GeneralizedCrossEntropy(LabelLoss):
    """(1 − p_y^q)/q, for labels some of which are wrong: see `steering.weak_labels`.

    Its values lie in [0, 1/q], so an adversary that weighs it needs a temperature of that size.

    Raises:
        SteeringError: q out of range.

    Source: arXiv 1805.07836.
    """

    q: float = 0.7
    """Order in [0, 1]: 0 is cross entropy, 1 is 1 − p_y."""

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise SteeringError(f"q: expected a number in [0, 1], got {self.q}")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return generalized_cross_entropy(logits, labels, self.q)
