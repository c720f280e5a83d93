"""How sure a number is: intervals over seeds, and over seeds and evaluated examples together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


def in_brackets(over: Iterable[str]) -> str:
    """A sentence that says what the intervals of a table are, from the `over` of each."""
    words = {
        "seeds and examples": "by Student's t over the seeds and a bootstrap over the evaluated "
        f"examples, paired in both ({DRAWS:,} draws)",
        "examples": f"of a bootstrap over the evaluated examples ({DRAWS:,} draws): another seed may "
        "differ by more",
        "seeds": "by Student's t over the seeds, for what is no mean over examples",
    }
    said = [words[one] for one in dict.fromkeys(over) if one]
    if not said:
        return "No interval: one seed without scores of its examples, or a run that diverged."
    return f"In brackets the 95 % interval {', or '.join(said)}."


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
        that were kept, or one of them is of a single example."""
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
            if len(score.values) < 2:  # drawn again it would always be the same
                return None
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


def over_seeds(table: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
    """Means over seeds as they may have been with other seeds, (draws,).

    The mean of a draw is moved by Σᵢ mᵢxᵢ: m is a random direction across the seeds, Σᵢ mᵢ = 0, so
    long that the central 95 % of the moves are Student's interval. The moves are the same for every
    table of as many seeds, so that whatever is common to the runs of a seed stays so in a number of
    several tables. Seeds are few, and drawing them with replacement would be too sure.

    Args:
        table: a value of each seed under each draw (of the examples), (draws, seeds).
        values: of each seed on the examples as they are, (seeds,); None: the means over the draws.
    """
    seeds = table.shape[1]
    if seeds == 1:
        return table[:, 0]
    own = table.mean(axis=0) if values is None else values
    moved: np.ndarray = table.mean(axis=1) + _moves(seeds, len(table)) @ own
    return moved


@cache
def _moves(seeds: int, draws: int) -> np.ndarray:
    """Weights m of `over_seeds`, (draws, seeds).

    m·x is normal with the deviation s/√k, times Student's quantile over the normal one. Directions
    come with their opposites, lengths are one of each slice of equal probability.
    """
    from scipy.special import chdtri

    half = -(-draws // 2)
    generator = np.random.default_rng([seeds, draws])
    across = generator.standard_normal((half, seeds))
    across -= across.mean(axis=1, keepdims=True)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    length = np.sqrt(chdtri(seeds - 1, (generator.permutation(half) + 0.5) / half))
    one = student(seeds - 1) / math.sqrt(seeds * (seeds - 1)) * length[:, None] * across
    found: np.ndarray = np.concatenate([one, -one])[:draws]
    return found


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
    return over_both(differences, columns)


def over_both(values: Sequence[float], columns: Sequence[np.ndarray]) -> Interval:
    """The mean over the seeds of a number, with the central 95 % of draws in which seeds and examples
    move.

    Args:
        values: of each seed, on the examples as they are.
        columns: of each seed, the number under the draws of examples, the same ones for all, (draws,).
    """
    drawn = np.mean(columns, axis=0)  # (draws,), over examples
    if len(values) > 1:
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        drawn = drawn + error * _students(len(values) - 1, len(drawn))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    over = "seeds and examples" if len(values) > 1 else "examples"
    return Interval(float(np.mean(values)), float(low), float(high), over)


def _alike(one: RunRecord, other: RunRecord, name: str) -> bool:
    """Whether two runs were evaluated on as many examples, part by part."""
    mine, theirs = one.scores(), other.scores()
    return all(len(mine[part].values) == len(theirs[part].values) for part in one.meaning[name].of)
