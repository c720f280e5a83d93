"""The losses of a frozen reference on a whole data set: one pass, kept in a file.

    found = reference_losses(model, loader, loss_fn, file="reference.safetensors")    # (n,)

A reference that does not change need be run only once. What comes out is data: index it by the
numbers of a batch's examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from steering import distributed
from steering.errors import SteeringError
from steering.reference_pass.batches import (
    Numbers,
    checked_numbers,
    count_of,
    moved,
    require_one_order,
    sampler_of,
    tracked,
)
from steering.reference_pass.record import Record

__all__ = ["LossFunction", "reference_losses"]

LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> losses of the batch's examples, (b,)."""


def reference_losses(
    model: nn.Module,
    loader: Iterable[Any],
    loss_fn: LossFunction,
    *,
    file: str | Path | None = None,
    num_examples: int | None = None,
    index_of: Callable[[Any], Tensor] | None = None,
    progress: bool = True,
) -> Tensor:
    """The frozen reference's loss of every example, (n,), float32, on the CPU.

    The model is in eval mode and without gradients meanwhile, and comes back as it was. Batches go
    to its device. Under an initialised process group the ranks share the batches of the loader
    among them, or each takes its own part where the loader has a `DistributedSampler`; every rank
    returns the losses of all.

    Args:
        model: the reference.
        loader: batches: mappings, tuples, lists or tensors; each example once.
        loss_fn: (model, batch) -> (b,), one loss an example, nats as a rule.
        file: where the losses are kept (safetensors). If it is there, it is read; what a pass that
            was killed has found is not computed again. It belongs to these weights and this number
            of examples; it cannot know the loss function or the data, so give each its own.
        num_examples: n, for a loader without a data set of known length.
        index_of: batch -> the numbers of its examples, integers, (b,), 0 .. n − 1. None:
            batch["index"]; where batches are no mappings with an "index", the order in which they
            come, if the loader does not shuffle.
        progress: whether a terminal shows a bar.

    Raises:
        SteeringError: a number outside 0 .. n − 1, missing or there twice; a loss that is not
            finite, or not one an example; a loader that shuffles examples without numbers, or
            under several ranks, in each in an order of its own; a file that belongs to another
            model or data set, or is damaged.
    """
    require_one_order(loader)
    record = Record(count_of(loader, num_examples), file, model)
    _together(record.read)
    if record.complete:
        return record.values

    def run() -> None:
        for content, index in _unknown(loader, index_of or Numbers(loader), record, progress):
            record.add(index, _losses(model, content, loss_fn, len(index)))

    with _frozen(model):
        _together(run)
    record.finish()
    return record.values


def _unknown(
    loader: Iterable[Any], numbers: Callable[[Any], Tensor], record: Record, progress: bool
) -> Iterator[tuple[Any, Tensor]]:
    """This rank's batches that hold a loss which is not known yet, and their examples' numbers,
    int64, (b,)."""
    parted = isinstance(sampler_of(loader), DistributedSampler)
    for number, content in enumerate(tracked(loader, progress)):
        index = checked_numbers(numbers(content), record.count)
        # A distributed sampler fills the parts up to one length: then examples may come twice.
        if not parted:
            record.meet(index)
        mine = parted or number % distributed.world_size() == distributed.rank()
        if mine and not record.knows(index):
            yield content, index


def _together(action: Callable[[], None]) -> None:
    """Do it on every rank; if it fails on one, all raise: the others would wait for that one."""
    failure = None
    try:
        action()
    except SteeringError as error:
        failure = error
    if distributed.agree(failure is None):
        return
    raise failure or SteeringError("reference_losses: another process has failed; see its message")


def _losses(model: nn.Module, batch: Any, loss_fn: LossFunction, size: int) -> Tensor:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    losses = loss_fn(model, moved(batch, device))
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    if not isinstance(losses, Tensor) or shape != (size,):
        raise SteeringError(
            f"reference_losses: loss_fn must return one loss an example, ({size},) for this batch, "
            f"got {shape}; use reduction='none'"
        )
    return losses.detach().float().cpu()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
