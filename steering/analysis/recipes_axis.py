"""A proxy's losses over its learning rates, and the tuned target's: what the study of data recipes is
made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from steering.analysis.ranks import PairAgreement, pair_agreement, spearman
from steering.errors import SteeringError
from steering.runs.record import Metric, RunRecord

LOGGED = "loss/validation"  # a scalar of the log: the task's loss of the last evaluation
LOSSES = ("loss", "nll", "perplexity")  # what a metric's name says that is one


class Axis:
    """The proxy's losses over its learning rates, and the target's truth.

    Args:
        records: of the study.
        metric: the loss; "loss/validation": the last one of the log; empty: the first loss of the
            proxies, or else their first mean over examples, such as an accuracy (of which more is
            better).
        small: the small rate is at most the best one over this.
    """

    def __init__(self, records: Sequence[RunRecord], metric: str, small: float) -> None:
        self.proxies = [r for r in records if r.axes.get("scale") == "proxy"]
        self.targets = [r for r in records if r.axes.get("scale") == "target"]
        self.order0 = [r for r in records if r.axes.get("scale") == "order 0"]
        self.recipes = list(dict.fromkeys(r.axes["recipe"] for r in self.proxies))
        self.rates = sorted({r.axes["rate"] for r in self.proxies})
        self.metric, self.ratio = metric or _first_loss(self.proxies), small
        if self.metric == LOGGED:
            self.proxies, self.targets = (
                [_with_logged(record) for record in part] for part in (self.proxies, self.targets)
            )
        meaning = converged(self.proxies)[0].meaning[self.metric]
        self.sign = -1.0 if meaning.higher_is_better else 1.0
        self.log = meaning.exp  # a perplexity is looked at as the loss that it is made of

    @property
    def has_truth(self) -> bool:
        return bool(self.targets)

    def loss(self, record: RunRecord) -> float:
        """The metric as something to make small: nats for a perplexity."""
        if record.diverged:
            return float("nan")
        value = record.metrics[self.metric]
        return self.sign * (float(np.log(value)) if self.log else value)

    def losses(self, records: Sequence[RunRecord], rate: float) -> np.ndarray:
        """(recipes, seeds) at one rate; what is better when larger comes with the other sign."""
        found = {
            (r.axes["recipe"], r.axes["seed"]): self.loss(r)
            for r in records
            if r.axes["rate"] == rate
        }
        seeds = sorted({seed for _, seed in found})
        return np.array([[found[recipe, seed] for seed in seeds] for recipe in self.recipes])

    @cached_property
    def proxy(self) -> dict[float, np.ndarray]:
        """Rate → losses of the proxies, (recipes, seeds)."""
        return {rate: self.losses(self.proxies, rate) for rate in self.rates}

    @cached_property
    def tuned(self) -> np.ndarray:
        """The target's losses at the best rate of each recipe, (recipes, seeds)."""
        return self._every[self._best, np.arange(len(self.recipes))]

    @cached_property
    def _every(self) -> np.ndarray:
        """The target's losses, (rates, recipes, seeds)."""
        rates = sorted({r.axes["rate"] for r in self.targets})
        return np.stack([self.losses(self.targets, rate) for rate in rates])

    @cached_property
    def _best(self) -> np.ndarray:
        """Number of the target's best rate, (recipes,); one at which a run is no number has lost."""
        best: np.ndarray = known(self._every.mean(-1)).argmin(0)
        return best

    def at_the_edge(self) -> list[str]:
        """Recipes whose target is best at the smallest or largest rate that was tried: there may be
        a better one beyond."""
        last = len(self._every) - 1
        names = zip(self.recipes, self._best, self.truth, strict=True)
        return [
            name for name, best, truth in names if last and best in (0, last) and truth == truth
        ]

    @cached_property
    def truth(self) -> np.ndarray:
        return self.tuned.mean(-1)

    def without_truth(self) -> list[str]:
        """Recipes whose target is no number at any rate, as it diverged."""
        return [
            name for name, value in zip(self.recipes, self.truth, strict=True) if np.isnan(value)
        ]

    @cached_property
    def noise(self) -> np.ndarray:
        """Standard deviation of each truth, pooled over the recipes."""
        if self.tuned.shape[-1] < 2:
            return np.zeros(len(self.recipes))
        pooled = np.sqrt(self.tuned.var(-1, ddof=1).mean() / self.tuned.shape[-1])
        return np.full(len(self.recipes), pooled)

    @cached_property
    def usual(self) -> float:
        """The proxy's own best rate: of the least mean loss over the recipes. One at which fewer runs
        are no number goes first."""
        return min(
            self.rates,
            key=lambda rate: (
                np.isnan(self.proxy[rate]).sum(),
                float(known(self.proxy[rate].mean())),
            ),
        )

    @cached_property
    def small(self) -> float:
        """The largest rate that is at most the best one over the ratio; else the smallest there is."""
        low = [rate for rate in self.rates if rate <= self.usual / self.ratio * (1 + 1e-9)]
        return low[-1] if low else self.rates[0]

    def signal(self, rate: float) -> float:
        """Standard deviation over the recipes, of that over seeds (of a mean over the seeds)."""
        found = self.proxy[rate]
        if found.shape[-1] < 2:
            return float("nan")
        noise = np.sqrt(found.var(-1, ddof=1).mean() / found.shape[-1])
        return float(found.mean(-1).std(ddof=1) / max(noise, 1e-300))

    def drop(self, rate: float) -> float:
        """Share by which the training loss has fallen, median over the runs."""
        found = []
        for record in self.proxies:
            if record.axes["rate"] == rate:
                curve = [row["train/loss"] for row in record.curves() if "train/loss" in row]
                if len(curve) > 1:
                    found.append(1 - curve[-1] / curve[0])
        return float(np.median(found)) if found else float("nan")

    def agreement(self, rate: float) -> PairAgreement:
        return pair_agreement(self.proxy[rate].mean(-1), self.truth, self.noise)

    def alone(self, rate: float) -> np.ndarray:
        """Spearman's correlation with the truth of each seed's own ranking, (seeds,)."""
        return np.array([spearman(losses, self.truth) for losses in self.proxy[rate].T])

    def ceiling(self) -> float:
        """Spearman's correlation between two seeds of the tuned target, averaged over the pairs."""
        seeds = self.tuned.shape[-1]
        found = [
            spearman(self.tuned[:, i], self.tuned[:, j]) for i in range(seeds) for j in range(i)
        ]
        return float(np.mean(found)) if found else float("nan")

    def attainable(self) -> float:
        """About how well a proxy without any noise would correlate with the truth, which is a mean
        over seeds: √(k·r/(1 + (k − 1)·r)), r the correlation of two seeds (Spearman and Brown)."""
        seeds, r = self.tuned.shape[-1], max(self.ceiling(), 0.0)
        return float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)))

    def by_order0(self) -> np.ndarray | None:
        """Losses by frequencies alone, (recipes,)."""
        found = {r.axes["recipe"]: r.metrics["loss"] for r in self.order0}
        return np.array([found[recipe] for recipe in self.recipes]) if found else None


def _with_logged(record: RunRecord) -> RunRecord:
    """The record with the last validation loss of its log among its metrics."""
    if record.diverged or LOGGED in record.metrics:
        return record
    values = [row[LOGGED] for row in record.curves() if LOGGED in row]
    if not values:
        raise SteeringError(f"studies.recipes.metric: the log of {record.label} has no {LOGGED}")
    meaning = {**record.meaning, LOGGED: Metric(percent=False, higher_is_better=False)}
    return replace(record, metrics={**record.metrics, LOGGED: values[-1]}, meaning=meaning)


def _first_loss(records: Sequence[RunRecord]) -> str:
    """The metric that recipes are compared by: the first loss or perplexity, else the first mean over
    examples (an accuracy, an error), else the first that gets smaller. A calibration error is the
    last thing to choose data by."""
    first = converged(records)[0]
    meaning = first.meaning
    falling = [name for name, one in meaning.items() if not one.higher_is_better]
    losses = [
        name
        for name in falling
        if meaning[name].exp or any(word in name.lower() for word in LOSSES)
    ]
    means = [name for name, one in meaning.items() if one.of]
    return next(iter([*losses, *means, *falling, *first.metrics]))


def converged(records: Sequence[RunRecord]) -> list[RunRecord]:
    found = [record for record in records if not record.diverged]
    if not found:
        raise SteeringError("recipes: no proxy has finished without diverging; lower the rates")
    return found


def known(losses: np.ndarray) -> np.ndarray:
    """What is no number, as of a run that diverged, is the worst there is."""
    return np.where(np.isnan(losses), np.inf, losses)
