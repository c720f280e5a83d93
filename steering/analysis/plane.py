"""Runs on the steering plane: which cells were tried how far, and how sure it is which is best.

A cell (x, y) is log p = x·ℓ − y·ℓ_ref + const, x = 1/τ and y = κ. Records carry the axes "x", "y",
"share" (of the full length), "seed", and "stage": "tuning", on one half of the evaluated examples, or "report", on the
other half and with other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from steering.analysis.halves import Half
from steering.analysis.halving import Race, Round, halving
from steering.analysis.intervals import Bootstrap, Interval, paired_difference
from steering.errors import SteeringError
from steering.runs.record import Metric, RunRecord

TUNING, REPORT = "tuning", "report"
BEST, RAY, SHARP, FILTER = (
    "best",
    "best on DRRho's ray",
    "best adversary alone",
    "best filter alone",
)
UNGUIDED, PUBLISHED = "unguided", "DRRho"
MISSING = Interval(math.nan)


@dataclass(frozen=True, order=True)
class Cell:
    """A place on the plane: x = 1/τ, y = κ."""

    x: float
    y: float

    @property
    def name(self) -> str:
        return f"x{self.x:g}-y{self.y:g}"

    def __str__(self) -> str:
        return f"({self.x:g}, {self.y:g})"


ORIGIN = Cell(0.0, 0.0)
"""Unguided training."""


def group(cell: Cell) -> str | None:
    """The one-parameter family that a cell belongs to: the ray, or one of the axes; None: none."""
    if cell == ORIGIN:
        return None
    if cell.x == cell.y:
        return RAY
    if cell.y == 0:
        return SHARP
    return FILTER if cell.x == 0 else None


@dataclass
class Results:
    """The study's records so far.

    Args:
        done: all of them; what has no stage is of no cell.
        cells: the candidates, in order.
        rounds: of the tuning.
        survivors: share of a round's candidates that goes on.
        metric: name of what is better.
        split: seed of the halves.

    Raises:
        SteeringError: a run has no such metric, or it has none on a half of the examples.
    """

    done: Sequence[RunRecord]
    cells: Sequence[Cell]
    rounds: Sequence[Round]
    survivors: float
    metric: str
    split: int = 0
    _runs: dict[tuple[str, Cell, float], dict[int, RunRecord]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.halves = {
            TUNING: Bootstrap(half=Half(self.split, tuning=True)),
            REPORT: Bootstrap(half=Half(self.split, tuning=False)),
        }
        for record in self.done:
            axes = record.axes
            if "stage" in axes:
                _require(record, self.metric, [one.half for one in self.halves.values()])
                place = axes["stage"], Cell(axes["x"], axes["y"]), axes["share"]
                self._runs.setdefault(place, {})[axes["seed"]] = record

    def runs(self, stage: str, cell: Cell, share: float) -> dict[int, RunRecord]:
        """Seed -> run."""
        return self._runs.get((stage, cell, share), {})

    @cached_property
    def meaning(self) -> Metric:
        """What the metric is; a plain share before there is a run."""
        found = [run for runs in self._runs.values() for run in runs.values()]
        return found[0].meaning[self.metric] if found else Metric()

    def shown(self, value: float) -> str:
        """A value of the metric as a table has it."""
        return f"{100 * value:.1f}" if self.meaning.percent else f"{value:.3f}"

    def spent(self) -> dict[str, list[RunRecord]]:
        """Stage -> its runs, and the reference's own."""
        found: dict[str, list[RunRecord]] = {}
        for (stage, _, share), runs in sorted(self._runs.items(), key=lambda one: one[0][2]):
            name = REPORT if stage == REPORT else f"{TUNING}, {100 * share:g} % of the length"
            found.setdefault(name, []).extend(runs.values())
        return found

    def mean(self, stage: str, cell: Cell, share: float, seeds: int | None = None) -> float:
        """The metric on the stage's half, averaged over the seeds; NaN where a seed is missing."""
        runs = self.runs(stage, cell, share)
        wanted = [*runs] if seeds is None else range(seeds)
        if not runs or any(seed not in runs for seed in wanted):
            return math.nan
        return float(np.mean([self.halves[stage].value(runs[one], self.metric) for one in wanted]))

    def score(self, cell: Cell, one: Round) -> float:
        """What the race is about: more is better."""
        value = self.mean(TUNING, cell, one.share, one.seeds)
        return value if math.isnan(value) or self.meaning.higher_is_better else -value

    @cached_property
    def race(self) -> Race[Cell]:
        return halving(self.cells, self.rounds, self.score, self.survivors)

    def difference(self, stage: str, cell: Cell, other: Cell, share: float) -> Interval:
        """The metric of a cell less that of another, paired by seed and example of the stage's
        half."""
        mine, theirs = (self.runs(stage, one, share) for one in (cell, other))
        found = paired_difference(mine, theirs, self.metric, self.halves[stage])
        return MISSING if found is None else found

    def gain(self, cell: Cell) -> Interval:
        """Over unguided training, in the last round that the cell took part in."""
        return self.difference(TUNING, cell, ORIGIN, self._share(cell))

    @cached_property
    def region(self) -> list[Cell]:
        """The cells that are not told from the best one in the last round that they took part in."""
        best = self.race.best(self.cells)
        if best is None:
            return []
        gaps = {one: self.difference(TUNING, one, best, self._share(one)) for one in self.cells}
        return [one for one, gap in gaps.items() if not (gap.low > 0 or gap.high < 0)]

    def _share(self, cell: Cell) -> float:
        return self.rounds[self.race.last(cell)].share

    def choices(self, published: float | None) -> dict[str, Cell]:
        """What is reported: role -> cell. Empty before the race is over.

        Args:
            published: 1/τ of DRRho as published, which is reported whether or not it is any good;
                None: it is not.
        """
        if len(self.race.finished) < len(self.rounds):
            return {}
        found = {UNGUIDED: ORIGIN}
        if published is not None:
            found[PUBLISHED] = Cell(published, published)
        for role in (RAY, SHARP, FILTER):
            best = self.race.best([cell for cell in self.cells if group(cell) == role])
            found |= {} if best is None else {role: best}
        best = self.race.best(self.cells)
        return found | ({} if best is None else {BEST: best})


def _require(record: RunRecord, metric: str, halves: Sequence[Half | None]) -> None:
    """SteeringError unless the metric is there on both halves."""
    if metric not in record.metrics:
        known = ", ".join(record.metrics)
        raise SteeringError(f"studies.plane.metric: no {metric!r}; the runs have {known}")
    parts: Mapping[str, object] = record.scores()
    of = record.meaning[metric].of if metric in record.meaning else ()
    if not of or any(part not in parts for part in of):
        raise SteeringError(
            f"studies.plane.metric: {metric} is no mean over evaluated examples, so it has no "
            "tuning half; choose one that is"
        )
    for part in of:
        n = len(record.scores()[part].values)
        if any(half is not None and not half.mask(n).any() for half in halves):
            raise SteeringError(
                f"studies.plane.metric: {metric} is of {n} examples, too few for two halves"
            )
