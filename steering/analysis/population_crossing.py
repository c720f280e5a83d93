"""Where curves of losses cross: epochs, or data, that a population saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from steering.analysis.intervals import LEVEL, Interval, over_seeds
from steering.analysis.population import DRAWS, Arm, Arms


def crossing(costs: Sequence[float], losses: Sequence[float], target: float) -> float:
    """The first cost at which a curve, straight between its points, is at most the target.

    Args:
        costs: ascending.

    Returns:
        The first cost where the curve begins below the target, infinity where it never gets there.
    """
    for place, loss in enumerate(losses):
        if loss > target:
            continue
        if place == 0:
            return float(costs[0])
        before = losses[place - 1]
        share = (before - target) / (before - loss)
        return float(costs[place - 1] + share * (costs[place] - costs[place - 1]))
    return math.inf


@dataclass(frozen=True)
class Matched:
    """How many times fewer epochs a curve takes until it is as good as an arm.

    Attributes:
        factor: the arm's epochs over those at the crossing of the mean curves, 0 where they do not
            cross, and its interval.
        share: of the draws in which they cross.
        at_once: the first point is as good already, so the factor is a lower bound.
    """

    factor: Interval
    share: float
    at_once: bool


def matched(curve: Sequence[tuple[float, Arm]], whole: Arm, draws: int = DRAWS) -> Matched:
    """The crossing of a curve with an arm's loss; seeds and examples are drawn again together."""
    seeds = [*whole.runs]
    costs, total = [epochs for epochs, _ in curve], whole.epochs()

    def factor(losses: Sequence[float], target: float) -> float:
        return total / crossing(costs, losses, target)

    means = [float(np.mean([*arm.values().values()])) for _, arm in curve]
    target = float(np.mean([*whole.values().values()]))
    found = _drawn(factor, curve, whole, seeds, draws)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    interval = Interval(factor(means, target), float(low), float(high), "seeds and examples")
    return Matched(interval, float(np.mean(np.array(found) > 0)), means[0] <= target)


def data_worth(curve: Sequence[tuple[float, Arm]], arm: Arm, draws: int = DRAWS) -> Interval:
    """How many times the data a single model needs to be as good as an arm.

    Where the curve of the single models' losses, straight in the logarithm of the data, first
    reaches the arm's loss: 1 where it is no better than the first of them, infinity where it is
    better than the last. Seeds and examples are drawn again together. (Straight in the data
    themselves, as a public leaderboard has it, the numbers would be larger.)
    """
    seeds = [s for s in arm.values() if all(s in one.values() for _, one in curve)]
    costs = [math.log2(factor) for factor, _ in curve]

    def worth(losses: Sequence[float], target: float) -> float:
        return float(np.exp2(crossing(costs, losses, target)))

    means = [float(np.mean([one.values()[s] for s in seeds])) for _, one in curve]
    value = worth(means, float(np.mean([arm.values()[s] for s in seeds])))
    found = np.sort(_drawn(worth, curve, arm, seeds, draws))
    # Of what may be infinite, values as they are: nothing between two of them.
    low, high = (float(found[round(q * (draws - 1))]) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Interval(value, low, high, "seeds and examples")


def _drawn(
    number: Callable[[Sequence[float], float], float],
    curve: Sequence[tuple[float, Arm]],
    arm: Arm,
    seeds: Sequence[int],
    draws: int,
) -> list[float]:
    """A number of a curve's losses and an arm's, under each draw of seeds and examples together."""

    def means(one: Arm) -> np.ndarray:
        return over_seeds(np.stack([one.drawn(s, draws) for s in seeds], axis=1))

    losses = np.stack([means(one) for _, one in curve], axis=1)  # (draws, points)
    pairs = zip(losses, means(arm), strict=True)
    return [number(row.tolist(), float(aim)) for row, aim in pairs]


def fewer_epochs(arms: Arms, allocation: str, kind: str = "learned") -> Matched | None:
    """How many times fewer epochs the chained population takes to match the independent models."""
    curve = arms.curve(allocation, "chain", kind)
    whole = arms.arm(allocation, "independent", "uniform")
    return None if whole is None or not curve else matched(curve, whole)
