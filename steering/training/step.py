"""One forward and backward pass over a batch, in one piece or in micro-batches, with the same
gradient."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steering import distributed
from steering.methods.registry import Method, Step
from steering.reference.frozen import Reference
from steering.risk import Batch, Outputs, ReferenceRisk, outputs_with
from steering.training.wraps import reduced_only

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
    ) -> None:
        self.target, self.method, self.risk, self.reference = target, method, risk, reference
        self.outputs = outputs_with(risk, method.needs.logits)
        self.micro_batches, self.autocast, self.scale = micro_batches, autocast, scale

    def __call__(self, batch: Batch) -> Step:
        """Add this batch's gradients to the parameters' `.grad` and return the (unscaled) loss and
        the log's scalars."""
        if self.micro_batches > 1:
            return self._in_parts(split(batch, self.micro_batches), batch)
        # The reference comes first: its activations are gone before those of the target pile up.
        reference = self._reference_outputs([dict(batch)])
        # The forward pass alone: what follows, exponentials of losses among it, keeps the float32
        # that every risk promises of its outputs.
        with self.autocast():
            outputs = self.outputs(self.target, batch)
        items = self.risk.losses(outputs, reference, batch)
        step = self.method(items)
        self.scale(step.loss).backward()
        return replace(step, items=items, index=batch["index"])

    def _in_parts(self, parts: list[dict[str, Tensor]], batch: Batch) -> Step:
        device = batch["index"].device
        states, outputs = self._outputs_without_graph(parts, device)
        reference = self._reference_outputs(parts)
        # The method sees the whole batch as leaves: its gradient ends here, at the features, and
        # needs no graph of the target.
        leaves = {
            key: value.detach().requires_grad_(value.is_floating_point())
            for key, value in outputs.items()
        }
        items = self.risk.losses(leaves, reference, batch)
        # One call for the whole batch: running estimates move once a step, however many the parts.
        step = self.method(items)
        self.scale(step.loss).backward()  # stops at the leaves; the target comes next
        # ∂L/∂x of docs/theory.md, (32): outputs have a row for each example, so they are cut where
        # `split` has cut the batch. A leaf that the loss does not use (labels, ids) has no gradient
        # to carry.
        gradients = {
            key: leaf.grad.tensor_split(len(parts))
            for key, leaf in leaves.items()
            if leaf.grad is not None
        }
        # The second pass draws each part's dropout once more. After it the generator must stand
        # where one pass and the method have left it, or the next step would repeat their numbers.
        after = random_state(device)
        for number, part in enumerate(parts):
            set_random_state(device, states[number])
            own = {key: pieces[number] for key, pieces in gradients.items()}
            # Gradients of the parts add up in `.grad` first; one exchange for all of them is
            # enough.
            with reduced_only(self.target, last=number == len(parts) - 1):
                self._carry(part, own)
        set_random_state(device, after)
        return replace(step, items=items, index=batch["index"])

    @torch.no_grad()
    def _outputs_without_graph(
        self, parts: list[dict[str, Tensor]], device: torch.device
    ) -> tuple[list[list[Tensor]], Outputs]:
        """The random state before each part's forward pass, and the outputs of all parts."""
        # The state *before* each part: the second pass must draw the same masks.
        states, pieces = [], []
        for part in parts:
            states.append(random_state(device))
            # A context for each part. Autocast keeps the half-precision copies of weights that it
            # makes, and copies that were made without gradients must not serve the pass that wants
            # them.
            with self.autocast():
                pieces.append(self.outputs(self.target, part))
        return states, join(pieces)

    def _reference_outputs(self, parts: list[dict[str, Tensor]]) -> Outputs | None:
        if self.reference is None:
            return None
        with self.autocast():
            return join([self.reference.outputs(part) for part in parts])

    def _carry(self, part: Batch, gradients: dict[str, Tensor]) -> None:
        """Run a part with a graph, and send the gradients of its outputs down to the parameters."""
        with self.autocast():
            outputs = self.outputs(self.target, part)
        # Outputs that do not hang on a parameter (a frozen tower's) have nowhere to carry theirs.
        live = [key for key in gradients if outputs[key].requires_grad]
        torch.autograd.backward([outputs[key] for key in live], [gradients[key] for key in live])


def autocast_to(precision: str, device: str) -> AbstractContextManager:
    """The context of a forward pass in "fp32", "bf16" or "fp16"."""
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def split(batch: Batch, count: int) -> list[dict[str, Tensor]]:
    """Parts of every tensor with one row per example, equal up to one row; the others are
    repeated."""
    b = len(batch["index"])
    whole = {
        key: value.tensor_split(count) if value.ndim and len(value) == b else [value] * count
        for key, value in batch.items()
    }
    return [{key: value[number] for key, value in whole.items()} for number in range(count)]


def join(pieces: list[Outputs]) -> Outputs:
    """Outputs of parts, one after another; of a single part the very tensors."""
    if len(pieces) == 1:
        return pieces[0]
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


def random_state(device: torch.device) -> list[Tensor]:
    """Of torch's generators: the CPU's, and the device's own."""
    state = [torch.random.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.random.set_rng_state(state[0])
    # A state that a run on a CPU has saved knows no GPU's generator.
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


def all_random_states(device: torch.device) -> list[list[Tensor]]:
    """The random state of every rank, on every rank."""
    every: list[Any] = [random_state(device)]
    if distributed.active():
        every *= distributed.world_size()
        dist.all_gather_object(every, random_state(device))
    return every
