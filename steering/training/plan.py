"""Which examples a step draws: a pure function of (seed, step), so resuming needs only the step
number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steering import distributed
from steering.data import mix
from steering.errors import ConfigError, SteeringError
from steering.schema import TrainConfig

AT_ONCE = 4096  # examples whose numbers are worked out together


def shuffled(position: np.ndarray, n: int, *keys: int) -> np.ndarray:
    """Element `position` of a pseudo-random permutation of 0 .. n−1, chosen by integer keys.

    A four-round Feistel network on the smallest even number of bits that covers n, walked until it
    falls inside. Nothing of size n is ever made: 2·10⁹ examples cost the same memory as ten.

    Args:
        position: int64, (b,), in [0, n).
    """
    # Half of an even number of bits: both halves of the network have the same width.
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    x = position.astype(np.uint64)
    todo = np.ones(x.shape, dtype=bool)
    # A cycle walk: what falls outside [0, n) goes round again. At most four times as many numbers
    # as examples, so a few rounds on average.
    while todo.any():
        left, right = x[todo] >> half, x[todo] & low
        for turn in range(4):
            left, right = right, left ^ (mix(*keys, turn, right) & low)
        x[todo] = (left << half) | right
        todo = x >= np.uint64(n)
    return x.astype(np.int64)


@dataclass(frozen=True)
class Plan:
    """The order of a run: epochs of full global batches without replacement, the remainder of an
    epoch left out.

    Attributes:
        n: examples in the data set.
        batch_size: global batch, over all ranks.
        samples: examples to draw in total; rounded down to whole steps.
        seed: of the order.
    """

    n: int
    batch_size: int
    samples: int
    seed: int

    def __post_init__(self) -> None:
        if self.n < self.batch_size:
            raise SteeringError(
                f"train.batch_size: {self.batch_size} is more than the {self.n} training examples"
            )

    @property
    def steps(self) -> int:
        return self.samples // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.n // self.batch_size

    def epoch(self, step: int) -> int:
        return step // self.steps_per_epoch

    def indices(self, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Example numbers of one step for one rank, int64; the ranks' parts joined are the global
        batch."""
        return self._indices(step, step + 1, rank, world_size)[0]

    def batches(
        self, start: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, np.ndarray]]:
        """(epoch, indices) of every step from `start` on."""
        # Many steps at a time: the permutation costs a hundred small calls, however few it is asked
        # for.
        many = max(1, AT_ONCE * world_size // self.batch_size)
        while start < self.steps:
            epoch = self.epoch(start)
            # An epoch ends a stretch: the next one has a permutation of its own.
            end = min(start + many, self.steps, (epoch + 1) * self.steps_per_epoch)
            for indices in self._indices(start, end, rank, world_size):
                yield epoch, indices
            start = end

    def _indices(self, start: int, end: int, rank: int, world_size: int) -> np.ndarray:
        """Example numbers of the steps of one epoch for one rank, int64, (end − start, share)."""
        share = self.batch_size // world_size
        # A rank's share is a stretch of the global batch, so the batch is the same for any number
        # of ranks.
        first = (np.arange(start, end) % self.steps_per_epoch) * self.batch_size + rank * share
        places = first[:, None] + np.arange(share)
        return shuffled(places.ravel(), self.n, self.seed, self.epoch(start)).reshape(-1, share)


def require_even_parts(train: TrainConfig, ranks: int | None = None) -> None:
    """ConfigError when a batch does not split evenly over ranks and micro-batches.

    Args:
        ranks: None: those of this run.
    """
    if ranks is None:
        ranks = distributed.world_size()
    # Parts of other sizes would weigh their examples differently, and the gradient would not be
    # that of the batch.
    if train.batch_size % (ranks * train.accumulation):
        raise ConfigError(
            f"train.batch_size: {train.batch_size} does not split into equal parts for {ranks} processes "
            f"times train.accumulation {train.accumulation}"
        )
