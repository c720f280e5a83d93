"""Who gives ℓ(θ_ref; z): a live frozen model, or outputs that were stored before and that the batch
carries."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from steering.risk import Batch, Outputs, ReferenceRisk, outputs_with

PREFIX = "reference_"
STORED = "reference:"
"""Before the names of stored outputs in a batch; see `steering.outputs.WithOutputs`."""


class Reference(ABC):
    """Outputs of a frozen model, without gradient, for the examples of a batch."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Outputs: ...


class LiveReference(Reference):
    """A frozen model run beside the target: eval mode, no gradient, not in DDP, not in the
    optimiser.

    Args:
        module: the reference; it is put in eval mode and its parameters stop requiring gradients,
            for good.
        risk: the same adapter that serves the target.
        logits: whether the method compares whole distributions.
    """

    def __init__(self, module: nn.Module, risk: ReferenceRisk, logits: bool = False) -> None:
        self.module = module.eval().requires_grad_(False)
        self._outputs = outputs_with(risk, logits)

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Outputs:
        """The reference sees its own view of the batch ("reference_image", ...) where there is one,
        else the target's."""
        own = {
            key.removeprefix(PREFIX): value
            for key, value in batch.items()
            if key.startswith(PREFIX)
        }
        shared = {key: value for key, value in batch.items() if not key.startswith(PREFIX)}
        return self._outputs(self.module, shared | own)


class StoredReference(Reference):
    """Outputs that a loader's worker read from disk: they are in the batch already, on its
    device."""

    def outputs(self, batch: Batch) -> Outputs:
        return {
            key.removeprefix(STORED): value
            for key, value in batch.items()
            if key.startswith(STORED)
        }
