"""One forward and backward pass over a batch, in one piece or in micro-batches, with the same
gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from steering import distributed
from steering.methods.registry import Method, Step
from steering.reference.frozen import Reference
from steering.risk import Batch, Outputs, ReferenceRisk, outputs_with

Autocast = Callable[[], AbstractContextManager]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Gradient:
    """Computes loss and gradients of one batch.

    With more than one micro-batch the loss still sees the whole batch (a contrastive loss does not
    split): features of all micro-batches are computed without a graph, the method gives the
    gradient with respect to the features, and each micro-batch is run again, from the same random
    state, to carry its part into the parameters. Exact for models whose examples do not interact
    (no batch norm in train mode); costs one more forward pass. Source: arXiv 2101.06983
    (GradCache); here with a reference.

    Args:
        target: the model that is trained, wrapped in DDP when there are several ranks.
        reference: None for methods that do not use one.
        micro_batches: parts of this rank's batch; must divide it.
        autocast: makes the context of the model's forward pass.
        scale: multiplies a loss before its backward pass (fp16), the identity otherwise.
        chosen: examples that train of each rank's batch, for a method that selects; None: all of
            them.
    """

    def __init__(
        self,
        target: nn.Module,
        method: Method,
        risk: ReferenceRisk,
        reference: Reference | None,
        micro_batches: int = 1,
        autocast: Autocast = nullcontext,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
        chosen: int | None = None,
    ) -> None:
        self.target, self.method, self.risk, self.reference = target, method, risk, reference
        self.outputs = outputs_with(risk, method.needs.logits)
        self.micro_batches, self.autocast, self.scale, self.chosen = (
            micro_batches,
            autocast,
            scale,
            chosen,
        )

    def __call__(self, batch: Batch) -> Step:
        """Add this batch's gradients to the parameters' `.grad` and return the (unscaled) loss and
        the log's scalars."""
        if self.chosen is not None:
            batch = self._selected(batch, self.chosen)
        if self.micro_batches == 1:
            guide = self._guide(batch)
            with self.autocast():
                outputs = self.outputs(self.target, batch)
            step = self.method(self.risk.losses(outputs, guide, batch))
            self.scale(step.loss).backward()
            return step
        return self._in_parts(batch)

    def _guide(self, batch: Batch) -> Outputs | None:
        """The reference's outputs, which a selection has used up."""
        return None if self.chosen is not None else self._reference_outputs(batch)

    def _reference_outputs(self, batch: Batch) -> Outputs | None:
        if self.reference is None:
            return None
        with self.autocast():
            return self.reference.outputs(batch)

    @torch.no_grad()
    def _selected(self, batch: Batch, count: int) -> Batch:
        """The examples that the method chooses of these candidates, scored in eval mode and in
        parts of `count`."""
        module = (
            self.target.module if isinstance(self.target, DistributedDataParallel) else self.target
        )
        pool, training = len(batch["index"]), module.training
        parts = _split(batch, -(-pool * self.micro_batches // count))
        module.eval()
        with self.autocast():
            outputs = _join([self.outputs(module, part) for part in parts])
        module.train(training)
        guides = (
            None
            if self.reference is None
            else _join([self._reference_outputs(part) or {} for part in parts])
        )
        rows = self.method.select(self.risk.losses(outputs, guides, batch), count)
        return {
            key: value[rows] if value.ndim and len(value) == pool else value
            for key, value in batch.items()
        }

    def _in_parts(self, batch: Batch) -> Step:
        parts = _split(batch, self.micro_batches)
        states, pieces = [], []
        with torch.no_grad():
            for part in parts:
                states.append(random_state(batch["index"].device))
                with self.autocast():
                    pieces.append(self.outputs(self.target, part))
            guided = self.reference is not None and self.chosen is None
            guides = _join([self._guide(part) or {} for part in parts]) if guided else None
        leaves = {
            key: value.detach().requires_grad_(value.is_floating_point())
            for key, value in _join(pieces).items()
        }
        step = self.method(self.risk.losses(leaves, guides, batch))
        self.scale(step.loss).backward()
        gradients = {
            key: leaf.grad.tensor_split(len(parts))
            for key, leaf in leaves.items()
            if leaf.grad is not None
        }
        after = random_state(batch["index"].device)
        for number, (part, state) in enumerate(zip(parts, states, strict=True)):
            set_random_state(batch["index"].device, state)
            with _sync_only(self.target, number == len(parts) - 1):
                with self.autocast():
                    outputs = self.outputs(self.target, part)
                kept = [key for key in gradients if outputs[key].requires_grad]
                torch.autograd.backward(
                    [outputs[key] for key in kept], [gradients[key][number] for key in kept]
                )
        set_random_state(batch["index"].device, after)
        return step


def autocast_to(precision: str, device: str) -> AbstractContextManager:
    """The context of a forward pass in "fp32", "bf16" or "fp16"."""
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def _split(batch: Batch, count: int) -> list[dict[str, Tensor]]:
    """Equal parts of every tensor with one row per example; the others are repeated."""
    b = len(batch["index"])
    whole = {
        key: value.tensor_split(count) if value.ndim and len(value) == b else [value] * count
        for key, value in batch.items()
    }
    return [{key: value[number] for key, value in whole.items()} for number in range(count)]


def _join(pieces: list[Outputs]) -> Outputs:
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


def random_state(device: torch.device) -> list[Tensor]:
    """Of torch's generators: the CPU's, and the device's own."""
    state = [torch.random.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.random.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def _sync_only(module: nn.Module, last: bool) -> AbstractContextManager:
    """DDP reduces gradients in the last micro-batch alone."""
    return (
        module.no_sync()
        if isinstance(module, DistributedDataParallel) and not last
        else nullcontext()
    )


def data_parallel(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DDP, if there are several ranks."""
    if not distributed.active():
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def all_random_states(device: torch.device) -> list[list[Tensor]]:
    """The random state of every rank, on every rank."""
    every: list[Any] = [random_state(device)]
    if distributed.active():
        every *= distributed.world_size()
        dist.all_gather_object(every, random_state(device))
    return every
