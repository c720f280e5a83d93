"""When a run first reaches another one's final score, and by how much earlier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from steering.analysis.intervals import Interval, seeds_interval
from steering.runs.record import RunRecord


@dataclass(frozen=True)
class Reached:
    """What a run had taken when an evaluation of it first reached a score."""

    samples: float
    seconds: float
    flops: float


def reached(run: RunRecord, name: str, score: float) -> Reached | None:
    """At the first evaluation, in order of steps, that is at least as good; None when there is
    none."""
    better = run.meaning[name].higher_is_better if name in run.meaning else True
    seconds = {row["step"]: row["train/seconds"] for row in run.curves() if "train/seconds" in row}
    for row in sorted(
        (row for row in run.curves() if f"eval/{name}" in row), key=lambda row: row["step"]
    ):
        value = row[f"eval/{name}"]
        if value >= score if better else value <= score:
            share = row["step"] / max(run.cost.steps, 1)
            return Reached(
                run.cost.trained * share, seconds.get(row["step"], math.nan), run.cost.flops * share
            )
    return None


@dataclass(frozen=True)
class Speedup:
    """How many times less a method takes until it is as good as a baseline at its end.

    Attributes:
        reached: seeds in which it gets there, of `seeds`.
        samples, seconds, flops: baseline's over own, geometric mean over the seeds in which it gets
            there.
        with_reference: of the FLOPs, those of training the reference and of computing its outputs
            added to its own.
    """

    reached: int
    seeds: int
    samples: Interval | None
    seconds: Interval | None
    flops: Interval | None
    with_reference: Interval | None


def speedup(
    runs: Mapping[int, RunRecord],
    baseline: Mapping[int, RunRecord],
    name: str,
    reference_flops: Mapping[str, float],
) -> Speedup | None:
    """Seed by seed, the run until the baseline's final score against the whole baseline; None
    without a common seed.

    Args:
        reference_flops: key of a run -> FLOPs of training the reference that it is built on; 0 for
            one that was given.
    """
    seeds = [seed for seed in runs if seed in baseline and name in baseline[seed].metrics]
    if not seeds:
        return None
    ratios: dict[str, list[float]] = {
        "samples": [],
        "seconds": [],
        "flops": [],
        "with_reference": [],
    }
    for seed in seeds:
        run, plain = runs[seed], baseline[seed]
        found = reached(run, name, plain.metrics[name])
        if found is None:
            continue
        steering = reference_flops.get(run.key, 0.0) + run.cost.reference_flops * run.cost.stored
        ratios["samples"].append(plain.cost.trained / found.samples)
        ratios["seconds"].append(
            plain.cost.seconds / found.seconds if found.seconds > 0 else math.nan
        )
        ratios["flops"].append(plain.cost.flops / found.flops if found.flops > 0 else math.nan)
        ratios["with_reference"].append(
            plain.cost.flops / (found.flops + steering) if found.flops > 0 else math.nan
        )
    means = {key: _geometric(values) for key, values in ratios.items()}
    return Speedup(len(ratios["samples"]), len(seeds), **means)


def _geometric(values: list[float]) -> Interval | None:
    """Geometric mean, with Student's interval of the logarithms."""
    sound = [value for value in values if value > 0 and math.isfinite(value)]
    if not sound:
        return None
    logs = seeds_interval(np.log(sound).tolist())
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.over)
