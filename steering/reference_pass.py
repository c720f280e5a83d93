"""The losses of a frozen reference on a whole data set: one pass, kept in a file.

    found = reference_losses(model, loader, loss_fn, file="reference.safetensors")    # (n,)

A reference that does not change need be run only once. What comes out is data: index it by the
numbers of a batch's examples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from steering import distributed
from steering.console import CONSOLE
from steering.errors import SteeringError
from steering.loss_file import LossFile, Owner
from steering.outputs.fingerprint import weights_fingerprint
from steering.reading import user_path

FLUSH_SECONDS = 10.0

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
            finite, or not one an example; a loader that shuffles examples without numbers; a file
            that belongs to another model or data set, or is damaged.
    """
    record = _Record(_count(loader, num_examples), file, model)
    _together(record.read)
    if record.complete:
        return record.values

    def run() -> None:
        for content, index in _unknown(loader, index_of or _Numbers(loader), record, progress):
            record.add(index, _losses(model, content, loss_fn, len(index)))

    with _frozen(model):
        _together(run)
    record.finish()
    return record.values


class _Record:
    """Losses found so far, and the file that keeps them.

    Attributes:
        values: float32, (n,), NaN where nothing is known yet.
        met: how often this pass has met an example, int64, (n,).
    """

    def __init__(self, count: int, file: str | Path | None, model: nn.Module) -> None:
        self.count, self.model = count, model
        self.values = torch.full((count,), float("nan"))
        self.met = torch.zeros(count, dtype=torch.int64)
        self.flushed = time.monotonic()
        self.file: LossFile | None = None
        if file is not None:
            self.file = LossFile(user_path(file), Owner(weights_fingerprint(model), count))

    @property
    def complete(self) -> bool:
        return bool(self.values.isfinite().all())

    def read(self) -> None:
        """Take in what earlier passes have left on disk."""
        stored = None if self.file is None else self.file.read()
        if stored is not None:
            self.values = stored

    def knows(self, index: Tensor) -> bool:
        return bool(self.values[index].isfinite().all())

    def meet(self, index: Tensor) -> None:
        """Count the examples of a batch; refuse one that this pass has met before."""
        self.met += index.bincount(minlength=self.count)
        twice = (self.met[index] > 1).nonzero()
        if len(twice):
            example = int(index[twice[0, 0]])
            raise SteeringError(
                f"reference_losses: example {example} is there twice; every number 0 .. "
                f"{self.count - 1} must come once"
            )

    def add(self, index: Tensor, losses: Tensor) -> None:
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            place = int(wrong[0, 0])
            raise SteeringError(
                f"reference_losses: the loss of example {int(index[place])} is "
                f"{float(losses[place])}, expected a finite number"
            )
        self.values[index] = losses
        if self.file is not None and time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.write_part(self.values)
            self.flushed = time.monotonic()

    def finish(self) -> None:
        """Join what the ranks have found, and keep it."""
        self.values = _merged(self.values, self.model)
        # From here on all ranks hold the same, so they raise, or do not, together.
        missing = self.values.isnan().nonzero().flatten()
        if len(missing):
            some = ", ".join(str(int(number)) for number in missing[:5])
            more = ", ..." if len(missing) > 5 else ""
            raise SteeringError(
                f"reference_losses: {len(missing)} of {self.count} examples never came: {some}{more}"
            )
        if self.file is not None:
            if distributed.rank() == 0:
                self.file.write(self.values)
            distributed.barrier()


class _Numbers:
    """Numbers of a batch's examples: its "index", or the order in which the examples come."""

    def __init__(self, loader: Iterable[Any]) -> None:
        plain = not isinstance(loader, DataLoader)
        self.in_order = plain or isinstance(_sampler(loader), SequentialSampler)
        self.next = 0

    def __call__(self, batch: Any) -> Tensor:
        if isinstance(batch, Mapping) and "index" in batch:
            return batch["index"]
        if not self.in_order:
            raise SteeringError(
                "reference_losses: the loader may shuffle, and a batch has no 'index'; give the "
                "numbers of its examples by index_of=, or a loader with shuffle=False"
            )
        first, self.next = self.next, self.next + _size(batch)
        return torch.arange(first, self.next)


def _unknown(
    loader: Iterable[Any], numbers: Callable[[Any], Tensor], record: _Record, progress: bool
) -> Iterator[tuple[Any, Tensor]]:
    """This rank's batches that hold a loss which is not known yet, and their examples' numbers,
    int64, (b,)."""
    parted = isinstance(_sampler(loader), DistributedSampler)
    for number, content in enumerate(_tracked(loader, progress)):
        index = _checked(numbers(content), record.count)
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


def _sampler(loader: Iterable[Any]) -> Any:
    """What decides the order of a loader's examples; None where nobody knows."""
    if not isinstance(loader, DataLoader):
        return None
    if loader.batch_sampler is None:
        return loader.sampler
    # With a batch sampler of one's own, `loader.sampler` is a default that plays no part.
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None


def _losses(model: nn.Module, batch: Any, loss_fn: LossFunction, size: int) -> Tensor:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    losses = loss_fn(model, _moved(batch, device))
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


def _tracked(loader: Iterable[Any], wanted: bool) -> Iterator[Any]:
    """The loader's batches, with a bar if a terminal shows one and this is rank 0."""
    if not (wanted and CONSOLE.is_terminal and distributed.rank() == 0):
        yield from loader
        return
    with Progress(console=CONSOLE, transient=True) as bar:
        yield from bar.track(loader, total=_length(loader), description="reference losses")


@torch.no_grad()
def _merged(values: Tensor, model: nn.Module) -> Tensor:
    """What any rank knows, the first that does; NaN where none does."""
    if not distributed.active():
        return values
    first = next(model.parameters(), None)
    device = values.device if first is None else first.device  # collectives of a GPU want it there
    everyone = distributed.gather(values.to(device)[None]).cpu()
    found = everyone[0]
    for other in everyone[1:]:
        found = torch.where(found.isnan(), other, found)
    return found


def _checked(index: Any, count: int) -> Tensor:
    index = torch.as_tensor(index).detach().cpu()
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or len(index) == 0:
        raise SteeringError(
            f"reference_losses: numbers of examples must be integers, (b,), got {index.dtype}, "
            f"{tuple(index.shape)}"
        )
    outside = ((index < 0) | (index >= count)).nonzero()
    if len(outside):
        raise SteeringError(
            f"reference_losses: example number {int(index[outside[0, 0]])}, expected 0 .. "
            f"{count - 1}, as there are {count} examples"
        )
    return index.long()


def _count(loader: Iterable[Any], given: int | None) -> int:
    if given is not None:
        if given < 1:
            raise SteeringError(f"reference_losses: num_examples must be at least 1, got {given}")
        return given
    if isinstance(loader, DataLoader):
        try:
            return len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise SteeringError(
        "reference_losses: the loader does not tell how many examples there are; give num_examples="
    )


def _length(loader: Iterable[Any]) -> int | None:
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def _size(batch: Any) -> int:
    """Examples in a batch: the length of its first tensor."""
    values = [batch]
    if isinstance(batch, Mapping):
        values = [*batch.values()]
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        values = [*batch]
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise SteeringError(
        f"reference_losses: a batch ({type(batch).__name__}) holds no tensor to count its examples "
        "by; give index_of="
    )


def _moved(value: Any, device: torch.device) -> Any:
    """Tensors in mappings, tuples and lists, to the device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(one, device) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(one, device) for one in value)
    if isinstance(value, tuple):  # a named one
        return type(value)(*(_moved(one, device) for one in value))
    return value
