"""Runs of a scaling study as points: what each cost and how it erred, and the share of the data that
suffices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.analysis.fits import crossing
from steering.errors import ConfigError, SteeringError
from steering.runs.record import Metric, RunRecord

REFERENCE = "reference"
COSTS = {
    "flops": "the FLOPs of the training",
    "flops_with_reference": "the FLOPs of the training, the reference's training and outputs",
    "forward": "the FLOPs of a forward pass on one example times samples",
    "samples": "samples trained on",
    "parameters": "parameters of the target",
}
"""What C can be."""
DRAWS = 1000  # of the seeds, for the share of the data


@dataclass(frozen=True)
class Point:
    """One run: what it cost, how it erred, and its score, of which more is better."""

    method: str
    size: str
    samples: int
    share: float
    seed: int
    cost: float
    error: float
    score: float

    def row(self) -> dict[str, Any]:
        return {"kind": "run", **vars(self)}


def share_of(label: str, key: str = "studies.scaling.shares") -> float:
    """A label of `shares` as a number. Raises ConfigError when it is none in (0, 1]."""
    try:
        share = float(label)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"{key}: expected a number in (0, 1], got {label!r}")
    return share


def points_of(done: Sequence[RunRecord], metric: str, cost: str) -> list[Point]:
    """The study's records as points; of equal runs that only differ in a seed the cost is the
    same.

    Raises:
        SteeringError: a run has no such metric, or its cost is unknown.
    """
    by_key = {record.key: record for record in done}
    found = []
    for record in done:
        if "method" not in record.axes:
            continue
        axes = record.axes
        if metric not in record.metrics:
            known = ", ".join(record.metrics)
            raise SteeringError(f"studies.scaling.metric: no {metric!r}; the runs have {known}")
        value = record.metrics[metric]
        meaning = record.meaning.get(metric, Metric())
        found.append(
            Point(
                method=axes["method"],
                size=axes["size"],
                samples=axes["samples"],
                share=share_of(axes["share"]),
                seed=axes["seed"],
                cost=cost_of(record, cost, by_key),
                error=error_of(value, meaning, metric),
                score=value if meaning.higher_is_better else -value,
            )
        )
    return found


def error_of(value: float, meaning: Metric, name: str) -> float:
    """What should fall to zero."""
    if not meaning.higher_is_better:
        return value
    if meaning.percent:
        return 1 - value
    raise SteeringError(
        f"studies.scaling.metric: {name} has no error: more of it is better, and it is no share"
    )


def cost_of(record: RunRecord, cost: str, by_key: Mapping[str, RunRecord]) -> float:
    """C of a run. Raises SteeringError when it could not be counted."""
    spent = record.cost
    found = {
        "flops": spent.flops,
        "flops_with_reference": flops_with_reference(record, by_key),
        "forward": spent.forward_flops * spent.trained,
        "samples": spent.trained,
        "parameters": spent.parameters,
    }[cost]
    if found <= 0:
        raise SteeringError(
            f"studies.scaling.cost: the {cost} of {record.label} could not be counted; choose another"
        )
    return float(found)


def flops_with_reference(record: RunRecord, by_key: Mapping[str, RunRecord]) -> int:
    """FLOPs of a run, of training its reference, and of computing the reference's outputs.

    Args:
        by_key: key -> record of the runs that train references; one that was given costs nothing.
    """
    spent, parent = record.cost, by_key.get(record.parents.get(REFERENCE, ""))
    outputs = spent.stored * spent.reference_flops
    return spent.flops + outputs + (parent.cost.flops if parent else 0)


@dataclass(frozen=True)
class Saving:
    """The share of the data at which a method is as good as the baseline on all of them.

    Attributes:
        level: the baseline's mean score on all the data.
        share: where a straight curve over log share crosses it; NaN if it never does.
        low, high: 95 % of a bootstrap over the seeds.
        reached: share of the draws in which it does.
    """

    size: str
    samples: int
    method: str
    level: float
    share: float
    low: float
    high: float
    reached: float


def savings(runs: Sequence[Point], baseline: str) -> list[Saving]:
    """For every size and length with several shares, and every method."""
    found: list[Saving] = []
    for size, samples in dict.fromkeys((run.size, run.samples) for run in runs):
        mine = [run for run in runs if (run.size, run.samples) == (size, samples)]
        curves = {label: curve(mine, label) for label in dict.fromkeys(r.method for r in mine)}
        if len(curves[baseline]) > 1:
            found += [
                _saving(size, samples, label, one, curves[baseline])
                for label, one in curves.items()
            ]
    return found


def curve(runs: Sequence[Point], method: str) -> dict[float, list[float]]:
    """Share -> scores by seed, in order of shares."""
    found: dict[float, list[float]] = {}
    for run in sorted(runs, key=lambda one: (one.share, one.seed)):
        if run.method == method:
            found.setdefault(run.share, []).append(run.score)
    return found


def _saving(
    size: str,
    samples: int,
    label: str,
    scores: Mapping[float, Sequence[float]],
    baseline: Mapping[float, Sequence[float]],
) -> Saving:
    shares = [*scores]
    table = np.array([scores[share] for share in shares])  # (shares, seeds)
    full = np.array(baseline[max(baseline)])
    level = float(full.mean())
    generator = np.random.default_rng([len(full), DRAWS])
    seeds = generator.integers(len(full), size=(DRAWS, len(full)))  # runs of a seed are a pair
    drawn = [crossing(shares, table[:, s].mean(1), full[s].mean()) for s in seeds]
    known = [share for share in drawn if math.isfinite(share)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    share = crossing(shares, table.mean(1), level)
    return Saving(size, samples, label, level, share, float(low), float(high), len(known) / DRAWS)
