"""How sure a number is: intervals over seeds, and over seeds and evaluated examples together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from steering.analysis.halves import Half
from steering.runs.record import Metric, RunRecord, Scores

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; `over` says what was drawn again: "seeds and examples",
    "seeds", "examples" or ""."""

    value: float
    low: float = math.nan
    high: float = math.nan
    over: str = ""


def seeds_interval(values: Sequence[float]) -> Interval:
    """Mean and Student's t interval over independent values; without an interval for fewer than
    two."""
    from scipy.special import stdtrit

    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Interval(mean)
    half = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, "seeds")


def value_of(metric: Metric, means: Sequence[np.ndarray | float]) -> np.ndarray:
    """A metric from the means of the scores that it is made of."""
    mean = np.mean(np.stack([np.asarray(one, dtype=np.float64) for one in means]), axis=0)
    return np.exp(mean) if metric.exp else mean


@dataclass
class Bootstrap:
    """Draws of evaluated examples, the same for every run: so runs are compared on the same
    examples.

    A metric of a run under every draw is computed once, however often it is compared.

    Attributes:
        draws: how many.
        half: the examples that count; None: all.
    """

    draws: int = DRAWS
    half: Half | None = None
    _seen: dict[tuple[str, str], np.ndarray | None] = field(default_factory=dict)

    def value(self, run: RunRecord, name: str) -> float:
        """The metric on the examples that count; NaN where a half of them cannot be told."""
        if self.half is None:
            return run.metrics[name]
        metric, scores = run.meaning.get(name, Metric()), run.scores()
        if not metric.of or any(part not in scores for part in metric.of):
            return math.nan
        means = [self._counted(scores[part]).mean() for part in metric.of]
        return float(value_of(metric, means))

    def _counted(self, score: Scores) -> Scores:
        if self.half is None:
            return score
        mask = self.half.mask(len(score.values))
        return Scores(score.values[mask], score.weights[mask])

    def values(self, run: RunRecord, name: str) -> np.ndarray | None:
        """The metric under each draw of the examples, (draws,); None when it is not made of scores
        that were kept."""
        place = run.key, name
        if place not in self._seen:
            self._seen[place] = self._values(
                run.meaning.get(name), run.scores() if name in run.meaning else {}
            )
        return self._seen[place]

    def _values(self, metric: Metric | None, scores: Mapping[str, Scores]) -> np.ndarray | None:
        if metric is None or not metric.of or any(part not in scores for part in metric.of):
            return None
        means = []
        for number, part in enumerate(metric.of):
            score = self._counted(scores[part])
            counts = _counts(len(score.values), self.draws, number)
            means.append(
                (counts @ (score.values * score.weights))
                / np.maximum(counts @ score.weights, 1e-300)
            )
        return value_of(metric, means)


@cache
def _counts(n: int, draws: int, stream: int) -> np.ndarray:
    """How often each of n examples is drawn, (draws, n); scores of one metric that are of other
    examples have other streams."""
    generator = np.random.default_rng([n, stream])
    return generator.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def over_seeds(table: np.ndarray) -> np.ndarray:
    """Means over seeds that are drawn with replacement, (draws,), from (draws, seeds).

    How far a mean is from that of all seeds is stretched by √(k/(k − 1)), k seeds, and by Student's
    quantile over the normal one: a plain bootstrap of a few is too sure.
    """
    seeds = table.shape[1]
    if seeds == 1:
        return table[:, 0]
    chosen = np.random.default_rng(table.shape).integers(seeds, size=table.shape)
    whole = table.mean(axis=1)
    far: np.ndarray = np.take_along_axis(table, chosen, axis=1).mean(axis=1) - whole
    return whole + student(seeds - 1) * math.sqrt(seeds / (seeds - 1)) * far


@cache
def _students(freedom: int, draws: int) -> np.ndarray:
    """Draws of Student's t, one of each slice of equal probability, in any order, (draws,): the
    tails of two seeds are too long to leave them to chance."""
    from scipy.special import stdtrit

    order = np.random.default_rng([freedom, draws]).permutation(draws)
    found: np.ndarray = stdtrit(freedom, (order + 0.5) / draws)
    return found


def student(freedom: int) -> float:
    """How much wider Student's 95 % interval is than the normal one."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2) / ndtri((1 + LEVEL) / 2))


def paired_difference(
    runs: Mapping[int, RunRecord],
    baseline: Mapping[int, RunRecord],
    name: str,
    bootstrap: Bootstrap,
) -> Interval | None:
    """Mean difference of a metric to a baseline over the seeds that both have; None without such a
    seed.

    Runs of one seed are a pair, and so is an example under both. The interval is the central 95 %
    of draws in which both move: examples are drawn with replacement, and the mean over the seeds
    is moved by Student's t. Seeds are few, and drawing them with replacement, too, would be too
    sure: of three it covers the truth five times in six. For a metric that is no mean of scores it is
    Student's over the seeds. With one seed the draws are of examples alone: how another seed would
    do stays open.

    Args:
        runs, baseline: seed -> run.
    """
    seeds = [
        seed
        for seed in runs
        if seed in baseline and name in runs[seed].metrics and name in baseline[seed].metrics
    ]
    if not seeds:
        return None
    differences = [
        bootstrap.value(runs[seed], name) - bootstrap.value(baseline[seed], name) for seed in seeds
    ]
    pairs = [
        (bootstrap.values(runs[seed], name), bootstrap.values(baseline[seed], name))
        for seed in seeds
    ]
    columns = [mine - other for mine, other in pairs if mine is not None and other is not None]
    # Without scores there is nothing to compare the numbers of.
    if len(columns) < len(seeds) or not all(
        _alike(runs[seed], baseline[seed], name) for seed in seeds
    ):
        return seeds_interval(differences)
    drawn = np.mean(columns, axis=0)  # (draws,), over examples
    if len(seeds) > 1:
        error = np.std(differences, ddof=1) / math.sqrt(len(seeds))
        drawn = drawn + error * _students(len(seeds) - 1, bootstrap.draws)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    over = "seeds and examples" if len(seeds) > 1 else "examples"
    return Interval(float(np.mean(differences)), float(low), float(high), over)


def _alike(one: RunRecord, other: RunRecord, name: str) -> bool:
    """Whether two runs were evaluated on as many examples, part by part."""
    mine, theirs = one.scores(), other.scores()
    return all(len(mine[part].values) == len(theirs[part].values) for part in one.meaning[name].of)
