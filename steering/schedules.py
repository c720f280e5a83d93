"""Numbers that change while a run trains: pure functions of how far it is.

A config says a number, which stays, or a section: `strength: {name: linear, start: 0, end: 1}`. The
same schedules serve the adversary (τ, α, κ) and the optimiser (learning rate, weight decay). As
nothing but the step goes in, a run that is resumed has the values of one that was never stopped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from steering.registry import Registry


class Schedule(ABC):
    """A number at every step of a run."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value.

        Args:
            progress: share of the run that is done, in [0, 1]: step / steps.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The same number throughout; a config writes the number alone."""

    value: float

    def __call__(self, progress: float) -> float:  # noqa: ARG002
        return self.value


SCHEDULES: Registry[Schedule] = Registry("schedule", "steering.schedules", number=Constant)
SCHEDULES.register("constant")(Constant)


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Schedule):
    """In a straight line from `start` to `end`.

    Raises:
        ValueError: `begin` and `until` are not 0 ≤ begin < until ≤ 1, or `cycles` is below 1.
    """

    start: float
    """Value at the beginning."""
    end: float
    """Value at the end."""
    begin: float = 0.0
    """Share of the run, or of a cycle, after which it moves."""
    until: float = 1.0
    """Share of the run, or of a cycle, at which it has arrived."""
    cycles: int = 1
    """Equal parts of the run, in each of which it starts anew."""

    def __post_init__(self) -> None:
        require_span(self.begin, self.until, self.cycles)

    def __call__(self, progress: float) -> float:
        moved = moved_share(progress, self.begin, self.until, self.cycles)
        return self.start + (self.end - self.start) * moved


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Schedule):
    """From `start` to `end` along half a wave: slow, fast, slow. ValueError as in `Linear`."""

    start: float
    """Value at the beginning."""
    end: float
    """Value at the end."""
    begin: float = 0.0
    """Share of the run, or of a cycle, after which it moves."""
    until: float = 1.0
    """Share of the run, or of a cycle, at which it has arrived."""
    cycles: int = 1
    """Equal parts of the run, in each of which it starts anew."""

    def __post_init__(self) -> None:
        require_span(self.begin, self.until, self.cycles)

    def __call__(self, progress: float) -> float:
        moved = moved_share(progress, self.begin, self.until, self.cycles)
        return self.start + (self.end - self.start) * 0.5 * (1 - math.cos(math.pi * moved))


def moved_share(progress: float, begin: float, until: float, cycles: int) -> float:
    """How much of its way a schedule has gone, in [0, 1].

    The end of the last cycle is an end; the end of any other is the start of the next.
    """
    place = progress * cycles
    within = 1.0 if progress >= 1.0 else place - math.floor(place)
    return min(1.0, max(0.0, (within - begin) / (until - begin)))


def require_span(begin: float, until: float, cycles: int) -> None:
    """ValueError unless 0 ≤ begin < until ≤ 1 and there is at least one cycle."""
    if not 0 <= begin < until <= 1:
        raise ValueError(f"begin and until must be 0 ≤ begin < until ≤ 1, got {begin} and {until}")
    if cycles < 1:
        raise ValueError(f"cycles must be at least 1, got {cycles}")
