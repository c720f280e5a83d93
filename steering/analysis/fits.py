"""Scaling laws E = a·C^−β + e, fitted in log space, with a bootstrap over the seeds of every point.

Hestness et al. 2017, arXiv 1712.00409, and Hoffmann et al. 2022, arXiv 2203.15556, section 3.3, for
the form with an irreducible error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steering.analysis.intervals import LEVEL, Interval, student

DRAWS = 500
_STARTS = (0.0, 0.5, 0.9)  # floors to start from, as shares of the smallest error


@dataclass(frozen=True)
class Law:
    """E = a·C^−β + e.

    Attributes:
        log_a: natural logarithm of a.
        beta: the exponent; a higher one falls faster.
        floor: e, the irreducible error.
    """

    log_a: float
    beta: float
    floor: float = 0.0

    def at(self, cost: np.ndarray | float) -> np.ndarray:
        """The error at a cost."""
        return np.exp(self.log_a - self.beta * np.log(cost)) + self.floor

    def cost_of(self, error: float) -> float:
        """The cost at which the law reaches an error; infinity below its floor, or beyond what a
        number can hold."""
        if error <= self.floor or self.beta <= 0:
            return math.inf
        with np.errstate(over="ignore"):
            return float(np.exp((self.log_a - math.log(error - self.floor)) / self.beta))


@dataclass(frozen=True)
class Fit:
    """A law and what a bootstrap makes of it.

    Attributes:
        law: fitted to the mean log error of each cost.
        draws: laws of resampled runs; empty when no error could be estimated.
        residual: root mean square of log error, points against law.
        over: what was resampled: "seeds", "residuals" or "", and " and examples" behind it.
    """

    law: Law
    draws: Sequence[Law]
    residual: float
    over: str

    def exponent(self) -> Interval:
        return self._interval(self.law.beta, [one.beta for one in self.draws])

    def floor(self) -> Interval:
        return self._interval(self.law.floor, [one.floor for one in self.draws])

    def at(self, cost: float) -> Interval:
        """The error to expect at a cost, and the band of the bootstrap there: the law's own error,
        not that of one more run."""
        return self._interval(float(self.law.at(cost)), [float(one.at(cost)) for one in self.draws])

    def _interval(self, value: float, drawn: Sequence[float]) -> Interval:
        if not drawn:
            return Interval(value)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(value, float(low), float(high), self.over)


def fit_law(
    points: Mapping[float, Sequence[float]],
    floor: bool = False,
    draws: int = DRAWS,
    drawn: Mapping[float, Sequence[np.ndarray]] | None = None,
) -> Fit:
    """The law of some runs.

    Runs are resampled within each cost, the same draw for every call with as many costs and runs:
    methods with the same seeds are compared pair by pair. Deviations from a cost's mean are
    stretched by √(k/(k − 1)), k runs, and by Student's quantile over the normal one, as a plain
    bootstrap of few runs is too sure. Where a cost has one run only, the law's residuals are
    resampled over the costs, stretched likewise. All runs were evaluated on the same examples: a
    draw of these moves every cost at once, and is added.

    Args:
        points: cost → error of each run, all positive.
        floor: fit an irreducible error too; else it is 0.
        drawn: cost → error of each run under draws of the evaluated examples, the same draws for
            all, at least `draws` of them each; None: the examples stay.

    Raises:
        ValueError: a cost or an error is not positive and finite, or there are fewer costs than
            the law has parameters.
    """
    costs = np.array(sorted(points), dtype=np.float64)
    runs = [np.asarray(points[cost], dtype=np.float64) for cost in costs]
    _require(costs, runs, 3 if floor else 2)
    logs = [np.log(errors) for errors in runs]
    means = np.array([values.mean() for values in logs])
    law = _fitted(costs, means, floor, None)
    gaps = means - np.log(law.at(costs))
    residual = float(np.sqrt((gaps**2).mean()))
    generator = np.random.default_rng([len(costs), draws])
    if min(len(values) for values in logs) > 1:
        tables = np.stack([_seed_draws(values, draws, generator) for values in logs], axis=1)
        spare = sum(len(values) - 1 for values in logs)
        tables = means + student(spare) * (tables - means)
        over = "seeds"
    else:
        tables = _residual_draws(law, costs, gaps, 3 if floor else 2, draws, generator)
        over = "residuals" if len(tables) else ""
    if drawn is not None and len(tables):
        tables = tables + _example_moves(runs, [drawn[cost] for cost in costs], draws)
        over += " and examples"
    return Fit(law, [_fitted(costs, row, floor, law) for row in tables], residual, over)


def beats(one: Fit, other: Fit) -> tuple[float, Interval]:
    """Probability over the draws that the first exponent is the higher one, and the difference of
    the exponents; NaN without draws."""
    pairs = [(a.beta, b.beta) for a, b in zip(one.draws, other.draws, strict=False)]
    value = one.law.beta - other.law.beta
    if not pairs:
        return math.nan, Interval(value)
    gaps = np.array([a - b for a, b in pairs])
    low, high = np.quantile(gaps, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float((gaps > 0).mean()), Interval(value, float(low), float(high), one.over)


def frontier(points: Mapping[float, Sequence[float]]) -> dict[float, Sequence[float]]:
    """The costs whose mean error no smaller cost reaches: what compute buys at best."""
    kept: dict[float, Sequence[float]] = {}
    best = math.inf
    for cost in sorted(points):
        mean = float(np.mean(points[cost]))
        if mean < best:
            best, kept[cost] = mean, points[cost]
    return kept


def crossing(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """The smallest x at which a curve through the points reaches a level: straight between points
    over log x; NaN if it never does, the smallest x if it begins there.

    Args:
        x: increasing and positive, (n,).
        y: more is better, (n,); NaN, of a run that diverged, reaches nothing and is no point.
    """
    points = [(place, value) for place, value in zip(x, y, strict=True) if not math.isnan(value)]
    for number, (place, value) in enumerate(points):
        if not value >= level:
            continue
        if number == 0:
            return float(place)
        start, before = points[number - 1]
        share = (level - before) / (value - before)
        return float(start * (place / start) ** share)
    return math.nan


def _require(costs: np.ndarray, runs: Sequence[np.ndarray], least: int) -> None:
    if len(costs) < least:
        raise ValueError(f"a law needs runs of at least {least} different costs, got {len(costs)}")
    for cost, errors in zip(costs, runs, strict=True):
        if not (cost > 0 and math.isfinite(cost)):
            raise ValueError(f"cost {cost}: expected a positive number")
        if not len(errors) or not (np.isfinite(errors).all() and (errors > 0).all()):
            raise ValueError(f"errors at cost {cost:g}: expected positive numbers, got {errors}")


def _fitted(costs: np.ndarray, log_error: np.ndarray, floor: bool, start: Law | None) -> Law:
    """Least squares in log space; from several floors, or from a law that is near."""
    straight = _straight(costs, log_error)
    if not floor:
        return straight
    smallest = float(np.exp(log_error.min()))
    starts = [start] if start else [_begin(costs, log_error, s * smallest) for s in _STARTS]
    return min((_refined(costs, log_error, one) for one in starts), key=lambda found: found[0])[1]


def _straight(costs: np.ndarray, log_error: np.ndarray) -> Law:
    x = np.log(costs) - np.log(costs).mean()
    beta = -float((x * log_error).sum() / (x**2).sum())
    return Law(float(log_error.mean() + beta * np.log(costs).mean()), beta)


def _begin(costs: np.ndarray, log_error: np.ndarray, floor: float) -> Law:
    """The straight law of what is above a floor."""
    law = _straight(costs, np.log(np.maximum(np.exp(log_error) - floor, 1e-12)))
    return Law(law.log_a, law.beta, floor)


def _refined(costs: np.ndarray, log_error: np.ndarray, start: Law) -> tuple[float, Law]:
    """The squared error and the law that a local search ends at."""
    from scipy.optimize import least_squares

    middle = float(np.log(costs).mean())
    x = np.log(costs) - middle  # so that height and exponent hardly depend on each other

    def gaps(p: np.ndarray) -> np.ndarray:
        return np.log(np.exp(p[0] - p[1] * x) + p[2]) - log_error

    most = float(np.exp(log_error.min()))
    first = [start.log_a - start.beta * middle, start.beta, min(max(start.floor, 0.0), 0.99 * most)]
    bounds = ([-np.inf, -np.inf, 0.0], [np.inf, np.inf, most])
    found = least_squares(gaps, first, bounds=bounds, x_scale=[1.0, 0.1, most])
    height, beta, floor = (float(value) for value in found.x)
    return float(found.cost), Law(height + beta * middle, beta, floor)


def _seed_draws(values: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Mean log errors of resampled runs of one cost, (draws,)."""
    k = len(values)
    drawn = values[generator.integers(k, size=(draws, k))].mean(1)
    return values.mean() + math.sqrt(k / (k - 1)) * (drawn - values.mean())


def _example_moves(
    runs: Sequence[np.ndarray], drawn: Sequence[Sequence[np.ndarray]], draws: int
) -> np.ndarray:
    """By how much draws of the examples move the mean log error of each cost, (draws, costs). A draw
    without a wrong example has no logarithm: an error counts as a quarter of itself at least."""
    columns = []
    for errors, tables in zip(runs, drawn, strict=True):
        ratios = np.stack([one[:draws] for one in tables], axis=1) / errors  # (draws, runs)
        columns.append(np.log(np.maximum(ratios, 0.25)).mean(axis=1))
    return np.stack(columns, axis=1)


def _residual_draws(
    law: Law,
    costs: np.ndarray,
    gaps: np.ndarray,
    parameters: int,
    draws: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Log errors of the law with resampled residuals, (draws, costs); none without a residual to
    spare."""
    k = len(gaps)
    if k <= parameters:
        return np.empty((0, k))
    stretched = student(k - parameters) * math.sqrt(k / (k - parameters)) * gaps
    return np.log(law.at(costs)) + stretched[generator.integers(k, size=(draws, k))]
