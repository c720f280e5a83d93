"""Who gives ℓ(θ_ref; z): a live frozen model or a cache on disk."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

from steering.reference.cache import ReferenceCache
from steering.risk import Batch, Outputs, ReferenceRisk

PREFIX = "reference_"


class Reference(ABC):
    """Outputs of a frozen model, without gradient, for the examples of a batch."""

    @abstractmethod
    def outputs(self, batch: Batch) -> Outputs: ...


class LiveReference(Reference):
    """A frozen model run beside the target: eval mode, no gradient, not in DDP, not in the optimiser.

    Args:
        module: the reference; it is put in eval mode and its parameters stop requiring gradients, for good.
        risk: the same adapter that serves the target.
    """

    def __init__(self, module: nn.Module, risk: ReferenceRisk) -> None:
        self.module = module.eval().requires_grad_(False)
        self.risk = risk

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Outputs:
        """The reference sees its own view of the batch ("reference_image", ...) where there is one, else the target's."""
        own = {key.removeprefix(PREFIX): value for key, value in batch.items() if key.startswith(PREFIX)}
        shared = {key: value for key, value in batch.items() if not key.startswith(PREFIX)}
        return self.risk.outputs(self.module, shared | own)


class CachedReference(Reference):
    """Outputs that `steering cache` stored, moved to the batch's device."""

    def __init__(self, cache: ReferenceCache) -> None:
        self.cache = cache

    def outputs(self, batch: Batch) -> Outputs:
        device = batch["index"].device
        return {key: value.to(device, non_blocking=True) for key, value in self.cache.read(batch["index"]).items()}
