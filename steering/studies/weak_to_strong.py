"""Weak to strong under a spurious correlation: does a student outdo the weak teacher that labels its
data, and what do the shares of the minority group in both data sets do to it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.page import Report, Table
from steering.analysis.weak_to_strong_page import accuracies, baselines, claims, details, figure
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.distinct import require_distinct

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

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
        from steering.runs.call import calling

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
                parents: dict[str, Any] = {
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
                    found.append(calling(base, _CELL, arguments, f"cell-{name}", axes, **parents))
        require_distinct(found, "studies.weak_to_strong")
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
            tables += [accuracies(name, chosen), baselines(name, chosen), claims(name, chosen)]
            tables.append(details(name, chosen))
        rows = [{**r.axes, "metrics": dict(r.metrics), **r.summary} for r in cells]
        intro = (
            "Accuracy on the test part, its groups counting equally, in percent; in brackets 95 % "
            "intervals in which the draws of the points move by Student's t and the test points are "
            "drawn again; those of correlations and of the details are over the draws alone, and the "
            "backbones are the same in all. η_ℓ and η_u are the shares of the minority "
            "group among the labelled and the unlabelled points. PGR is the share of the gap "
            "between teacher and ceiling that the student recovers, over the draws that have a gap "
            "(so many of all, where some have none); the ceiling learns from the true labels of the "
            "same points. p and q are chosen by the teacher's labels of separate points, never by "
            "true ones."
        )
        figures = {"": partial(figure, cells, pairs)}
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
