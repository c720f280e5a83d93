"""Do two rankings agree? Correlations of ranks, agreement of pairs, and what a wrong choice costs.

All values are losses: less is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from steering.analysis.intervals import DRAWS, LEVEL, Interval


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties with their average rank; NaN where one of them is
    constant.

    Args:
        one, other: (n,), n ≥ 2.
    """
    from scipy.stats import rankdata

    a, b = rankdata(one), rankdata(other)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


@dataclass(frozen=True)
class PairAgreement:
    """Over the pairs of items.

    Attributes:
        all: share of the pairs that both rankings order alike; a tie counts a half.
        clear: the same over the pairs whose true difference is more than two standard deviations of
            its noise; NaN where there is none.
        pairs, clear_pairs: how many.
    """

    all: float
    clear: float
    pairs: int
    clear_pairs: int


def pair_agreement(
    proxy: np.ndarray, truth: np.ndarray, noise: np.ndarray | float = 0.0
) -> PairAgreement:
    """How many pairs a proxy orders as the truth does.

    Args:
        proxy, truth: (n,).
        noise: standard deviation of each true value, (n,) or one number.
    """
    i, j = np.triu_indices(len(truth), 1)
    apart = truth[i] - truth[j]
    agree = 0.5 * (1 + np.sign(proxy[i] - proxy[j]) * np.sign(apart))
    spread = np.broadcast_to(np.asarray(noise, dtype=np.float64), truth.shape)
    clear = np.abs(apart) > 2 * np.hypot(spread[i], spread[j])
    return PairAgreement(
        float(agree.mean()) if len(agree) else float("nan"),
        float(agree[clear].mean()) if clear.any() else float("nan"),
        len(agree),
        int(clear.sum()),
    )


def regret(proxy: np.ndarray, truth: np.ndarray, k: int) -> float:
    """The best true value among the proxy's first k, less the best of all; in the unit of the truth.

    Never negative, not growing with k, zero at k = n. Of equal proxies the worse truth counts. NaN
    where a value is: a run has diverged, and there is no order.
    """
    if np.isnan(proxy).any() or np.isnan(truth).any():
        return float("nan")
    order = np.lexsort((-truth, proxy))
    return float(truth[order[:k]].min() - truth.min())


def over_items(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    one: np.ndarray,
    other: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """A statistic of paired values with its 95 % interval by a bootstrap over the items.

    Draws in which the statistic is not a number (all items the same) do not count.
    """
    rng = np.random.default_rng([len(one), seed])
    values = []
    for _ in range(draws):
        rows = rng.integers(len(one), size=len(one))
        value = statistic(one[rows], other[rows])
        if np.isfinite(value):
            values.append(value)
    found = statistic(one, other)
    if len(values) < draws / 2:
        return Interval(found)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(found, float(low), float(high), "items")
