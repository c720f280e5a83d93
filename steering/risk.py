"""The contract between a task, a reference and a method.

A task turns a model and a batch into *outputs*: per-example tensors such as features or losses. The same function serves
the target (with gradient) and the frozen reference (without), so the two can never drift apart. From a pair of outputs the
task then builds *loss items*, and a method turns those into one scalar to descend. Shapes: b examples in this process's
batch, n items in a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from steering.contrastive.pairs import Pairs

Batch = Mapping[str, Tensor]
Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Units:
    """Loss items of one batch; one adversary per row reweights the last axis.

    Attributes:
        target: target losses, (..., n), nats, with gradient, float32 or float64.
        reference: reference losses on the same items, (..., n), without gradient; None means "no reference".
        rows: int64 key of each row's running estimate, (...). Zero for the single row of a plain batch of examples.
        mask: (..., n), True where an item counts; None means all do.
        sharded: False when every rank holds the same rows, True when the rows are split over the ranks.
    """

    target: Tensor
    reference: Tensor | None
    rows: Tensor
    mask: Tensor | None = None
    sharded: bool = False

    def excess(self, strength: float = 1.0) -> Tensor:
        """h = ℓ − α·ℓ_ref, (..., n): the loss that training can still reduce. α = 1 is arXiv 2505.06699, α = 0 plain DRO."""
        if self.reference is None or strength == 0.0:
            return self.target
        return self.target - strength * self.reference

    def counts(self) -> Tensor:
        """Number of items that count in each row, (...), in the dtype of the losses."""
        if self.mask is None:
            return torch.full_like(self.target[..., 0], self.target.shape[-1]).detach()
        return self.mask.sum(-1).to(self.target.dtype)


class ReferenceRisk(ABC):
    """What a task tells the solver: outputs of a model, and loss items from target and reference outputs.

    `outputs` is also what the reference cache stores, so every tensor in it has one row per example. Nothing in an
    implementation may depend on the method or on the number of ranks: methods gather what they need.
    """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Per-example tensors of one model on one batch, each (b, ...) and float32 whatever the autocast."""

    @abstractmethod
    def losses(self, target: Outputs, reference: Outputs | None, index: Tensor) -> Units | Pairs:
        """Loss items of a batch.

        Args:
            target: outputs of the target, with gradient.
            reference: outputs of the reference on the same examples, without gradient, or None.
            index: stable example numbers, int64, (b,).
        """
