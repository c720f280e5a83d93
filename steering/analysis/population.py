"""What the records of a population say: losses of its arms, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from steering.analysis.intervals import Interval, over_both, seeds_interval
from steering.runs.record import RunRecord, Scores

DRAWS = 1000


@dataclass(frozen=True)
class Arm:
    """One way to spend the epochs.

    Attributes:
        name: for tables.
        runs: seed → the record whose scores hold it.
        plan: which of that record's mixtures.
        block: test examples that a bootstrap draws together.
    """

    name: str
    runs: Mapping[int, RunRecord]
    plan: str
    block: int = 1

    def values(self, metric: str = "nll") -> dict[int, float]:
        """Seed → the metric; without the seeds that have none."""
        name = f"{self.plan}/{metric}"
        return {s: r.metrics[name] for s, r in self.runs.items() if name in r.metrics}

    def weights(self, seed: int) -> list[float]:
        found: list[float] = self.runs[seed].summary["weights"][self.plan]
        return found

    def forwards(self) -> float:
        """Models that one prediction asks, mean over the seeds."""
        return float(np.mean([np.count_nonzero(self.weights(seed)) for seed in self.runs]))

    def epochs(self) -> float:
        """Epochs of all training that it is built on, mean over the seeds."""
        return float(np.mean([self._epochs(seed) for seed in self.runs]))

    def _epochs(self, seed: int) -> float:
        axes = self.runs[seed].axes
        if "lengths" not in axes:
            return float(axes["epochs"])
        # Of single models of several lengths one is used.
        return float(axes["lengths"][int(np.argmax(self.weights(seed)))])

    def drawn(self, seed: int, draws: int = DRAWS) -> np.ndarray:
        """The loss under draws of the test examples, (draws,); the same draws for every arm."""
        return drawn_means(self.runs[seed].scores()[f"{self.plan}/nll"], draws, self.block)


def drawn_means(score: Scores, draws: int, block: int = 1) -> np.ndarray:
    """Means of a score under draws of its examples, (draws,).

    Args:
        block: neighbours that are drawn together; the last block may be shorter.
    """
    starts = np.arange(0, len(score.values), block)
    sums = np.add.reduceat(score.values * score.weights, starts)
    weights = np.add.reduceat(score.weights, starts)
    counts = _counts(len(starts), draws)
    found: np.ndarray = (counts @ sums) / (counts @ weights)
    return found


@cache
def _counts(n: int, draws: int) -> np.ndarray:
    generator = np.random.default_rng([n, draws])
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def difference(mine: Arm, other: Arm, draws: int = DRAWS) -> Interval | None:
    """Mean difference of the loss over the seeds that both have, with its 95 % interval over seeds and
    examples, both paired; None without such a seed."""
    seeds = [seed for seed in mine.values() if seed in other.values()]
    if not seeds:
        return None
    values = [mine.values()[seed] - other.values()[seed] for seed in seeds]
    return over_both(values, [mine.drawn(s, draws) - other.drawn(s, draws) for s in seeds])


class Arms:
    """The arms of every allocation, from the records of the study.

    Args:
        block: test examples that a bootstrap draws together.
    """

    def __init__(self, done: Sequence[RunRecord], block: int = 1) -> None:
        self.all, self.block = {record.key: record for record in done}, block
        self._mixes: dict[tuple[str, str], dict[int, RunRecord]] = {}
        for record in done:
            if "arm" in record.axes:
                place = record.axes["allocation"], record.axes["arm"]
                self._mixes.setdefault(place, {})[record.axes["seed"]] = record
        self.allocations = list(dict.fromkeys(label for label, _ in self._mixes))

    def arm(self, allocation: str, arm: str, plan: str, name: str = "") -> Arm | None:
        """None where nothing of it has been done."""
        runs = self._mixes.get((allocation, arm), {})
        having = {seed: run for seed, run in runs.items() if f"{plan}/nll" in run.metrics}
        return Arm(name or f"{arm}, {plan}", having, plan, self.block) if having else None

    def tops(self, allocation: str) -> list[int]:
        """Numbers of members that were kept."""
        runs = self._mixes.get((allocation, "chain"), {})
        plans = {plan for run in runs.values() for plan in run.summary["weights"]}
        return sorted(int(plan.removeprefix("learned@")) for plan in plans if "learned@" in plan)

    def flops(self, arm: Arm) -> float:
        """Of all training that an arm is built on, mean over the seeds."""
        found = []
        for seed, run in arm.runs.items():
            keys = self._ancestors(run)
            if "lengths" in run.axes:
                chosen = int(np.argmax(arm.weights(seed)))
                keys = {run.parents[sorted(run.parents)[chosen]]}
            found.append(sum(self.all[key].cost.flops for key in keys if key in self.all))
        return float(np.mean(found))

    def _ancestors(self, run: RunRecord) -> set[str]:
        found: set[str] = set()
        waiting = [*run.parents.values()]
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting += self.all[key].parents.values() if key in self.all else ()
        return found

    def curve(self, allocation: str, arm: str, kind: str) -> list[tuple[float, Arm]]:
        """(epochs, arm) of the mixtures of the first cycles, or of the first models, ascending."""
        runs = self._mixes.get((allocation, arm), {})
        if not runs:
            return []
        some = next(iter(runs.values()))
        groups = [plan.partition(":")[2] for plan in some.summary["weights"] if ":" in plan]
        points = [(float(group), f"{kind}:{group}") for group in dict.fromkeys(groups)]
        points.append((float(some.axes["budget"]), kind))
        found = [(epochs, self.arm(allocation, arm, plan)) for epochs, plan in sorted(points)]
        return [(epochs, one) for epochs, one in found if one is not None]

    def singles(self, allocation: str) -> list[tuple[float, float]]:
        """(epochs, mean loss over the seeds) of the single models."""
        runs = [*self._mixes.get((allocation, "single"), {}).values()]
        if not runs:
            return []
        lengths = runs[0].axes["lengths"]
        losses = [[one["test"] for one in run.summary["members"]] for run in runs]
        return [*zip(map(float, lengths), np.mean(losses, axis=0).tolist(), strict=True)]

    def size(self, allocation: str) -> str:
        """Trajectories × cycles × epochs of a cycle."""
        axes = next(
            one.axes for one in self.all.values() if one.axes.get("allocation") == allocation
        )
        p, c = axes["trajectories"], axes["cycles"]
        return f"{p} × {c} × {axes['budget'] / (p * c):g}"

    def more_data(self, allocation: str) -> list[tuple[float, Arm]]:
        """(times the data, best single model there), ascending; nothing unless there is more than
        the data as they are."""
        factors = [
            float(arm.removeprefix("data-"))
            for label, arm in self._mixes
            if label == allocation and arm.startswith("data-")
        ]
        found = [(1.0, self.arm(allocation, "single", "best"))] if factors else []
        found += [(f, self.arm(allocation, f"data-{f:g}", "best")) for f in sorted(factors)]
        return [(factor, arm) for factor, arm in found if arm is not None]

    def rows(self) -> list[dict[str, Any]]:
        """Everything in full digits."""
        return [
            {**record.axes, "metrics": dict(record.metrics), **record.summary}
            for record in self.all.values()
            if "arm" in record.axes
        ]


def mean_of(values: Mapping[int, float]) -> Interval:
    """Mean over the seeds, with Student's interval."""
    return seeds_interval([*values.values()])
