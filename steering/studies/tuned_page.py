"""Tables of the study of tuned methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.intervals import Interval, in_brackets
from steering.analysis.page import Table
from steering.analysis.points import flops_with_reference
from steering.analysis.report import style
from steering.analysis.trials import REPORT, TUNING, Trials, compared, diverged
from steering.console import in_time
from steering.runs.record import Metric, RunRecord
from steering.studies.search_space import Settings

if TYPE_CHECKING:
    from steering.studies.tuned import TunedOptions

Place = tuple[str, int, str]  # method, number of its try, share of the data
WHOLE = 1.0  # every run has the full length
LOSSES = "held-out losses"


@dataclass(frozen=True)
class Found:
    """What the tuning half chose, and all records.

    Attributes:
        best: method -> its best try on the tuning half.
        opponents: family -> its method that is best there; the first one is what curves and savings
            are measured against.
    """

    options: TunedOptions
    trials: Trials[Place]
    settings: Mapping[Place, Settings]
    best: Mapping[str, Place]
    opponents: Mapping[str, str]
    done: Sequence[RunRecord]

    @property
    def opponent(self) -> str:
        return next(iter(self.opponents.values()), "")

    @cached_property
    def own(self) -> str:
        """The share of the data that the methods were tuned on."""
        return f"{self.options.share:g}"

    @cached_property
    def meanings(self) -> Mapping[str, Metric]:
        return {name: one for record in self.done for name, one in record.meaning.items()}

    def runs(self, label: str, share: str) -> Mapping[int, RunRecord]:
        """Seed -> the reported run of a method's best try on a share of the data."""
        if label not in self.best:
            return {}
        return self.trials.runs(REPORT, (label, self.best[label][1], share), WHOLE)

    def value(self, label: str, share: str, metric: str) -> float:
        """A metric on the report half, averaged over the seeds."""
        runs, half = self.runs(label, share), self.trials.halves[REPORT]
        values = [half.value(run, metric) for run in runs.values()]
        return float(np.mean(values)) if values else math.nan

    def difference(self, label: str, other: str, share: str, metric: str) -> Interval:
        """Of a method to another one, paired by seed and example of the report half."""
        runs, theirs = self.runs(label, share), self.runs(other, share)
        return compared(runs, theirs, metric, self.trials.halves[REPORT])

    def over_reference(self, label: str, reference: RunRecord, metric: str) -> Interval:
        """Of a method's target to a reference, paired by example of the report half; the reference
        is one run, so the seeds are the target's."""
        runs = self.runs(label, self.own)
        half = self.trials.halves[REPORT]
        return compared(runs, dict.fromkeys(runs, reference), metric, half)

    @cached_property
    def references(self) -> list[RunRecord]:
        """What the runs were steered by; their cost counts."""
        return [record for record in self.done if record.axes.get("role") == "reference"]

    def shown(self, value: float, metric: str) -> str:
        if math.isnan(value):
            return "–"
        return f"{100 * value:.1f}" if style(metric, self.meanings).percent else f"{value:.3f}"

    def signed(self, found: Interval, metric: str) -> str:
        if math.isnan(found.value):
            return "–"
        scale, digits = (100, 1) if style(metric, self.meanings).percent else (1, 3)
        text = f"{scale * found.value:+.{digits}f}"
        if math.isnan(found.low):
            return text
        return f"{text} [{scale * found.low:+.{digits}f}, {scale * found.high:+.{digits}f}]"

    def metrics(self) -> list[str]:
        """The metric that was tuned by, and those that are reported beside it."""
        return [self.options.metric, *self.options.also]

    def without_half(self) -> str:
        """A sentence about the reported metrics that are no means over examples; "" if all are."""
        names = [m for m in self.metrics() if m in self.meanings and not self.meanings[m].of]
        return (
            f" {', '.join(names)}: no mean over examples, so not known of a half." if names else ""
        )

    def heads(self) -> list[str]:
        """Their columns."""
        better = {name: style(name, self.meanings).higher_is_better for name in self.metrics()}
        return [name if better[name] else f"{name} ↓" for name in self.metrics()]


def tables(found: Found) -> list[Table]:
    return [
        _value_table(found),
        *(_difference_table(found, family, label) for family, label in found.opponents.items()),
        *(_reference_table(found, reference) for reference in found.references),
        _choice_table(found),
        _cost_table(found),
    ]


def _value_table(found: Found) -> Table:
    """Means on the report half, and what one run takes."""
    by_key = {record.key: record for record in found.done}
    lines = []
    for record in found.references:
        half = found.trials.halves[REPORT]
        cells = [found.shown(half.value(record, name), name) for name in found.metrics()]
        cost = record.cost
        counted = [f"{cost.trained:,}", f"{cost.drawn:,}", _flops(cost.flops), "–"]
        lines.append([record.axes["reference"], *cells, *counted])
    for label in found.best:
        cells = [found.shown(found.value(label, found.own, m), m) for m in found.metrics()]
        # One that has diverged took less than a run does.
        runs = sorted(found.runs(label, found.own).values(), key=lambda run: bool(run.diverged))
        if not runs:
            continue
        cost, whole = runs[0].cost, flops_with_reference(runs[0], by_key)
        counted = [f"{cost.trained:,}", f"{cost.drawn:,}", _flops(cost.flops), _flops(whole)]
        lines.append([label, *cells, *counted])
    count = max((len(found.runs(label, found.own)) for label in found.best), default=0)
    first = found.trials.race.best([*found.best.values()])
    chosen = (
        f" {first[0]} was the best of all on the tuning half, and this half chose none."
        if first
        else ""
    )
    note = (
        f"{count} {'seed' if count == 1 else 'seeds'} and a half of the examples that had no part in "
        f"the tuning.{chosen} Samples and FLOPs are of one run; the last column adds the FLOPs of "
        f"training the reference and of computing its outputs.{found.without_half()}"
    )
    header = ["method", *found.heads(), "samples", "drawn", "FLOPs", "with the reference's"]
    return Table("on the other half", header, lines, note=note)


def _flops(count: int) -> str:
    return f"{count:.2e}" if count else "–"


def _difference_table(found: Found, family: str, opponent: str) -> Table:
    gaps = {
        label: [found.difference(label, opponent, found.own, name) for name in found.metrics()]
        for label in found.best
        if label != opponent and found.runs(label, found.own)
    }
    lines = [[label, *map(found.signed, mine, found.metrics())] for label, mine in gaps.items()]
    members = ", ".join(found.options.families.get(family, []))
    best = f"{opponent} is the best of {family} ({members}) on the tuning half. " if family else ""
    note = f"{best}{in_brackets(one.over for mine in gaps.values() for one in mine)}"
    name = f"difference to {opponent}" + (f", the best of {family}" if family else "")
    return Table(name, ["method", *found.heads()], lines, note=note)


def _reference_table(found: Found, reference: RunRecord) -> Table:
    """Who ends up better than the reference that guided."""
    gaps = {
        label: [found.over_reference(label, reference, name) for name in found.metrics()]
        for label in found.best
        if found.runs(label, found.own)
    }
    lines = [[label, *map(found.signed, mine, found.metrics())] for label, mine in gaps.items()]
    note = (
        "The reference is one run: how another one of its kind would do stays open. "
        f"{in_brackets(one.over for mine in gaps.values() for one in mine)}"
    )
    label = reference.axes["reference"]
    name = "difference to the reference" + ("" if label == "reference" else f" {label}")
    return Table(name, ["method", *found.heads()], lines, note=note)


def _choice_table(found: Found) -> Table:
    """Which try won, and what the tuning half said of it and of the section as it stands."""
    lines = []
    for label, one in found.best.items():
        said = ", ".join(f"{key} {value}" for key, value in found.settings[one].items())
        values = [
            found.trials.shown(found.trials.mean(TUNING, which, WHOLE))
            for which in ((label, 0, found.own), one)
        ]
        lines.append([label, str(found.options.tries), *values, said or "as it stands"])
    header = ["method", "tries", "as it stands", "best try", "settings"]
    note = (
        "On the tuning half: the best of several tries looks better than it is. "
        f"{diverged(found.trials.records())}"
    ).rstrip()
    return Table("what was chosen", header, lines, note=note)


def _cost_table(found: Found) -> Table:
    lines = []
    for label in found.options.methods:
        records = [one for one in found.trials.records() if one.axes["method"] == label]
        trained, drawn, flops = (
            sum(getattr(one.cost, key) for one in records) for key in ("trained", "drawn", "flops")
        )
        seconds = in_time(sum(one.cost.seconds for one in records))
        counts = [str(len(records)), f"{trained:,}", f"{drawn:,}", _flops(flops)]
        lines.append([label, *counts, seconds])
    header = ["method", "runs", "samples", "drawn", "FLOPs", "seconds of training"]
    return Table("cost, tuning included", header, lines)


def rows(found: Found) -> list[dict[str, Any]]:
    metric, first = found.options.metric, next(iter(found.options.methods))
    tries = [
        {
            "kind": "try",
            "method": one[0],
            "try": one[1],
            "settings": settings,
            "tuning": found.trials.mean(TUNING, one, WHOLE),
        }
        for one, settings in found.settings.items()
    ]
    results = [
        {
            "kind": "method",
            "method": label,
            "try": one[1],
            "value": found.value(label, found.own, metric),
            "gain": _interval(found.difference(label, first, found.own, metric)),
            "over": {
                family: {"method": other, "gain": _interval(gain)}
                for family, other in found.opponents.items()
                for gain in [found.difference(label, other, found.own, metric)]
            },
            "over_reference": {
                reference.axes["reference"]: _interval(
                    found.over_reference(label, reference, metric)
                )
                for reference in found.references
            },
        }
        for label, one in found.best.items()
        if found.runs(label, found.own)
    ]
    shares = [
        {
            "kind": "share",
            "share": float(share),
            "method": label,
            "value": found.value(label, share, metric),
            "gain": _interval(found.difference(label, found.opponent, share, metric)),
        }
        for share in found.options.shares
        for label in found.best
        if found.runs(label, share)
    ]
    return tries + results + shares


def _interval(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]
