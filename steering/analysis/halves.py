"""Evaluated examples in two halves: one on which a setting is chosen, one on which it is reported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MULTIPLIER, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@dataclass(frozen=True)
class Half:
    """One half of the evaluated examples, by a hash of the seed and the example's number.

    An example keeps its side when others join, and the image and the text of a number share theirs.
    """

    seed: int
    tuning: bool

    def mask(self, n: int) -> np.ndarray:
        """Which of n examples belong to this half, bool, (n,)."""
        return (_bits(self.seed, n) == 0) == self.tuning


def _bits(seed: int, n: int) -> np.ndarray:
    """The top bit of SplitMix64's finaliser of (seed, number), (n,)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = np.arange(n, dtype=np.uint64) + np.uint64(seed + 1) * np.uint64(_SECOND)
        x = (x + np.uint64(1)) * np.uint64(_MULTIPLIER)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(_FIRST)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(_SECOND)
    return (x ^ (x >> np.uint64(31))) >> np.uint64(63)
