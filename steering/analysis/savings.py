"""The share of the data at which a method is as good as a baseline on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from steering.analysis.fits import crossing
from steering.analysis.intervals import DRAWS, LEVEL, over_seeds
from steering.analysis.points import Point

Curve = Mapping[float, Mapping[int, Point]]  # share -> seed -> run, in order of shares


@dataclass(frozen=True)
class Saving:
    """The share of the data at which a method is as good as the baseline on all of them.

    Attributes:
        level: the baseline's mean score on all the data.
        share: where a straight curve over log share crosses it; NaN if it never does.
        low, high: its 95 % interval, over what `over` says; a draw that never gets there counts as
            infinite. NaN where none gets there, or nothing could be drawn again.
        reached: share of the draws in which it does; NaN without draws.
        smallest, largest: the shares tried. A value at the smallest one may be smaller still.
        over: "seeds and examples", "seeds", "examples" or "", as of an `Interval`.
    """

    size: str
    samples: int
    method: str
    level: float
    share: float
    low: float
    high: float
    reached: float
    smallest: float
    largest: float
    over: str

    def shown(self, share: float, times: bool = False) -> str:
        """A share as text, or how many times fewer data it is; with a sign where it may be beyond
        those tried."""
        beyond, under, worth = (
            ("< 1", "≥ ", f"{self.largest / share:.2f}")
            if times
            else (f"> {self.largest:g}", "≤ ", f"{share:.3g}")
        )
        if not math.isfinite(share):
            return beyond
        return under + worth if share <= self.smallest else worth

    def text(self, times: bool = False) -> str:
        """The share, or how many times fewer data, with its interval."""
        text = self.shown(self.share, times)
        if math.isnan(self.low):
            return text
        ends = (self.high, self.low) if times else (self.low, self.high)
        return f"{text} [{', '.join(self.shown(end, times) for end in ends)}]"


def savings(runs: Sequence[Point], baseline: str) -> list[Saving]:
    """For every size and length with several shares, and every method; none where the baseline has
    no score on all the data."""
    found: list[Saving] = []
    for size, samples in dict.fromkeys((run.size, run.samples) for run in runs):
        mine = [run for run in runs if (run.size, run.samples) == (size, samples)]
        base = _curve(mine, baseline)
        for label in dict.fromkeys(run.method for run in mine) if len(base) > 1 else ():
            one = _saving(size, samples, label, _curve(mine, label), base)
            found += [] if one is None else [one]
    return found


def curve(runs: Sequence[Point], method: str) -> dict[float, list[float]]:
    """Share -> scores by seed, in order of shares."""
    by_share = _curve(runs, method).items()
    return {share: [run.score for run in seeds.values()] for share, seeds in by_share}


def _curve(runs: Sequence[Point], method: str) -> Curve:
    found: dict[float, dict[int, Point]] = {}
    for run in sorted(runs, key=lambda one: (one.share, one.seed)):
        if run.method == method:
            found.setdefault(run.share, {})[run.seed] = run
    return found


def _saving(size: str, samples: int, label: str, mine: Curve, base: Curve) -> Saving | None:
    """None without a seed that all runs have, or without a score of the baseline there."""
    whole = base[max(base)]
    seeds = [seed for seed in whole if all(seed in runs for runs in mine.values())]
    rows = [*mine.values(), whole]  # the last one is what is to be reached
    scores = np.array([[runs[seed].score for seed in seeds] for runs in rows])
    if not seeds or math.isnan(scores[-1].mean()):
        return None
    shares = [*mine]
    drawn, over = _drawn([[runs[seed] for seed in seeds] for runs in rows], scores)
    places = np.array([crossing(shares, draw[:-1], draw[-1]) for draw in drawn])
    places = np.sort(np.nan_to_num(places, nan=math.inf))
    low = high = reached = math.nan
    if len(places):
        reached = float(np.isfinite(places).mean())
    if reached > 0:
        # Of what may be infinite, values as they are: nothing between two of them.
        ends = [round(q * (len(places) - 1)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)]
        low, high = (float(places[end]) for end in ends)
    level = float(scores[-1].mean())
    share = crossing(shares, scores[:-1].mean(1), level)
    tried = shares[0], shares[-1]
    return Saving(size, samples, label, level, share, low, high, reached, *tried, over)


def _drawn(rows: Sequence[Sequence[Point]], scores: np.ndarray) -> tuple[np.ndarray, str]:
    """Mean scores of every row under draws of its seeds and examples, (draws, rows), and what was
    drawn; the same draws for all rows. No draws of one seed without scores."""
    known = [point.drawn for row in rows for point in row]
    whole = all(one is not None for one in known)
    seeds = len(scores[0])
    if not whole and seeds == 1:
        return np.empty((0, len(rows))), ""
    tables = [
        np.stack([point.drawn for point in row], axis=1)  # type: ignore[misc]  # all are there
        if whole
        else np.tile(own, (DRAWS, 1))
        for row, own in zip(rows, scores, strict=True)
    ]
    means = [over_seeds(table, own) for table, own in zip(tables, scores, strict=True)]
    over = [name for name, some in (("seeds", seeds > 1), ("examples", whole)) if some]
    return np.stack(means, axis=1), " and ".join(over)
