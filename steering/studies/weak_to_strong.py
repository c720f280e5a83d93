"""Weak to strong under a spurious correlation: does a student outdo the weak teacher that labels its
data, and what do the shares of the minority group in both data sets do to it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.intervals import Interval, seeds_interval
from steering.analysis.page import Report, Table
from steering.runs.record import RunRecord
from steering.studies import study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.config import RunConfig
    from steering.runs.ask import Ask

BASELINES = (
    "vanilla",
    "gce",
    "selection",
    "random_subset",
    "confidence",
    "adaptive",
    "self_training",
)
_CELL = "steering.studies.weak_to_strong_cells:cell"


@dataclass(frozen=True)
class WeakToStrongOptions:
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label → backbone: `config`, dotted keys over the run's (its model, what its head learns);
    `train`, further ones for the run that trains it, null for given weights; `layer`, whose output
    are the features."""
    students: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The same of the students."""
    test: str = "test"
    """Part of the held-out data on which all is measured; its groups count equally."""
    labelled: int = 150
    """Points that the teacher learns from."""
    unlabelled: int = 500
    """Points that the teacher labels and the student learns from."""
    validation: int = 100
    """Points whose labels by the teacher choose p and q."""
    labelled_shares: list[float] = field(default_factory=lambda: [0.05, 0.5])
    """Shares η_ℓ of the minority group among the labelled points."""
    unlabelled_shares: list[float] = field(default_factory=lambda: [0.05, 0.15, 0.3, 0.5])
    """Shares η_u among the unlabelled ones."""
    seeds: int = 8
    """Draws of the points."""
    p: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8, 1.0])
    """Shares of the unlabelled points that may be kept, those of least entropy."""
    q: list[float] = field(default_factory=lambda: [0.2, 0.5, 0.7, 1.0])
    """Orders of the generalised cross entropy."""
    decay: float = 1e-2
    """Weight decay of every head, on features of unit variance."""


@study("weak_to_strong", WeakToStrongOptions)
class WeakToStrong:
    """Weak teachers, strong students, and a spurious feature: gains by the shares of the minority."""

    def __init__(self, options: WeakToStrongOptions) -> None:
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:  # noqa: ARG002
        from steering.errors import ConfigError
        from steering.runs.ask import function_call

        given = self.options
        if not given.teachers or not given.students:
            raise ConfigError("studies.weak_to_strong: name at least one of teachers and students")
        found: list[Ask] = []
        backbones = {
            (role, label): _backbone(base, f"{role}-{label}", section, given.test)
            for role, sections in (("teacher", given.teachers), ("student", given.students))
            for label, section in sections.items()
        }
        for teacher in given.teachers:
            for student in given.students:
                parents = {
                    f"{role}_{part}": ask
                    for role, label in (("teacher", teacher), ("student", student))
                    for part, ask in backbones[role, label].items()
                }
                for arguments in self._cells():
                    axes = {
                        "teacher": teacher,
                        "student": student,
                        "labelled_share": arguments["labelled_share"],
                        "unlabelled_share": arguments["unlabelled_share"],
                        "seed": arguments["seed"],
                    }
                    name = "-".join(f"{value}" for value in axes.values())
                    found.append(
                        function_call(base, _CELL, arguments, f"cell-{name}", axes, **parents)
                    )
        return found

    def _cells(self) -> list[dict[str, Any]]:
        given = self.options
        same = {
            key: getattr(given, key)
            for key in ("test", "labelled", "unlabelled", "validation", "p", "q", "decay")
        }
        return [
            {**same, "labelled_share": one, "unlabelled_share": other, "seed": seed}
            for one in given.labelled_shares
            for other in given.unlabelled_shares
            for seed in range(given.seeds)
        ]

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        cells = [record for record in done if "labelled_share" in record.axes]
        pairs = list(dict.fromkeys((r.axes["teacher"], r.axes["student"]) for r in cells))
        tables: list[Table] = []
        for teacher, student in pairs:
            chosen = [
                r for r in cells if (r.axes["teacher"], r.axes["student"]) == (teacher, student)
            ]
            name = f"{teacher} → {student}"
            tables += [_accuracies(name, chosen), _baselines(name, chosen), _claims(name, chosen)]
            tables.append(_details(name, chosen))
        rows = [{**r.axes, "metrics": dict(r.metrics), **r.summary} for r in cells]
        intro = (
            "Accuracy on the test part, its groups counting equally, in percent; in brackets 95 % "
            "intervals over the draws of the points. η_ℓ and η_u are the shares of the minority "
            "group among the labelled and the unlabelled points. PGR is the share of the gap "
            "between teacher and ceiling that the student recovers; the ceiling learns from the "
            "true labels of the same points. p and q are chosen by the teacher's labels of "
            "separate points, never by true ones."
        )
        figures = {"": partial(_figure, cells, pairs)}
        return Report("weak_to_strong", f"{title}: weak to strong", intro, tables, rows, figures)


def _backbone(base: RunConfig, label: str, section: Mapping[str, Any], test: str) -> dict[str, Ask]:
    """Part → the run that stores a backbone's features."""
    from steering.config import with_overrides
    from steering.errors import ConfigError
    from steering.runs.ask import model_outputs, training

    if unknown := {*section} - {"config", "train", "layer"}:
        raise ConfigError(f"studies.weak_to_strong: {label}: unknown key {sorted(unknown)[0]!r}")
    plain = {"method": {"name": "erm"}, "reference": None, **section.get("config", {})}
    config = with_overrides(base, plain, f"studies.weak_to_strong: {label}")
    parents: dict[str, Any] = {}
    if section.get("train") is not None:
        trained = with_overrides(config, section["train"], f"studies.weak_to_strong: {label}")
        parents["model"] = training(trained, f"backbone-{label}")
    kind = f"hidden:{section['layer']}" if "layer" in section else "features"
    return {
        part: model_outputs(config, kind, part, f"features-{label}-{part}", **parents)
        for part in ("train", test)
    }


Cells = Mapping[tuple[float, float], Sequence[RunRecord]]


def _by_shares(records: Sequence[RunRecord]) -> dict[tuple[float, float], list[RunRecord]]:
    found: dict[tuple[float, float], list[RunRecord]] = {}
    for record in records:
        place = record.axes["labelled_share"], record.axes["unlabelled_share"]
        found.setdefault(place, []).append(record)
    return found


def _values(records: Sequence[RunRecord], name: str) -> list[float]:
    return [r.metrics[name] for r in records if name in r.metrics]


def _accuracies(name: str, records: Sequence[RunRecord]) -> Table:
    lines = []
    for (one, other), cell in _by_shares(records).items():
        gain = [r.metrics["vanilla/balanced"] - r.metrics["teacher/balanced"] for r in cell]
        lines.append(
            [
                f"{one:g} / {other:g}",
                *(
                    _shown(seeds_interval(_values(cell, f"{who}/balanced")))
                    for who in ("teacher", "vanilla", "enhanced", "ceiling")
                ),
                _shown(seeds_interval(gain), signed=True),
                _shown(seeds_interval(_values(cell, "vanilla/PGR"))),
                _shown(seeds_interval(_values(cell, "enhanced/PGR"))),
            ]
        )
    header = [
        "η_ℓ / η_u",
        "teacher",
        "vanilla",
        "enhanced",
        "ceiling",
        "gain",
        "PGR",
        "PGR enhanced",
    ]
    return Table(name, header, lines)


def _baselines(name: str, records: Sequence[RunRecord]) -> Table:
    lines = [
        [
            f"{one:g} / {other:g}",
            *(
                _shown(
                    seeds_interval(
                        [
                            r.metrics["enhanced/balanced"] - r.metrics[f"{who}/balanced"]
                            for r in cell
                        ]
                    ),
                    signed=True,
                )
                for who in BASELINES
            ),
        ]
        for (one, other), cell in _by_shares(records).items()
    ]
    header = ["η_ℓ / η_u", *(f"− {who.replace('_', ' ')}" for who in BASELINES)]
    return Table(f"{name}: Enhanced-W2S less each baseline, paired by draw", header, lines)


def _claims(name: str, records: Sequence[RunRecord]) -> Table:
    """What the theory predicts, each with its interval over the draws."""
    from scipy.stats import spearmanr

    cells, lines = _by_shares(records), []
    for one in dict.fromkeys(labelled for labelled, _ in cells):
        others = [other for labelled, other in cells if labelled == one]
        near = min(others, key=lambda other: abs(other - one))
        far = max(others, key=lambda other: abs(other - one))
        gains = {other: _gains(cells[one, other]) for other in others}
        seeds = set.intersection(*(set(found) for found in gains.values()))
        difference = [gains[near][seed] - gains[far][seed] for seed in sorted(seeds)]
        distance = [-abs(other - one) for other in others]
        ranks = [
            float(spearmanr([gains[other][seed] for other in others], distance).statistic)
            for seed in sorted(seeds)
            if len(others) > 2 and len({gains[other][seed] for other in others}) > 1
        ]
        lines.append(
            [
                f"{one:g}",
                _shown(seeds_interval(_values(cells[one, near], "vanilla/PGR"))),
                f"{near:g} − {far:g}: {_shown(seeds_interval(difference), signed=True)}",
                _plain(seeds_interval(ranks)) if ranks else "–",
            ]
        )
    header = [
        "η_ℓ",
        "PGR where the shares agree",
        "gain there less the far end",
        "Spearman with −|η_u − η_ℓ|",
    ]
    return Table(f"{name}: what the theory predicts", header, lines)


def _gains(records: Sequence[RunRecord]) -> dict[int, float]:
    return {
        r.axes["seed"]: r.metrics["vanilla/balanced"] - r.metrics["teacher/balanced"]
        for r in records
    }


def _details(name: str, records: Sequence[RunRecord]) -> Table:
    lines = []
    for (one, other), cell in _by_shares(records).items():
        pairs = [f"{r.summary['p']:g}, {r.summary['q']:g}" for r in cell]
        lines.append(
            [
                f"{one:g} / {other:g}",
                _shown(seeds_interval(_values(cell, "vanilla/share_weighted"))),
                _shown(seeds_interval(_values(cell, "vanilla/worst_group"))),
                _shown(seeds_interval(_values(cell, "enhanced/worst_group"))),
                _shown(seeds_interval(_values(cell, "vanilla/agreement"))),
                _shown(seeds_interval(_values(cell, "unlabelled/wrong_labels"))),
                _shown(seeds_interval(_values(cell, "unlabelled/kept_minority_share"))),
                max(set(pairs), key=pairs.count),
            ]
        )
    header = [
        "η_ℓ / η_u",
        "vanilla at η_u",
        "worst group",
        "worst, enhanced",
        "agrees with teacher",
        "wrong labels",
        "minority among the kept",
        "p, q most often",
    ]
    return Table(f"{name}: details", header, lines)


def _shown(found: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{100 * found.value:{sign}.1f}"
    if np.isnan(found.low):
        return text
    return f"{text} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def _plain(found: Interval) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _figure(cells: Sequence[RunRecord], pairs: Sequence[tuple[str, str]]) -> Figure:
    """Gain over the unlabelled share: measured with its band, and the theory's, scaled to fit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(pairs), 4.2), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    for ax, pair in zip(axes, pairs, strict=True):
        found = _by_shares([r for r in cells if (r.axes["teacher"], r.axes["student"]) == pair])
        gains = {place: seeds_interval([*_gains(cell).values()]) for place, cell in found.items()}
        theory = {
            place: float(np.mean(_values(cell, "theory/teacher")))
            - float(np.mean(_values(cell, "theory/student")))
            for place, cell in found.items()
        }
        measured = np.array([gains[place].value for place in found])
        expected = np.array([theory[place] for place in found])
        scale = float(expected @ measured / max(expected @ expected, 1e-300))
        for number, one in enumerate(dict.fromkeys(place[0] for place in found)):
            others = sorted(other for labelled, other in found if labelled == one)
            lines = [gains[one, other] for other in others]
            colour = f"C{number}"
            ax.plot(
                others, [100 * x.value for x in lines], "o-", color=colour, label=f"η_ℓ = {one:g}"
            )
            ax.fill_between(
                others,
                [100 * x.low for x in lines],
                [100 * x.high for x in lines],
                color=colour,
                alpha=0.15,
            )
            ax.plot(
                others, [100 * scale * theory[one, other] for other in others], "--", color=colour
            )
            ax.axvline(one, color=colour, linewidth=0.8, alpha=0.5)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{pair[0]} → {pair[1]}")
        ax.set_xlabel("minority share of the unlabelled points, η_u")
    axes[0].set_ylabel("student − teacher, points")
    axes[0].plot([], [], "--", color="grey", label="matrix formula, scaled")
    axes[0].legend(frameon=False)
    return figure
