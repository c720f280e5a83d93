"""Scalars for a log, computed when somebody reads them: a training loop does in one step of many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor


class Metrics(Mapping[str, Tensor]):
    """A mapping from names to detached scalars that is made at the first look.

    Until then it keeps what it is made of: a few tensors of one batch.

    Args:
        make: makes the scalars; called at most once, without gradients.
    """

    def __init__(self, make: Callable[[], Mapping[str, Tensor]]) -> None:
        self._make: Callable[[], Mapping[str, Tensor]] | None = make
        self._made: Mapping[str, Tensor] = {}

    def _all(self) -> Mapping[str, Tensor]:
        if self._make is not None:
            with torch.no_grad():
                self._made = self._make()
            # What it was made of may go: a log keeps scalars for longer than a batch lives.
            self._make = None
        return self._made

    def __getitem__(self, name: str) -> Tensor:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __or__(self, other: Mapping[str, Tensor]) -> Metrics:
        return Metrics(lambda: {**self, **other})

    def __ror__(self, other: Mapping[str, Tensor]) -> Metrics:
        return Metrics(lambda: {**other, **self})

    def prefixed(self, prefix: str) -> Metrics:
        """The same under longer names."""
        return Metrics(lambda: {prefix + name: value for name, value in self.items()})
