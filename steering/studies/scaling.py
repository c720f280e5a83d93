"""The study of scaling: how fast the error falls with compute for each method, and how much data
steering saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.fits import Fit, fit_law, frontier
from steering.analysis.page import Report
from steering.analysis.points import COSTS, REFERENCE, Point, points_of, share_of
from steering.analysis.savings import savings
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.distinct import require_distinct
from steering.studies.scaling_page import (
    ahead_tables,
    data_figure,
    fit_row,
    law_table,
    laws_figure,
    point_table,
    savings_table,
)

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask


@dataclass(frozen=True)
class ScalingOptions:
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> a `method:` section; the first is the baseline."""
    sizes: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    """Label -> changes of the config that make the target larger."""
    samples: list[int] = field(default_factory=list)
    """Lengths of training, in `train.samples`; empty: the config's own."""
    shares: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Share of the data, such as "0.1" -> changes of the config; the largest is all."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of every run."""
    metric: str = "test/accuracy"
    """Its error falls: one minus a share of which more is better; what is lower when better, as it
    is."""
    cost: str = "flops"
    """C: "flops" of the training, "flops_with_reference" (its training and outputs too), "forward"
    (of one example times samples, as published), "samples" or "parameters"."""
    floor: bool = False
    """Fit an irreducible error; else it is 0."""
    frontier: bool = False
    """Fit only the runs that no cheaper ones reach."""
    ahead: float = 10.0
    """Extrapolate to so many times the largest cost."""


@study("scaling", ScalingOptions)
class Scaling:
    """Exponents of the error over compute, by method, and the share of the data that suffices."""

    def __init__(self, options: ScalingOptions) -> None:
        if not options.methods:
            raise ConfigError("studies.scaling.methods: empty; name at least one")
        if options.cost not in COSTS:
            raise ConfigError(
                f"studies.scaling.cost: expected one of {', '.join(COSTS)}, got {options.cost!r}"
            )
        if options.ahead <= 1:
            raise ConfigError(f"studies.scaling.ahead: expected above 1, got {options.ahead}")
        for label in options.shares:
            share_of(label)
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        if done:
            return []
        asks = [
            ask
            for share, changes in (self.options.shares or {"1": {}}).items()
            for ask in self._asks(base, share, changes)
        ]
        require_distinct(asks, "studies.scaling")
        # Before the others: a reference that is also one of the runs has its place among these.
        return [*_references(asks), *asks]

    def _asks(self, base: RunConfig, share: str, changes: Mapping[str, Any]) -> list[Ask]:
        """The runs on one share of the data."""
        from steering.config import method_section, with_method, with_overrides

        alone = replace(base, compare=type(base.compare)(), studies={})
        found: list[Ask] = []
        for size, larger in self.options.sizes.items():
            for samples in self.options.samples or [base.train.samples]:
                more = {**changes, **larger, "train.samples": samples}
                config = with_overrides(alone, more, "studies.scaling")
                for label, section in self.options.methods.items():
                    where = f"studies.scaling.methods.{label}"
                    steered = with_method(config, method_section(section), where)
                    if section.get("reference"):
                        steered = with_overrides(steered, {"reference": section["reference"]})
                    axes = {"method": label, "size": size, "samples": samples, "share": share}
                    found += self._seeds(steered, axes)
        return found

    def _seeds(self, config: RunConfig, axes: Mapping[str, Any]) -> list[Ask]:
        """A run for each seed."""
        from steering.runs.ask import training

        found: list[Ask] = []
        for seed in self.options.seeds:
            parts = [axes["method"], axes["size"], axes["samples"], axes["share"], f"seed{seed}"]
            name = "-".join(str(part) for part in parts if part != "")
            found.append(training(replace(config, seed=seed), name, {**axes, "seed": seed}))
        return found

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        options = self.options
        runs = points_of(done, options.metric, options.cost)
        whole = max((run.share for run in runs), default=1.0)
        fits, lawless = self._fits([run for run in runs if run.share == whole])
        tables = [point_table(runs, options.metric, lawless)]
        if fits:
            tables += [law_table(fits, options), *ahead_tables(fits, runs, options)]
        data = savings(runs, next(iter(options.methods)))
        tables += [savings_table(data, next(iter(options.methods)))] if data else []
        figures = {"": partial(laws_figure, runs, fits, options)} if fits else {}
        if data:
            figures["data"] = partial(data_figure, runs, options)
        return Report(
            "scaling",
            f"{title}: scaling of {', '.join(options.methods)}",
            f"E is the error of {options.metric}, as a fraction; C is {COSTS[options.cost]}.",
            tables,
            [run.row() for run in runs] + [fit_row(label, fit) for label, fit in fits.items()],
            figures,
        )

    def _fits(self, runs: Sequence[Point]) -> tuple[dict[str, Fit], dict[str, str]]:
        """Method -> law, none where there are too few costs; and method -> why its errors have none,
        such as a run that diverged, or one without an error."""
        found, lawless = {}, {}
        for label in self.options.methods:
            points: dict[float, list[float]] = {}
            drawn: dict[float, list[np.ndarray]] = {}
            for run in runs:
                if run.method == label:
                    points.setdefault(run.cost, []).append(run.error)
                    if run.drawn is not None:  # a better score is a smaller error
                        drawn.setdefault(run.cost, []).append(run.error + run.score - run.drawn)
            chosen = frontier(points) if self.options.frontier else points
            whole = all(len(drawn.get(cost, [])) == len(points[cost]) for cost in chosen)
            if len(chosen) >= (3 if self.options.floor else 2):
                try:
                    given = drawn if whole else None
                    found[label] = fit_law(chosen, self.options.floor, drawn=given)
                except ValueError as error:
                    lawless[label] = str(error)
        return found, lawless


def _references(asks: Sequence[Ask]) -> list[Ask]:
    """The runs that train the references: their cost counts."""
    from steering.runs.ask import renamed

    parents = [ask.parents[REFERENCE] for ask in asks if REFERENCE in ask.parents]
    return [renamed(parent, parent.label, {"role": REFERENCE}) for parent in parents]
