"""Batches of anybody's loader: the numbers of their examples, their size, their device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from steering import distributed
from steering.console import CONSOLE
from steering.errors import SteeringError


class Numbers:
    """Numbers of a batch's examples: its "index", or the order in which the examples come."""

    def __init__(self, loader: Iterable[Any]) -> None:
        plain = not isinstance(loader, DataLoader)
        self.in_order = plain or isinstance(sampler_of(loader), SequentialSampler)
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


def sampler_of(loader: Iterable[Any]) -> Any:
    """What decides the order of a loader's examples; None where nobody knows."""
    if not isinstance(loader, DataLoader):
        return None
    if loader.batch_sampler is None:
        return loader.sampler
    # With a batch sampler of one's own, `loader.sampler` is a default that plays no part.
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None


def require_one_order(loader: Iterable[Any]) -> None:
    """Several processes share the batches by their places, so all must see the same batches.

    Raises:
        SteeringError: each would draw an order of its own.
    """
    sampler = sampler_of(loader)
    shuffles = isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler)
    # With a generator the order may well be one and the same; `Record.finish` tells if it was not.
    if distributed.active() and shuffles and sampler.generator is None:
        raise SteeringError(
            "reference_losses: the loader shuffles, in each process in an order of its own, and the "
            "processes share its batches; give a loader with shuffle=False, or a DistributedSampler"
        )


def tracked(loader: Iterable[Any], wanted: bool) -> Iterator[Any]:
    """The loader's batches, with a bar if a terminal shows one and this is rank 0."""
    if not (wanted and CONSOLE.is_terminal and distributed.rank() == 0):
        yield from loader
        return
    with Progress(console=CONSOLE, transient=True) as bar:
        yield from bar.track(loader, total=_length(loader), description="reference losses")


def checked_numbers(index: Any, count: int) -> Tensor:
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


def count_of(loader: Iterable[Any], given: int | None) -> int:
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


def moved(value: Any, device: torch.device) -> Any:
    """Tensors in mappings, tuples and lists, to the device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(one, device) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(moved(one, device) for one in value)
    if isinstance(value, tuple):  # a named one
        return type(value)(*(moved(one, device) for one in value))
    return value
