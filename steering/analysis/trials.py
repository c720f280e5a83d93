"""Settings that are tuned on one half of the evaluated examples and reported on the other.

Records carry the axes "stage", "share" (of the full length of training) and "seed", and those that say
which candidate they are of. Stage "tuning" is of one half; "report" of the other, with other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np

from steering.analysis.halves import Half
from steering.analysis.halving import Race, Round, halving
from steering.analysis.intervals import Bootstrap, Interval, paired_difference
from steering.errors import SteeringError
from steering.runs.record import Metric, RunRecord

TUNING, REPORT = "tuning", "report"
NAMED = 6  # runs that a sentence names
MISSING = Interval(math.nan)

C = TypeVar("C")


@dataclass
class Trials(Generic[C]):
    """The records of a tuning so far.

    Args:
        done: all of a study's; what has no stage is of no candidate.
        candidate_of: axes -> whose run it is.
        candidates: who takes part, in order. There may be runs of others, to compare with.
        rounds: of the tuning.
        survivors: share of a round's candidates that goes on.
        section: of the study's options, for messages.
        metric: name of what is better.
        split: seed of the halves.
        family: of a candidate; see `halving`.

    Raises:
        SteeringError: a run has no such metric, or it has none on a half of the examples.
    """

    done: Sequence[RunRecord]
    candidate_of: Callable[[Mapping[str, Any]], C]
    candidates: Sequence[C]
    rounds: Sequence[Round]
    survivors: float
    section: str
    metric: str
    split: int = 0
    family: Callable[[C], Hashable] = lambda _: None
    _runs: dict[tuple[str, C, float], dict[int, RunRecord]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.halves = {
            TUNING: Bootstrap(half=Half(self.split, tuning=True)),
            REPORT: Bootstrap(half=Half(self.split, tuning=False)),
        }
        for record in self.done:
            axes = record.axes
            if "stage" in axes:
                if not record.diverged:
                    _require(record, self.metric, self.split, f"{self.section}.metric")
                place = axes["stage"], self.candidate_of(axes), axes["share"]
                self._runs.setdefault(place, {})[axes["seed"]] = record

    def runs(self, stage: str, candidate: C, share: float) -> dict[int, RunRecord]:
        """Seed -> run."""
        return self._runs.get((stage, candidate, share), {})

    @cached_property
    def meaning(self) -> Metric:
        """What the metric is; a plain share before there is a run."""
        known = (one.meaning[self.metric] for one in self.records() if not one.diverged)
        return next(known, Metric())

    @property
    def head(self) -> str:
        """The metric as a column's header."""
        return self.metric if self.meaning.higher_is_better else f"{self.metric} ↓"

    def shown(self, value: float) -> str:
        """A value of the metric as a table has it; "–" for what is no number."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f}" if self.meaning.percent else f"{value:.3f}"

    def number(self, value: float) -> str:
        """A difference of the metric, with its sign: in points for a share; "–" for none."""
        if math.isnan(value):
            return "–"
        return f"{100 * value:+.1f}" if self.meaning.percent else f"{value:+.3f}"

    def signed(self, found: Interval) -> str:
        """A difference with its interval; "–" where there is none."""
        if math.isnan(found.low):
            return self.number(found.value)
        return f"{self.number(found.value)} [{self.number(found.low)}, {self.number(found.high)}]"

    def records(self) -> list[RunRecord]:
        """All runs of candidates."""
        return [run for runs in self._runs.values() for run in runs.values()]

    def spent(self) -> dict[str, list[RunRecord]]:
        """Stage -> its runs."""
        found: dict[str, list[RunRecord]] = {}
        for (stage, _, share), runs in sorted(self._runs.items(), key=lambda one: one[0][2]):
            name = REPORT if stage == REPORT else f"{TUNING}, {100 * share:g} % of the length"
            found.setdefault(name, []).extend(runs.values())
        return found

    def mean(self, stage: str, candidate: C, share: float, seeds: int | None = None) -> float:
        """The metric on the stage's half, averaged over the seeds; NaN where a seed is missing, or
        has diverged.

        Args:
            seeds: 0 .. seeds − 1 of them; None: all that are there.
        """
        runs = self.runs(stage, candidate, share)
        wanted = [*runs] if seeds is None else range(seeds)
        if not runs or any(seed not in runs for seed in wanted):
            return math.nan
        return float(np.mean([self.halves[stage].value(runs[one], self.metric) for one in wanted]))

    def score(self, candidate: C, one: Round) -> float:
        """What the race is about: more is better; NaN where a run is missing."""
        runs = self.runs(TUNING, candidate, one.share)
        if any(seed not in runs for seed in range(one.seeds)):
            return math.nan
        value = self.mean(TUNING, candidate, one.share, one.seeds)
        # Finished, and yet no number: it has lost.
        worth = value if self.meaning.higher_is_better else -value
        return -math.inf if math.isnan(value) else worth

    @cached_property
    def race(self) -> Race[C]:
        return halving(self.candidates, self.rounds, self.score, self.survivors, self.family)

    def difference(self, stage: str, candidate: C, other: C, share: float) -> Interval:
        """The metric of a candidate less that of another, paired by seed and example of the stage's
        half."""
        mine, theirs = (self.runs(stage, one, share) for one in (candidate, other))
        return compared(mine, theirs, self.metric, self.halves[stage])

    def gain(self, candidate: C, base: C) -> Interval:
        """Over another one, on the tuning half, in the last round that the candidate took part in."""
        return self.difference(TUNING, candidate, base, self._share(candidate))

    @cached_property
    def region(self) -> list[C]:
        """The candidates that are not told from the best one in the last round that they took part
        in; one whose metric is no number is none of them."""
        best = self.race.best(self.candidates)
        if best is None:
            return []
        gaps = {
            one: self.difference(TUNING, one, best, self._share(one)) for one in self.candidates
        }
        told = {one for one, gap in gaps.items() if gap.low > 0 or gap.high < 0}
        return [one for one, gap in gaps.items() if one not in told and not math.isnan(gap.value)]

    def _share(self, candidate: C) -> float:
        return self.rounds[self.race.last(candidate)].share

    @property
    def over(self) -> bool:
        """Whether the last round is finished."""
        return len(self.race.finished) == len(self.rounds)


def diverged(records: Sequence[RunRecord]) -> str:
    """A sentence about the runs that diverged; "" if none did."""
    labels = [record.label for record in records if record.diverged]
    if not labels:
        return ""
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return f"Diverged, and so lost: {', '.join(labels[:NAMED])}{more}."


def compared(
    mine: Mapping[int, RunRecord], theirs: Mapping[int, RunRecord], metric: str, half: Bootstrap
) -> Interval:
    """`paired_difference`; MISSING where a run has diverged: the seeds that are left would flatter."""
    if any(run.diverged for run in (*mine.values(), *theirs.values())):
        return MISSING
    return paired_difference(mine, theirs, metric, half) or MISSING


def require_metric(record: RunRecord, metric: str, key: str) -> None:
    """SteeringError, which names the key and the metrics that there are, unless the run has it."""
    if metric not in record.metrics:
        known = ", ".join(record.metrics)
        raise SteeringError(f"{key}: no {metric!r}; the runs have {known}")


def _require(record: RunRecord, metric: str, split: int, key: str) -> None:
    """SteeringError unless the metric is there on both halves, each of at least two examples."""
    require_metric(record, metric, key)
    parts: Mapping[str, object] = record.scores()
    of = record.meaning[metric].of if metric in record.meaning else ()
    if not of or any(part not in parts for part in of):
        raise SteeringError(
            f"{key}: {metric} is no mean over evaluated examples, so it has no "
            "tuning half; choose one that is"
        )
    for part in of:
        n = len(record.scores()[part].values)
        tuning = int(Half(split, tuning=True).mask(n).sum())
        if min(tuning, n - tuning) < 2:
            raise SteeringError(f"{key}: {metric} is of {n} examples, too few for two halves")
