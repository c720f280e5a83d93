"""From a plan to tensors: whole batches are made by the workers, so the process count never changes
their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from steering.data import IndexedData
from steering.errors import SteeringError


class _Batches(Dataset):
    def __init__(self, data: IndexedData) -> None:
        self.data = data

    def __getitem__(self, key: tuple[int, np.ndarray]) -> dict[str, Tensor] | SteeringError:
        # The epoch comes with the key: what augments an example is a function of it, not of a worker.
        epoch, index = key
        try:
            return dict(self.data.batch(index, epoch))
        except SteeringError as error:
            # Handed over: torch would bury its message in the worker's traceback.
            return error


class _Fixed(torch.utils.data.Sampler):
    def __init__(self, keys: Iterable[tuple[int, np.ndarray]]) -> None:
        self.keys = keys

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        return iter(self.keys)


def load(
    data: IndexedData, keys: Iterable[tuple[int, np.ndarray]], workers: int, pin: bool
) -> Iterator[dict[str, Tensor]]:
    """Batches for (epoch, indices) keys, in order, made in this process or by `workers` others."""
    for batch in _made(_Batches(data), keys, workers, pin):
        if isinstance(batch, SteeringError):
            raise batch
        yield batch


def _made(
    batches: _Batches, keys: Iterable[tuple[int, np.ndarray]], workers: int, pin: bool
) -> Iterable[dict[str, Tensor] | SteeringError]:
    if workers == 0 and not pin:
        # Torch's loader would do just this, and take a tenth of a millisecond for it at each step.
        return (default_convert(batches[key]) for key in keys)
    return DataLoader(
        batches,
        # A key names a whole batch, so nothing is left for torch to put together.
        batch_size=None,
        sampler=_Fixed(keys),
        num_workers=workers,
        pin_memory=pin,
        # Otherwise starting the loader would draw from, and shift, the global generator.
        generator=torch.Generator(),
    )
