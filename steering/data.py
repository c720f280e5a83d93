"""Indexed data: every example has a stable number, and its augmentation depends on (seed, epoch,
number) alone.

So the same run is bit-identical for any number of loader workers, after a resume, and for any split
over the ranks.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from steering.risk import Batch


class IndexedData(ABC):
    """n training examples, addressed by their numbers 0 .. n−1."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        """The examples `index` (int64, (b,)) as tensors with b rows each.

        Must carry "index" (int64, (b,)): the numbers actually delivered. Where an example may be
        unreadable it is replaced by another, whose number stands in "index", and "skipped" (int64,
        ()) counts the replacements; data that can always be read leave that out.
        """

    def group_counts(self, num_groups: int) -> np.ndarray | None:  # noqa: ARG002
        """Examples of each of the groups that batches number, int64, (num_groups,); None: unknown,
        any group may occur.

        A method gives no weight to a group without examples: it could never spend it, and the
        others would miss it.
        """
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the content (not the augmentation): equal for equal data on any machine."""


# SplitMix64's constants (Steele, Lea and Flood 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(*keys: int | np.ndarray) -> np.ndarray:
    """Hash integers into uniform uint64s (SplitMix64 finaliser, chained); arrays broadcast.

    A stateless random number per (seed, epoch, example, ...): no generator to save, no order to
    keep.
    """
    state = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            x: np.ndarray = np.asarray(key).astype(np.uint64) + state * _MULTIPLIERS[0] + _STEP
            x = (x ^ (x >> _SHIFTS[0])) * _MULTIPLIERS[0]
            x = (x ^ (x >> _SHIFTS[1])) * _MULTIPLIERS[1]
            state = x ^ (x >> _SHIFTS[2])
    return state


def uniform(*keys: int | np.ndarray) -> np.ndarray:
    """Uniform float64 numbers in [0, 1) from integer keys; arrays broadcast."""
    return (mix(*keys) >> np.uint64(11)).astype(np.float64) * 2.0**-53


@contextmanager
def seeded(*keys: int) -> Iterator[None]:
    """Seed Python's and torch's CPU generators from integer keys inside the block, and put both
    back afterwards.

    For transforms that draw from the global generators, as torchvision's do.
    """
    seed = int(mix(*keys) >> np.uint64(1))
    python_state, torch_state = random.getstate(), torch.random.get_rng_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        torch.random.set_rng_state(torch_state)
