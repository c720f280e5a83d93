"""The study behind the audit: what steering gained in many combinations of data and reference, and
how well the audit's signals would have said so beforehand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.calibration import chances, fit_ridge, left_out, verdict
from steering.analysis.intervals import Bootstrap, Interval, paired_difference
from steering.analysis.page import Report
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.audit import (
    PROBE,
    probe_of,
    probe_outputs,
    reference_outputs,
    signals_by_reference,
)
from steering.studies.calibration_page import (
    Combination,
    Judged,
    gain_table,
    judged_table,
    scatter,
    single_table,
)
from steering.studies.distinct import require_distinct

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

UNGUIDED = "unguided"


@dataclass(frozen=True)
class CalibrationOptions:
    axes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Axis -> value's label -> changes of the config; every combination is a data set."""
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> a `reference:` section."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> a `method:` section that uses the reference."""
    unguided: dict[str, Any] = field(default_factory=lambda: {"name": "erm"})
    """The method whose score the others are compared with."""
    plane: dict[str, list[float]] = field(default_factory=dict)
    """Label of a method -> its place (1/τ, κ), for the audit's advice."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of each run; the probe has the first."""
    metric: str = "test/accuracy"
    """What is gained; a higher value is better unless its task says otherwise."""
    share: float = 0.25
    """The probe's length, as in `studies.audit`."""
    part: str | None = None
    """A held-out part for the signals, as in `studies.audit`."""
    margin: float = 0.005
    """A gain within ± this does not matter."""


@study("calibration", CalibrationOptions)
class Calibration:
    """How well the audit's signals foresee what steering gains, over many combinations."""

    def __init__(self, options: CalibrationOptions) -> None:
        for name in ("axes", "references", "methods", "seeds"):
            if not getattr(options, name):
                raise ConfigError(f"studies.calibration.{name}: empty; name at least one")
        if len(cells_of(options.axes)) < 2:
            raise ConfigError(
                "studies.calibration.axes: one data set; name at least two, as what is foreseen on "
                "one is learned from the others"
            )
        unknown = [label for label in options.plane if label not in options.methods]
        if unknown:
            raise ConfigError(f"studies.calibration.plane.{unknown[0]}: no such label in methods")
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        if done:
            return []
        asks: list[Ask] = []
        for cell, changes in cells_of(self.options.axes).items():
            asks += self._cell(base, cell, changes)
        # A probe may also be a run: it comes before the others, whose places the report needs.
        probes = [ask for ask in asks if ask.axes["role"] == PROBE]
        others = [ask for ask in asks if ask.axes["role"] != PROBE]
        require_distinct(others, "studies.calibration")
        return [*probes, *others]

    def _cell(self, base: RunConfig, cell: str, changes: Mapping[str, Any]) -> list[Ask]:
        """The runs of one data set; a reference that is another one's, or the probe's, equal
        there is left out."""
        from steering.config import with_overrides
        from steering.runs.ask import training

        options = self.options
        alone = replace(base, compare=type(base.compare)(), studies={})
        plain = with_overrides(alone, {**changes, "method": options.unguided, "reference": None})
        probe = probe_of(plain, options.share, {"seed": options.seeds[0]}, f"{cell}-probe")
        asks = [probe, *probe_outputs(probe, options.part, {"cell": cell})]
        for seed in options.seeds:
            axes = {"role": UNGUIDED, "cell": cell, "seed": seed}
            asks.append(training(replace(plain, seed=seed), f"{cell}-unguided-seed{seed}", axes))
        seen = {ask.key for ask in asks}
        for label, section in options.references.items():
            config = with_overrides(alone, {**changes, "reference": section})
            steered = self._steered(config, cell, label)
            about = {"cell": cell, "reference": label}
            outputs = reference_outputs(config, options.part, about, f"{cell}-{label}-")
            if not seen & {ask.key for ask in [*steered, *outputs]}:
                asks += [*outputs, *steered]
            seen |= {ask.key for ask in [*steered, *outputs]}
        return asks

    def _steered(self, config: RunConfig, cell: str, reference: str) -> list[Ask]:
        from steering.config import with_method
        from steering.runs.ask import training

        found = []
        for label, section in self.options.methods.items():
            steered = with_method(config, section, f"studies.calibration.methods.{label}")
            for seed in self.options.seeds:
                axes = {"cell": cell, "reference": reference, "method": label, "seed": seed}
                name = f"{cell}-{reference}-{label}-seed{seed}"
                found.append(
                    training(replace(steered, seed=seed), name, {**axes, "role": "steered"})
                )
        return found

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        options = self.options
        found = combinations_of(done, options.metric)
        names = usable(found)
        judged = [self._judged(found, label, names) for label in options.methods]
        rows: list[dict[str, Any]] = [_row(one) for one in found]
        rows += [dict(one.row) for one in judged]
        intro = (
            f"Gain in {options.metric}{', in points,' if found[0].percent else ''} over unguided "
            "training with the same seeds. Every prediction that is judged here comes from a regression that has not seen the "
            "combination, its whole data set, or any reference of its kind."
        )
        return Report(
            "calibration",
            f"{title}: does the audit foresee the gain?",
            intro,
            [
                judged_table(judged, found),
                gain_table(found, options.methods),
                single_table(found, names),
            ],
            rows,
            {"": partial(scatter, found, judged)},
        )

    def _judged(self, found: Sequence[Combination], label: str, names: Sequence[str]) -> Judged:
        cases = [one.signals for one in found]
        gains = [one.gains[label].value for one in found]
        each = [f"{one.cell} {one.reference}" for one in found]
        cells = [one.cell for one in found]
        ridge = fit_ridge(cases, gains, cells, names)
        row = {
            "kind": "calibration",
            "method": label,
            "plane": self.options.plane.get(label, []),
            "metric": self.options.metric,
            "percent": found[0].percent,
            "ridge": ridge.plain(),
        }
        alone, strict = (left_out(cases, gains, groups, names) for groups in (each, cells))
        kinds = [one.reference for one in found]
        strange = np.full(len(found), np.nan)  # a kind alone leaves nothing to learn from
        if len(set(kinds)) > 1:
            strange = left_out(cases, gains, kinds, names)
        said = [verdict(chances(gain, ridge.spread, self.options.margin)) for gain in strict]
        return Judged(label, row, alone, strict, strange, said)


def cells_of(axes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Label of every combination of the axes' values -> its changes of the config.

    Raises:
        ConfigError: a value is no section of changes.
    """
    for axis, values in axes.items():
        for label, changes in values.items():
            if not isinstance(changes, Mapping):
                raise ConfigError(
                    f"axes.{axis}.{label}: expected changes such as {{train.samples: 1000}}, "
                    f"got {changes!r}"
                )
    found = {}
    for choice in itertools.product(*(values.items() for values in axes.values())):
        label = ",".join(f"{axis}={value}" for axis, (value, _) in zip(axes, choice, strict=True))
        found[label] = {key: value for _, changes in choice for key, value in changes.items()}
    return found


def combinations_of(done: Sequence[RunRecord], metric: str) -> list[Combination]:
    """What was seen before and what came out, of a calibration's records."""
    bootstrap, found = Bootstrap(), []
    for cell in dict.fromkeys(r.axes["cell"] for r in done if "cell" in r.axes):
        mine = [record for record in done if record.axes.get("cell") == cell]
        plain = {r.axes["seed"]: r for r in mine if r.axes["role"] == UNGUIDED}
        for label, signals in signals_by_reference(mine).items():
            steered: dict[str, dict[int, RunRecord]] = {}
            for record in mine:
                if record.axes["role"] == "steered" and record.axes["reference"] == label:
                    steered.setdefault(record.axes["method"], {})[record.axes["seed"]] = record
            gains = {
                method: _gain(runs, plain, metric, bootstrap) for method, runs in steered.items()
            }
            percent = next(iter(plain.values())).meaning[metric].percent
            found.append(Combination(cell, label, signals.values(), gains, percent))
    return found


def _gain(
    runs: Mapping[int, RunRecord],
    plain: Mapping[int, RunRecord],
    metric: str,
    bootstrap: Bootstrap,
) -> Interval:
    made = paired_difference(runs, plain, metric, bootstrap)
    if made is None:
        known = ", ".join(next(iter(plain.values())).metrics)
        raise ConfigError(
            f"studies.calibration.metric: no {metric!r} in the runs; there is {known}"
        )
    higher = next(iter(plain.values())).meaning[metric].higher_is_better
    return made if higher else Interval(-made.value, -made.high, -made.low, made.over)


def usable(found: Sequence[Combination]) -> list[str]:
    """Signals that every combination has."""
    names = [*found[0].signals]
    return [name for name in names if all(math.isfinite(one.signals[name]) for one in found)]


def _row(one: Combination) -> dict[str, Any]:
    gains = {
        method: {"value": gain.value, "low": gain.low, "high": gain.high}
        for method, gain in one.gains.items()
    }
    about = {"kind": "combination", "cell": one.cell, "reference": one.reference}
    return about | {"signals": dict(one.signals), "gains": gains}
