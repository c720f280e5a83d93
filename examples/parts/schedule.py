"""A schedule in one file: a number that is halved again and again. Where a config takes a schedule:

{name: "examples/parts/schedule.py:halving", start: 1.0, times: 3}
"""

from dataclasses import dataclass

from steering.schedules import SCHEDULES, Schedule


@SCHEDULES.register("halving")
@dataclass(frozen=True)
class Halving(Schedule):
    """`start`, halved `times` times in steps of equal length."""

    start: float
    """Value at the beginning."""
    times: int = 3
    """How often it is halved over the run."""

    def __call__(self, progress):
        return self.start / 2 ** min(int(progress * (self.times + 1)), self.times)
