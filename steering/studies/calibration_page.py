"""Tables and the figure of the audit's calibration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.calibration import number, rank_interval, share_interval
from steering.analysis.intervals import Interval
from steering.analysis.page import Table
from steering.analysis.signals import spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Combination:
    """One data set and reference, with what was seen before and what came out.

    Attributes:
        cell: the data set: label of each axis.
        signals: see `steering.analysis.signals`.
        gains: method -> gain over unguided training, with its interval.
        percent: whether the metric is a share, whose gains are shown in points.
    """

    cell: str
    reference: str
    signals: Mapping[str, float]
    gains: Mapping[str, Interval]
    percent: bool = True


@dataclass(frozen=True)
class Judged:
    """Predictions for one method.

    Attributes:
        row: of the JSON file, which the audit reads.
        alone: predictions that left out the combination, (combinations,).
        strict: predictions that left out its whole data set.
        strange: predictions that left out all combinations of its kind of reference; NaN where there
            is one kind alone.
        said: the verdict of each, from the strict ones.
    """

    method: str
    row: Mapping[str, Any]
    alone: np.ndarray
    strict: np.ndarray
    strange: np.ndarray
    said: Sequence[str]


def judged_table(judged: Sequence[Judged], found: Sequence[Combination]) -> Table:
    lines = []
    cells = [one.cell for one in found]
    percent = found[0].percent
    for one in judged:
        true = np.array([combination.gains[one.method].value for combination in found])
        ranks = [_ranked(rank_interval(one.alone, true, cells))]
        ranks += [_ranked(rank_interval(one.strict, true, cells))]
        ranks += [_within(one.strict, true, cells)]
        ranks += [_ranked(rank_interval(one.strange, true, cells))]
        ranks += [_within(one.strange, true, cells)]
        spread = one.row["ridge"]["spread"]
        lines.append([one.method, *ranks, number(spread, percent, ""), *_hits(one, found)])
    header = [
        "method",
        "order of all",
        "data set left out",
        "within a data set",
        "kind left out",
        "within a data set then",
        "error",
        "helps is right",
        "hurts is right",
        "sign is right",
    ]
    note = (
        "Spearman's correlation of the predicted with the true gain, in brackets 95 % of a bootstrap "
        "that draws whole data sets, as the combinations of one share its unguided runs; "
        "within a data set: the mean over data sets of the order of their references. Kind left out: "
        "foreseen from the other references alone. All else is with the data set left out. Error: root "
        f"mean square{_in_points(percent)}. Right: of the cases with that verdict whose gain's interval "
        "excludes zero, those with that sign; the sign: of all such cases. Their intervals are Wilson's, "
        "of cases that know nothing of each other; these share data sets, so the truth is somewhat wider."
    )
    return Table(f"foreseen in {len(found)} combinations", header, lines, note=note)


def _ranked(found: tuple[float, float, float]) -> str:
    if math.isnan(found[0]):
        return "–"
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _within(predicted: np.ndarray, true: np.ndarray, cells: Sequence[str]) -> str:
    places = [np.flatnonzero([one == cell for one in cells]) for cell in dict.fromkeys(cells)]
    ranks = [spearman(predicted[rows], true[rows]) for rows in places if len(rows) > 1]
    return "–" if not ranks or np.isnan(predicted).any() else f"{np.mean(ranks):.2f}"


def _hits(one: Judged, found: Sequence[Combination]) -> list[str]:
    """Of the combinations whose gain's interval excludes zero."""
    clear = [c.gains[one.method].low > 0 or c.gains[one.method].high < 0 for c in found]
    signs = [c.gains[one.method].value > 0 for c in found]
    cells = []
    for word, sign in (("helps", True), ("hurts", False)):
        rows = [n for n, said in enumerate(one.said) if said == word and clear[n]]
        cells.append(_share(sum(signs[n] == sign for n in rows), len(rows)))
    rows = [n for n in range(len(found)) if clear[n]]
    cells.append(_share(sum(signs[n] == (one.strict[n] > 0) for n in rows), len(rows)))
    return cells


def _share(hits: int, tries: int) -> str:
    _, low, high = share_interval(hits, tries)
    return f"{hits} of {tries} [{100 * low:.0f}, {100 * high:.0f} %]" if tries else "–"


def gain_table(found: Sequence[Combination], methods: Mapping[str, Any]) -> Table:
    lines = [
        [
            f"{one.cell}, {one.reference}",
            *(_signed(one.gains[method], one.percent) for method in methods),
        ]
        for one in found
    ]
    return Table("gain over unguided training", ["combination", *methods], lines)


def _signed(gain: Interval, percent: bool) -> str:
    value, low, high = (number(one, percent) for one in (gain.value, gain.low, gain.high))
    return value if math.isnan(gain.low) else f"{value} [{low}, {high}]"


def _in_points(percent: bool) -> str:
    """Behind the name of a gain."""
    return ", points" if percent else ""


def single_table(found: Sequence[Combination], names: Sequence[str]) -> Table:
    """Each signal's own correlation with the gains: no fit."""
    methods = [*found[0].gains]
    lines = []
    for name in names:
        values = np.array([one.signals[name] for one in found])
        true = [np.array([one.gains[method].value for one in found]) for method in methods]
        lines.append([name, *(f"{spearman(values, gains):+.2f}" for gains in true)])
    note = "Spearman's correlation of one signal with the true gain over all combinations; no fit."
    return Table("signals alone", ["signal", *methods], lines, note=note)


def scatter(found: Sequence[Combination], judged: Sequence[Judged]) -> Figure:
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    figure = Figure(figsize=(4 * len(judged), 3.8), layout="constrained")
    panels = figure.subplots(1, len(judged), squeeze=False)[0]
    scale, unit = 100 if found[0].percent else 1, _in_points(found[0].percent)
    for axes, one in zip(panels, judged, strict=True):
        for label in dict.fromkeys(c.reference for c in found):
            rows = [n for n, c in enumerate(found) if c.reference == label]
            gains = [found[n].gains[one.method] for n in rows]
            sides = np.array([[g.value - g.low, g.high - g.value] for g in gains]).T
            values = [scale * g.value for g in gains]
            sides = np.maximum(np.nan_to_num(scale * sides), 0)
            axes.errorbar(
                scale * one.strict[rows],
                values,
                sides,
                fmt="o",
                markersize=4,
                alpha=0.8,
                label=label,
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(one.method)
        axes.set_xlabel(f"gain foreseen{unit}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"gain measured{unit}")
    panels[0].legend(fontsize="small")
    return figure
