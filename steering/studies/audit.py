"""The study that answers "will this reference help?" before a long training: from a short unguided
run and from stored losses alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.calibration import Ridge, chances, ridge_of, verdict
from steering.analysis.page import Report
from steering.analysis.signals import Signals, signals_of
from steering.analysis.stored import losses_of
from steering.errors import ConfigError, SteeringError
from steering.reading import user_path
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.audit_page import gains_figure, signal_table, signals_figure, verdict_table
from steering.studies.distinct import require_distinct

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.config import RunConfig
    from steering.runs.ask import Ask

PROBE = "probe"


@dataclass(frozen=True)
class AuditOptions:
    share: float = 0.25
    """The unguided run's length, as a share of `train.samples`."""
    probe: dict[str, Any] = field(default_factory=dict)
    """Further changes of that run: dotted key -> value."""
    part: str | None = None
    """A held-out part of the task, such as "test", for the reference's advantage there; null:
    none."""
    calibration: str | None = None
    """The JSON file of a finished `calibration` study, which turns signals into expected gains;
    null: signals alone."""
    margin: float = 0.005
    """A gain within ± this does not matter, in the unit of the calibration's metric."""


@study("audit", AuditOptions)
class Audit:
    """Will a reference help, which of several, and where on the plane: before any long training."""

    def __init__(self, options: AuditOptions) -> None:
        if not 0 < options.share <= 1:
            raise ConfigError(f"studies.audit.share: expected in (0, 1], got {options.share}")
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        if done:
            return []
        configs = references_of(base)
        probe = probe_of(base, self.options.share, self.options.probe)
        asks = [probe, *probe_outputs(probe, self.options.part, {})]
        for label, config in configs.items():
            asks += reference_outputs(config, self.options.part, {"reference": label})
        require_distinct(asks, "references")
        return asks

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        found = signals_by_reference(done)
        known = (
            None if self.options.calibration is None else read_calibration(self.options.calibration)
        )
        tables = [signal_table(found)]
        rows: list[dict[str, Any]] = [
            {"reference": label, "signals": signals.values()} for label, signals in found.items()
        ]
        draw: Callable[[], Figure] = partial(signals_figure, found)
        if known is not None:
            made = next(iter(known.values()))
            expected = {label: self._expected(known, one) for label, one in found.items()}
            tables.append(verdict_table(expected, made.percent, made.ridge.cases))
            rows = [row | {"expected": expected[row["reference"]]} for row in rows]
            draw = partial(gains_figure, expected, made.percent, self.options.margin)
        intro = (
            "Losses in nats. ℓ is the loss of an unguided target after a short run, ℓ_ref the "
            "reference's, both on the training data."
        )
        return Report(
            "audit", f"{title}: will the reference help?", intro, tables, rows, {"": draw}
        )

    def _expected(
        self, known: Mapping[str, Calibrated], signals: Signals
    ) -> dict[str, dict[str, Any]]:
        values = signals.values()
        return {label: self._one(made, values) for label, made in known.items()}

    def _one(self, made: Calibrated, values: Mapping[str, float]) -> dict[str, Any]:
        try:
            gain = made.ridge.predict(values)
        except ValueError as error:
            raise SteeringError(
                f"studies.audit.calibration: {error}; name a held-out part in studies.audit.part"
            ) from error
        odds = chances(gain, made.ridge.spread, self.options.margin)
        outside = made.ridge.outside(values)
        return {
            "plane": list(made.plane),
            "gain": gain,
            "spread": made.ridge.spread,
            "verdict": verdict(odds),
            "chances": odds,
            "outside": outside,
        }


@dataclass(frozen=True)
class Calibrated:
    """What a calibration says of one method: where it is on the plane (1/τ, κ), its gains, and
    whether these are of a share, shown in points."""

    plane: tuple[float, ...]
    ridge: Ridge
    percent: bool = True


def read_calibration(path: str) -> dict[str, Calibrated]:
    """Method -> calibration, of a `calibration` study's JSON file.

    Raises:
        SteeringError: there is none, or it holds no calibration.
    """
    file = user_path(path)
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        made = {row["method"]: _calibrated(row) for row in rows if row.get("kind") == "calibration"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SteeringError(
            f"studies.audit.calibration: {path} is no result of a calibration study ({error})"
        ) from error
    if not made:
        raise SteeringError(f"studies.audit.calibration: {path} holds no calibration")
    return made


def _calibrated(row: Mapping[str, Any]) -> Calibrated:
    return Calibrated(tuple(row["plane"]), ridge_of(row["ridge"]), row.get("percent", True))


def references_of(base: RunConfig) -> dict[str, RunConfig]:
    """Label -> the config steered by that reference: the config's own, and those of `references:`.

    Raises:
        ConfigError: there is none.
    """
    from steering.config import with_overrides

    found = {}
    if base.reference is not None:
        found[base.reference.label or "reference"] = base
    for label in base.references:
        found.setdefault(label, with_overrides(base, {"reference": label}))
    if not found:
        raise ConfigError(
            "reference: the study needs one; add a reference: or a references: section"
        )
    return found


def probe_of(base: RunConfig, share: float, changes: Mapping[str, Any], name: str = PROBE) -> Ask:
    """The short unguided run of a config."""
    from steering.config import with_overrides
    from steering.runs.ask import training

    samples = max(base.train.batch_size, round(share * base.train.samples))
    unguided = {"method": {"name": "erm"}, "reference": None, "references": {}}
    config = with_overrides(base, unguided | {"train.samples": samples} | dict(changes))
    config = replace(config, compare=type(base.compare)(), studies={})
    return training(config, name, {"role": PROBE})


def probe_outputs(probe: Ask, part: str | None, axes: Mapping[str, Any]) -> list[Ask]:
    """The probe's losses on the training data and on the held-out part."""
    from steering.runs.ask import model_outputs

    return [
        model_outputs(
            probe.config,
            "losses",
            one,
            f"{probe.label}-on-{one}",
            {**axes, "role": "probe losses", "part": _role(one)},
            model=probe,
        )
        for one in _parts(part)
    ]


def reference_outputs(
    config: RunConfig, part: str | None, axes: Mapping[str, Any], prefix: str = ""
) -> list[Ask]:
    """A reference's losses on the training data and on the held-out part; its training comes
    before."""
    from steering.runs.ask import (
        model_outputs,
        reference_label,
        reference_target,
        reference_training,
        trains_reference,
    )

    assert config.reference is not None
    parents, asked = {}, reference_target(config)
    if trains_reference(config):
        parents = {"model": reference_training(config)}
    asked = replace(asked, compare=type(config.compare)(), studies={})
    name = prefix + reference_label(config.reference)
    about = {"role": "reference losses"}
    return [
        model_outputs(
            asked,
            "losses",
            one,
            f"{name}-on-{one}",
            {**axes, **about, "part": _role(one)},
            **parents,
        )
        for one in _parts(part)
    ]


def _parts(part: str | None) -> list[str]:
    return ["train"] if part is None else ["train", part]


def _role(part: str) -> str:
    return "train" if part == "train" else "held out"


def signals_by_reference(done: Sequence[RunRecord]) -> dict[str, Signals]:
    """Reference -> signals, of records with the axes of `probe_outputs` and `reference_outputs`."""
    target = {
        record.axes["part"]: losses_of(record)
        for record in done
        if record.axes.get("role") == "probe losses"
    }
    by_label: dict[str, dict[str, RunRecord]] = {}
    for record in done:
        if record.axes.get("role") == "reference losses":
            by_label.setdefault(record.axes["reference"], {})[record.axes["part"]] = record
    found = {}
    for label, records in by_label.items():
        guide = {part: losses_of(record) for part, record in records.items()}
        held_out = (target["held out"], guide["held out"]) if "held out" in target else None
        found[label] = signals_of(target["train"], guide["train"], held_out)
    return found
