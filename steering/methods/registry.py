"""The registry of methods: a name, a dataclass of options, and a builder, one short file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from steering.contrastive.pairs import Pairs
from steering.errors import SteeringError
from steering.risk import Units


@dataclass(frozen=True)
class Step:
    """What a method makes of one batch.

    Attributes:
        loss: scalar to descend; averaged over the ranks its gradient is that of the global batch.
        metrics: scalars for the log, detached, () each.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Method(nn.Module, ABC):
    """Loss items in, one loss out. Buffers hold its memory, parameters what it learns (a temperature)."""

    uses_reference: bool = False

    @abstractmethod
    def forward(self, losses: Units | Pairs) -> Step: ...

    @abstractmethod
    def start_epoch(self, epoch: int) -> None:
        """Called with 0, 1, ... before the first batch of each pass over the data, and again after a resume."""


@dataclass(frozen=True)
class Entry:
    name: str
    options: type
    build: Callable[..., Method]
    summary: str


_REGISTRY: dict[str, Entry] = {}


def register(name: str, options: type) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Decorate a builder `build(options, num_examples) -> Method`; its docstring's first line is the summary."""

    def add(build: Callable[..., Method]) -> Callable[..., Method]:
        if name in _REGISTRY:
            raise ValueError(f"a method named {name!r} is registered already")
        summary = (build.__doc__ or "").strip().partition("\n")[0]
        _REGISTRY[name] = Entry(name, options, build, summary)
        return build

    return add


def find_method(name: str) -> Entry:
    """The registered method of that name; SteeringError lists the known ones otherwise."""
    if name not in _REGISTRY:
        raise SteeringError(f"method.name: no method {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]


def registered() -> dict[str, Entry]:
    """All methods by name."""
    return dict(sorted(_REGISTRY.items()))


def build_method(name: str, options: Any, num_examples: int) -> Method:
    """Build a method for a training set of `num_examples` examples; SteeringError when an option is out of range."""
    try:
        return find_method(name).build(options, num_examples)
    except ValueError as error:
        raise SteeringError(f"method ({name}): {error}") from error
