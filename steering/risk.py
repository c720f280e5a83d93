"""The contract between a task, a reference and a method.

A task turns a model and a batch into *outputs*: per-example tensors such as features or losses. The
same function serves the target (with gradient) and the frozen reference (without), so the two can
never drift apart. From a pair of outputs the task then builds *loss items*, and a method turns
those into one scalar to descend. Shapes: b examples in this process's batch, n items in a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature

from torch import Tensor, nn

from steering.items import LossItems

Batch = Mapping[str, Tensor]
Outputs = dict[str, Tensor]
OutputsOf = Callable[[nn.Module, Batch], Outputs]
"""From a model and a batch to its outputs."""


class ReferenceRisk(ABC):
    """What a task tells the solver: outputs of a model, and loss items from target and reference
    outputs.

    `outputs` is also what the reference cache stores, so every tensor in it has one row per
    example. Nothing in an implementation may depend on the method or on the number of ranks:
    methods gather what they need.

    Attributes:
        unit: what one loss item belongs to: "example", "token", "sequence" or "pair". Methods say
            which they can reweight.
        identity: what of its options changes `outputs`, so that stored ones of another choice are
            not taken for these; empty: nothing.
    """

    unit: str = "example"
    identity: str = ""

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Batch, logits: bool = False) -> Outputs:
        """Per-example tensors of one model on one batch, each (b, ...) and float32 whatever the
        autocast.

        Args:
            logits: also what `losses` needs to fill in `Units.logits`, for a method that compares
                whole distributions. A task whose outputs are the same either way, or that has no
                logits, may leave the argument out (`outputs_with`).
        """

    @abstractmethod
    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> LossItems:
        """Loss items of a batch.

        Args:
            target: outputs of the target, with gradient.
            reference: outputs of the reference on the same examples, without gradient, or None.
            batch: the batch itself; it carries "index", int64, (b,), the stable example numbers.
        """


def outputs_with(risk: ReferenceRisk, logits: bool) -> OutputsOf:
    """`risk.outputs`, asked for logits if they are wanted and the risk can be asked."""
    if logits and "logits" in signature(risk.outputs).parameters:
        return partial(risk.outputs, logits=True)
    return risk.outputs
