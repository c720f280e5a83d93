"""What a recipe does to training examples before they get their numbers: leave out what stands there
twice, filter, repeat, mix.

All are pure functions of what is there and of a seed. What comes out is numbered 0 .. n−1 anew, so a
copy is an example of its own.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from steering.data import uniform
from steering.errors import SteeringError
from steering.plugins import load_file, load_module
from steering.reading import Tally, report_once

from .numbers import read_scores

DEDUP = ("none", "exact", "near")
# Keys of the hash, beside those of the tasks (1 to 9): what shares a key shares its draws, and a
# choice by one would sort the other.
_COPY, _MIX = 21, 22


@dataclass
class Filter:
    """Which examples stay, by a function or by scores."""

    function: str | None = None
    """A function of yours, "file.py:name", that says whether an example stays."""
    scores: str | None = None
    """A file with a number for each example: FILE.npy, FILE.npz:KEY, FILE.pt:KEY, or text with one
    a line."""
    share: float = 0.5
    """scores: share of the examples that stays."""
    lowest: bool = False
    """scores: those of the lowest ones stay, not of the highest."""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SteeringError(f"share: expected a number in (0, 1], got {self.share}")
        if self.function is not None and ":" not in self.function:
            raise SteeringError(f"function: expected 'file.py:name', got {self.function!r}")


@dataclass
class Duplicate:
    """Some examples stand there several times, as in a careless crawl."""

    share: float = 0.0
    """Share of the examples that are repeated, drawn by the seed."""
    times: int = 2
    """How often each of these stands there."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise SteeringError(f"share: expected a number in [0, 1], got {self.share}")
        if self.times < 1:
            raise SteeringError(f"times: expected at least 1, got {self.times}")


def require_dedup(value: str) -> None:
    """SteeringError unless it is one of `DEDUP`."""
    if value not in DEDUP:
        raise SteeringError(f"dedup: expected one of {', '.join(DEDUP)}, got {value!r}")


def require_share(name: str, value: float) -> None:
    """SteeringError, which names the key, unless the value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise SteeringError(f"{name}: expected a number in [0, 1], got {value}")


def require_part(part: tuple[float, float]) -> None:
    """SteeringError unless it is [low, high] with 0 ≤ low < high ≤ 1, as shares of the examples."""
    low, high = part
    if not 0 <= low < high <= 1:
        raise SteeringError(
            f"part: expected [low, high] with 0 <= low < high <= 1, got {[low, high]}"
        )


def first_ones(keys: Sequence[Hashable], what: str, others: Iterable[Hashable] = ()) -> np.ndarray:
    """Rows of the first example of each key, int64, ascending; a line in the log counts the others.

    Args:
        keys: equal for examples that count as one; None: of an example that is always kept.
        what: the examples, in the plural, for the log.
        others: keys of examples that stand elsewhere, such as reserved ones: no row has one of
            these.
    """
    seen: set[Hashable] = {key for key in others if key is not None}
    rows = []
    for row, key in enumerate(keys):
        if key is None or key not in seen:
            rows.append(row)
        if key is not None:
            seen.add(key)
    _report("task.data.dedup", what, len(rows), {"duplicates": len(keys) - len(rows)})
    return np.array(rows, dtype=np.int64)


def filtered(
    given: Filter, n: int, passes: Callable[[int], str | None], what: str, *, own: bool
) -> np.ndarray:
    """Rows that pass a filter, int64, ascending; a line in the log counts those left out, by reason.

    Args:
        n: how many examples there are.
        passes: row → why it is left out by the task's own rules or by the function; None: it stays.
        own: whether `passes` has anything to say.

    Raises:
        SteeringError: the scores do not fit, or nothing is left.
    """
    reasons: Counter[str] = Counter()
    stays = np.ones(n, dtype=bool)
    if given.scores is not None:
        stays = best(_scores(given.scores, n, what), given.share, given.lowest)
        reasons["by their score"] = int((~stays).sum())
    for row in np.flatnonzero(stays).tolist() if own else ():
        if (why := passes(row)) is not None:
            stays[row] = False
            reasons[why] += 1
    if not stays.any():
        raise SteeringError(f"task.data.filter: none of {n:,} {what} is left")
    _report("task.data.filter", what, int(stays.sum()), reasons)
    return np.flatnonzero(stays)


def best(scores: np.ndarray, share: float, lowest: bool) -> np.ndarray:
    """Which are among the share of the highest (or lowest) scores, bool, (n,): round(share·n) of
    them, at least one; of equal ones the earlier."""
    count = max(1, math.floor(share * len(scores) + 0.5))
    order = np.argsort(scores if lowest else -scores, kind="stable")
    found = np.zeros(len(scores), dtype=bool)
    found[order[:count]] = True
    return found


def find_filter(name: str) -> Callable[..., object]:
    """The function of a filter; SteeringError when there is none of that name."""
    key = "task.data.filter.function"
    where, _, attribute = name.rpartition(":")
    found = vars((load_file if where.endswith(".py") else load_module)(where, key)).get(attribute)
    if not callable(found):
        raise SteeringError(f"{key}: {where} has no function {attribute!r}")
    function: Callable[..., object] = found
    return function


def duplicated(given: Duplicate, n: int, seed: int, what: str) -> np.ndarray:
    """Rows 0 .. n−1 and, behind them, the copies, int64. Who is repeated depends on (seed, row)
    alone."""
    rows = np.arange(n)
    drawn = rows[uniform(seed, _COPY, rows) < given.share]
    found = np.concatenate([rows, np.tile(drawn, given.times - 1)])
    report_once(
        f"task.data.duplicate: {len(drawn):,} of {n:,} {what} stand {given.times} times, "
        f"{len(found):,} in all",
        logging.INFO,
    )
    return found


def mixed_rows(
    kind: np.ndarray, weights: np.ndarray, seed: int, names: Sequence[str], what: str = "blocks"
) -> np.ndarray:
    """As many rows in which the kinds stand in the proportion of `weights`, (k,): some repeated, some
    left out.

    The counts are the nearest whole numbers with the right sum (largest remainders). A line in the
    log says how many of each kind there are now, and how often one stands at most.

    Args:
        kind: of each example, int64, (n,), below k.
        names: of the kinds, for messages.

    Raises:
        SteeringError: weights that are no finite numbers >= 0 with a positive sum, or a weight for
            a kind without examples.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (weights > 0).any()):
        raise SteeringError(
            f"mix: expected finite weights >= 0 that are not all zero, got {weights.tolist()}"
        )
    have = np.bincount(kind, minlength=len(weights))
    if len(have) > len(weights):
        raise SteeringError(
            f"mix: expected a weight for each of {len(have)} domains, got {len(weights)}"
        )
    if empty := [names[int(one)] for one in np.flatnonzero((weights > 0) & (have == 0))]:
        raise SteeringError(
            f"mix: no {what.removesuffix('s')} to draw from {', '.join(empty)}; expected a weight of 0, "
            "or more text or `part`"
        )
    scaled = weights / weights.max()  # so that no sum of large weights overflows
    exact = scaled / scaled.sum() * len(kind)
    wanted = np.floor(exact).astype(np.int64)
    most = np.argsort(wanted - exact, kind="stable")[: len(kind) - wanted.sum()]
    wanted[most] += 1
    rows = []
    for number, count in enumerate(wanted):
        own = np.flatnonzero(kind == number)
        order = own[np.argsort(uniform(seed, _MIX, own), kind="stable")]
        rows.append(np.resize(order, count))
    _report_mix(weights, wanted, have, names, what)
    return np.concatenate(rows)


def _report_mix(
    weights: np.ndarray, wanted: np.ndarray, have: np.ndarray, names: Sequence[str], what: str
) -> None:
    parts = []
    for name, weight, count, own in zip(
        names, weights.tolist(), wanted.tolist(), have.tolist(), strict=True
    ):
        few = f": its weight {weight:g} is too small for one" if weight > 0 and not count else ""
        often = f", each up to {-(-count // own):,} times" if count > own else ""
        parts.append(f"{name} {count:,} (of {own:,}{few}{often})")
    gone = ((wanted == 0) & (have > 0)).any()
    report_once(
        f"task.data.mix: {what} of {', '.join(parts)}", logging.WARNING if gone else logging.INFO
    )


def _scores(file: str, n: int, what: str) -> np.ndarray:
    found = read_scores(file, "task.data.filter.scores")
    if len(found) != n:
        raise SteeringError(
            f"task.data.filter.scores: {file} has {len(found):,} numbers for {n:,} {what}"
        )
    return found


def _report(key: str, what: str, left: int, reasons: Counter[str] | dict[str, int]) -> None:
    gone = Counter({why: count for why, count in reasons.items() if count})
    Tally(left, gone).report(key, what, "the training data")


def kept_by_scores(scores: np.ndarray, share: float, lowest: bool, what: str) -> np.ndarray:
    """Rows of the share of the lowest (or highest) scores, int64, ascending; those without a score,
    NaN, never stay. A line in the log counts those left out."""
    known = np.flatnonzero(~np.isnan(scores))
    if not len(known):
        raise SteeringError(f"task.data.derive: there is no score for any of the {what}")
    stays = known[best(scores[known], share, lowest)]
    reasons = {
        "by their score": len(known) - len(stays),
        "without a score": len(scores) - len(known),
    }
    _report("task.data.derive.keep", what, len(stays), reasons)
    return stays


def say_labels(changed: np.ndarray, run: str) -> None:
    """A line in the log: how many labels are others than before, bool, (n,)."""
    report_once(
        f"task.data.derive: labels of {len(changed):,} examples from {run}; {int(changed.sum()):,} are "
        "others than before",
        logging.INFO,
    )
