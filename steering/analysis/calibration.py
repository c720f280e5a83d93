"""Ridge regression of outcomes on signals, with honest errors: every prediction that is judged
leaves out the case it is about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridge penalties that are tried, in units of one standardised case."""

SURE = 2 / 3
"""Probability from which on an outcome is a verdict."""


@dataclass(frozen=True)
class Ridge:
    """y ≈ intercept + Σ coefficient·(x − center)/scale.

    Attributes:
        names: of the signals.
        center, scale: of each, over the cases; a constant signal has scale 1 and coefficient 0.
        spread: root mean square of the errors of predictions that leave the case's group out.
        low, high: range of each signal over the cases.
        cases: how many there were.
    """

    names: tuple[str, ...]
    center: tuple[float, ...]
    scale: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    penalty: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    cases: int
    spread: float = math.nan

    def predict(self, signals: Mapping[str, float]) -> float:
        """The outcome to expect; a signal beyond the cases' range counts as the nearest of them.

        Raises:
            ValueError: a signal is missing or not finite.
        """
        missing = [n for n in self.names if not math.isfinite(signals.get(n, math.nan))]
        if missing:
            raise ValueError(f"no value of {', '.join(missing)}, which the calibration uses")
        values = np.array([signals[name] for name in self.names], dtype=np.float64)
        z = (np.clip(values, self.low, self.high) - self.center) / np.array(self.scale)
        return float(self.intercept + z @ np.array(self.coefficients))

    def outside(self, signals: Mapping[str, float]) -> list[str]:
        """Signals beyond the range of the cases."""
        ranges = zip(self.names, self.low, self.high, strict=True)
        return [name for name, low, high in ranges if not low <= signals[name] <= high]

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def ridge_of(plain: Mapping[str, Any]) -> Ridge:
    """What `Ridge.plain` has written, read back from JSON; ValueError for one of gains that are no
    numbers."""
    if None in [*plain["coefficients"], plain["intercept"]]:
        raise ValueError("a ridge regression of gains that are no numbers")
    lists = {key: tuple(value) for key, value in plain.items() if isinstance(value, list | tuple)}
    return Ridge(**{**plain, **lists})


def fit_ridge(
    cases: Sequence[Mapping[str, float]],
    outcomes: Sequence[float],
    groups: Sequence[str],
    names: Sequence[str],
) -> Ridge:
    """The ridge regression whose penalty predicts left-out groups best.

    Args:
        cases: signals of each case.
        outcomes: what came out.
        groups: a case's group; the cases of a group are left out together.
        names: signals to use.
    """
    x, y = _table(cases, names), np.asarray(outcomes, dtype=np.float64)
    penalty = _best_penalty(x, y, groups)
    made = _fit(x, y, names, penalty)
    errors = left_out(cases, outcomes, groups, names) - y
    return replace(made, spread=float(np.sqrt((errors**2).mean())))


def left_out(
    cases: Sequence[Mapping[str, float]],
    outcomes: Sequence[float],
    groups: Sequence[str],
    names: Sequence[str],
) -> np.ndarray:
    """For each case the prediction of a regression that has seen no case of its group, (n,).

    The penalty, too, is chosen without that group.
    """
    x, y = _table(cases, names), np.asarray(outcomes, dtype=np.float64)
    found = np.full(len(y), np.nan)
    for group in dict.fromkeys(groups):
        mine = np.array([one == group for one in groups])
        rest = [one for one in groups if one != group]
        penalty = _best_penalty(x[~mine], y[~mine], rest)
        made = _fit(x[~mine], y[~mine], names, penalty)
        found[mine] = [made.predict(cases[int(place)]) for place in np.flatnonzero(mine)]
    return found


def rank_interval(
    predicted: np.ndarray, true: np.ndarray, groups: Sequence[str], draws: int = 2000
) -> tuple[float, float, float]:
    """Spearman's correlation and its 95 % interval of a bootstrap that draws whole groups; NaN where
    nothing was predicted."""
    from steering.analysis.signals import spearman

    if np.isnan(predicted).any():
        return math.nan, math.nan, math.nan
    members = [np.flatnonzero([g == group for g in groups]) for group in dict.fromkeys(groups)]
    generator = np.random.default_rng([len(true), len(members)])
    drawn = []
    for _ in range(draws):
        chosen = generator.integers(len(members), size=len(members))
        rows = np.concatenate([members[place] for place in chosen])
        drawn.append(spearman(predicted[rows], true[rows]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return spearman(predicted, true), float(low), float(high)


def share_interval(hits: int, tries: int) -> tuple[float, float, float]:
    """A share and its 95 % interval (Wilson); NaN without a try."""
    if not tries:
        return math.nan, math.nan, math.nan
    z, share = 1.959964, hits / tries
    middle = (share + z**2 / (2 * tries)) / (1 + z**2 / tries)
    root = math.sqrt(share * (1 - share) / tries + z**2 / (4 * tries**2))
    half = z * root / (1 + z**2 / tries)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def chances(mean: float, spread: float, margin: float) -> dict[str, float]:
    """Probabilities that a normal outcome is above the margin ("helps"), within it ("no matter"),
    below ("hurts")."""
    from scipy.special import ndtr

    spread = max(spread, 1e-12)
    above = float(ndtr((mean - margin) / spread))
    below = float(ndtr((-margin - mean) / spread))
    return {"helps": above, "no matter": max(0.0, 1 - above - below), "hurts": below}


def verdict(odds: Mapping[str, float]) -> str:
    """The outcome that is at least `SURE`; "open" when none is."""
    word = max(odds, key=lambda one: odds[one])
    return word if odds[word] >= SURE else "open"


def number(value: float, percent: bool, sign: str = "+") -> str:
    """A gain, or with sign "" an error, as text: in points where the metric is a share."""
    return f"{100 * value:{sign}.1f}" if percent else f"{value:{sign}.3f}"


def _table(cases: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    return np.array([[case[name] for name in names] for case in cases], dtype=np.float64)


def _fit(x: np.ndarray, y: np.ndarray, names: Sequence[str], penalty: float) -> Ridge:
    center, deviation = x.mean(0), x.std(0)
    scale = np.where(deviation > 1e-12, deviation, 1.0)
    z = np.where(deviation > 1e-12, (x - center) / scale, 0.0)
    gram = z.T @ z + penalty * np.eye(len(names))
    coefficients = np.linalg.solve(gram, z.T @ (y - y.mean()))
    numbers = (center, scale, coefficients, x.min(0), x.max(0))
    middle, width, found, low, high = (tuple(map(float, one)) for one in numbers)
    return Ridge(
        tuple(names), middle, width, found, float(y.mean()), penalty, low, high, cases=len(y)
    )


def _best_penalty(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> float:
    """By the squared error on left-out groups; the largest when there are no two groups."""
    parts = [np.array([one == group for one in groups]) for group in dict.fromkeys(groups)]
    if len(parts) < 2:
        return PENALTIES[-1]
    names = [str(column) for column in range(x.shape[1])]
    errors = {
        penalty: sum(_error(x, y, names, penalty, mine) for mine in parts) for penalty in PENALTIES
    }
    return min(errors, key=lambda penalty: errors[penalty])


def _error(
    x: np.ndarray, y: np.ndarray, names: Sequence[str], penalty: float, mine: np.ndarray
) -> float:
    made = _fit(x[~mine], y[~mine], names, penalty)
    z = (np.clip(x[mine], made.low, made.high) - made.center) / np.array(made.scale)
    return float(((made.intercept + z @ np.array(made.coefficients) - y[mine]) ** 2).sum())
