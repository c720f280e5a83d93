"""Runs of a scaling study as points: what each cost and how it erred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steering.analysis.intervals import Bootstrap
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


@dataclass(frozen=True)
class Point:
    """One run: what it cost, how it erred, and its score, of which more is better.

    Attributes:
        drawn: the score under draws of the evaluated examples, (draws,), the same for every run;
            None where it is no mean over examples.
    """

    method: str
    size: str
    samples: int
    share: float
    seed: int
    cost: float
    error: float
    score: float
    drawn: np.ndarray | None = field(default=None, compare=False, repr=False)

    def row(self) -> dict[str, Any]:
        return {"kind": "run", **{k: one for k, one in vars(self).items() if k != "drawn"}}


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
    bootstrap, found = Bootstrap(), []
    for record in done:
        if "method" not in record.axes:
            continue
        axes = record.axes
        if metric not in record.metrics:
            known = ", ".join(record.metrics)
            raise SteeringError(f"studies.scaling.metric: no {metric!r}; the runs have {known}")
        value = record.metrics[metric]
        meaning = record.meaning.get(metric, Metric())
        share = share_of(axes["share"])
        drawn, sign = bootstrap.values(record, metric), meaning.sign
        found.append(
            Point(
                method=axes["method"],
                size=axes["size"],
                samples=axes["samples"],
                share=share,
                seed=axes["seed"],
                cost=cost_of(record, cost, by_key),
                error=error_of(value, meaning, metric),
                score=sign * value,
                drawn=None if drawn is None else sign * drawn,
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
