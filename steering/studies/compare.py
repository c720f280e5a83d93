"""The study that answers "does it help?": the same target, trained by several methods with several
seeds, and the reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.intervals import Bootstrap, Interval, in_brackets, paired_difference
from steering.analysis.page import Report, Table
from steering.analysis.reach import Speedup, speedup
from steering.analysis.report import (
    curves_figure,
    intro,
    metric_groups,
    page_tables,
    study_curves,
    style,
)
from steering.analysis.winners import winners
from steering.errors import ConfigError
from steering.runs.record import Metric, RunRecord
from steering.studies import study
from steering.studies.contestants import references_of
from steering.studies.distinct import require_distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.analysis.events import Curve
    from steering.config import RunConfig
    from steering.runs.ask import Ask

REFERENCE = "reference"
ALSO = "also"  # axis: the reference that this very run is, too


@dataclass(frozen=True)
class CompareOptions:
    """The `compare:` section of a config; see `steering.schema.CompareConfig`."""

    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0])
    baseline: str | None = None


@study("compare", CompareOptions)
class Compare:
    """Methods by seeds: tables, curves, and what each gains over the baseline."""

    def __init__(self, options: CompareOptions) -> None:
        if not options.methods:
            raise ConfigError(
                "compare.methods: empty; name at least one, such as `drrho: {name: drrho}`"
            )
        if REFERENCE in options.methods:
            raise ConfigError(
                "compare.methods.reference: this label is the reference's own in the tables; choose another"
            )
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        return [] if done else self._asks(base)  # one round

    def _asks(self, base: RunConfig) -> list[Ask]:
        from steering.config import method_section, with_method, with_overrides
        from steering.runs.ask import training

        base = replace(base, compare=type(base.compare)())  # a run need not know of the others
        found: list[Ask] = []
        configs = [base]
        for label, section in self.options.methods.items():
            steered = with_method(base, method_section(section), f"compare.methods.{label}")
            if section.get("reference"):
                steered = with_overrides(steered, {"reference": section["reference"]})
            configs.append(steered)
            for seed in self.options.seeds:
                config = replace(steered, seed=seed)
                found.append(
                    training(config, f"{label}-seed{seed}", {"method": label, "seed": seed})
                )
        require_distinct(found, "compare.methods")
        return _named(references_of(configs, "method", {"seed": None}), found)

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        done = [*_references(done), *done]
        runs = {label: _by_seed(done, label) for label in self.options.methods}
        rows = _rows(done)
        styles = {name: one for record in done for name, one in record.meaning.items()}
        baseline = self.options.baseline or next(iter(self.options.methods))
        steps = next(record.cost for one in runs.values() for record in one.values())
        return Report(
            name="compare",
            title=f"{title}: {', '.join(self.options.methods)}",
            intro=intro(rows, styles),
            tables=[
                *page_tables(rows, styles, winners(runs, rows, styles)),
                *_differences(runs, baseline, styles),
                *_speedups(runs, baseline, rows, done),
            ],
            rows=rows,
            figures={
                "": partial(_curves, runs, rows, round(steps.trained / max(steps.steps, 1)), styles)
            },
            curves=partial(_lines, runs, rows),
        )


def _named(references: Sequence[Ask], runs: Sequence[Ask]) -> list[Ask]:
    """All asks; a reference that is one of the runs, as its training is the same, is a name of it."""
    names = {ask.key: ask.label for ask in references}
    own = {ask.key for ask in runs}
    return [
        *(ask for ask in references if ask.key not in own),
        *(
            replace(ask, axes={**ask.axes, ALSO: names[ask.key]}) if ask.key in names else ask
            for ask in runs
        ),
    ]


def _references(done: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that are a reference, too, under that name."""
    return [
        record.asked_as(record.axes[ALSO], {"method": record.axes[ALSO], "seed": None})
        for record in done
        if ALSO in record.axes
    ]


def _curves(
    runs: Mapping[str, Mapping[int, RunRecord]],
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    styles: Mapping[str, Metric],
) -> Figure:
    curves = {label: [record.curves() for record in one.values()] for label, one in runs.items()}
    return curves_figure(curves, rows, batch_size, styles)


def _lines(
    runs: Mapping[str, Mapping[int, RunRecord]], rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Mapping[str, Curve]]:
    curves = {label: [record.curves() for record in one.values()] for label, one in runs.items()}
    return study_curves(curves, rows)


def _by_seed(done: Sequence[RunRecord], label: str) -> dict[int, RunRecord]:
    return {record.axes["seed"]: record for record in done if record.axes.get("method") == label}


def _rows(done: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A row of compare.json for each record."""
    stored: dict[str, float] = {}
    for record in done:
        if record.cost.stored:
            stored[record.parents.get(REFERENCE, "")] = record.cost.reference_seconds
    rows = []
    for record in done:
        cost, row = record.cost, {"method": record.axes["method"], "seed": record.axes["seed"]}
        if row["seed"] is not None:
            rows.append(
                row
                | {
                    "metrics": dict(record.metrics),
                    "samples": cost.trained,
                    "drawn": cost.drawn,
                    "scored": cost.scored,
                    "reference_samples": cost.reference,
                    "seconds": cost.seconds,
                    "flops": cost.flops,
                    "summary": dict(record.summary),
                }
            )
            continue
        # The reference as a contestant, with the cost of training it here (if it was) and of
        # storing its outputs.
        trained = record.kind == "train"
        row |= {
            "metrics": dict(record.metrics),
            "samples": cost.trained if trained else None,
            "seconds": cost.seconds if trained else None,
        }
        seconds = stored.get(record.key, stored.get("") if not trained else None)
        rows.append(row if seconds is None else row | {"cache_seconds": seconds})
    return rows


def _differences(
    runs: Mapping[str, Mapping[int, RunRecord]], baseline: str, styles: Mapping[str, Metric]
) -> list[Table]:
    """For each group of metrics: every other method minus the baseline."""
    others = [label for label in runs if label != baseline]
    if not others:
        return []
    bootstrap, found = Bootstrap(), []
    rows = [{"metrics": record.metrics} for one in runs.values() for record in one.values()]
    for group, names in metric_groups(rows).items():
        cells = {
            label: [
                paired_difference(runs[label], runs[baseline], name, bootstrap) for name in names
            ]
            for label in others
        }
        over = dict.fromkeys(
            cell.over for line in cells.values() for cell in line if cell is not None
        )
        found.append(
            Table(
                f"{group or 'evaluation'}: difference to {baseline}",
                ["method", *(name.rpartition("/")[2].replace("_", " ") for name in names)],
                [
                    [
                        label,
                        *(
                            _signed(cell, style(name, styles))
                            for cell, name in zip(line, names, strict=True)
                        ),
                    ]
                    for label, line in cells.items()
                ],
                note=in_brackets(over),
            )
        )
    return found


def _signed(cell: Interval | None, shown: Metric) -> str:
    if cell is None or math.isnan(cell.value):
        return "–"
    scale, digits = (100, 1) if shown.percent else (1, 3)
    text = f"{scale * cell.value:+.{digits}f}"
    return (
        text
        if math.isnan(cell.low)
        else f"{text} [{scale * cell.low:+.{digits}f}, {scale * cell.high:+.{digits}f}]"
    )


def _speedups(
    runs: Mapping[str, Mapping[int, RunRecord]],
    baseline: str,
    rows: Sequence[Mapping[str, Any]],
    done: Sequence[RunRecord],
) -> list[Table]:
    """How many times less each method takes until it is as good as the baseline at its end, and the
    baseline itself, whose curve may have been there before; the first metric of each group."""
    flops = {record.key: float(record.cost.flops) for record in done}
    steering = {record.key: flops.get(record.parents.get(REFERENCE, ""), 0.0) for record in done}
    lines = []
    for label in runs if len(runs) > 1 else ():
        name = f"{label} itself" if label == baseline else label
        for group, names in metric_groups(rows).items():
            found = speedup(runs[label], runs[baseline], names[0], steering)
            if found is not None:
                got = f"{found.reached} of {found.seeds}"
                lines.append([name, group or names[0], got, *_times(found)])
    times = ["× fewer samples", "× fewer seconds", "× fewer FLOPs", "with the reference's"]
    header = ["method", "on", "seeds that get there", *times]
    note = (
        f"Until an evaluation during training first reaches {baseline}'s final score of the same seed: geometric mean over "
        "the seeds, in brackets its 95 % interval; – where not every seed gets there. The last column adds the FLOPs of "
        f"training the reference and of computing its outputs. What {baseline} itself has above 1 is the luck of a curve "
        "that goes up and down, and so much of the others' may be, too."
    )
    return [Table(f"until as good as {baseline}", header, lines, note=note)] if lines else []


def _times(found: Speedup) -> list[str]:
    cells = []
    for one in (found.samples, found.seconds, found.flops, found.with_reference):
        if (
            one is None or found.reached < found.seeds
        ):  # a mean over those that get there would flatter
            cells.append("–")
        else:
            interval = "" if math.isnan(one.low) else f" [{one.low:.2f}, {one.high:.2f}]"
            cells.append(f"{one.value:.2f}{interval}")
    return cells
