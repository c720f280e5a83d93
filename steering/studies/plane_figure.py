"""The figure of the plane study: contours of the gain, and what the plane is famous for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.plane import ORIGIN, Cell
from steering.analysis.trials import Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = 12
"""Contours from as bad as the best is good to the best."""


class Stretch:
    """A value of the grid -> its place on an axis: linear up to the smallest positive value of both
    lists, by the logarithm above. Both axes have the same, so a ray of slope 1 stays straight."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        positive = [value for cell in cells for value in (cell.x, cell.y) if value > 0]
        self.unit = min(positive, default=1.0)

    def __call__(self, value: float) -> float:
        ratio = value / self.unit
        return ratio if ratio <= 1 else 1 + math.log2(ratio)


def figure(trials: Trials[Cell], published: float | None, plain: str) -> Figure:
    """Gains over unguided training on the tuning half.

    Args:
        published: 1/τ of DRRho as published.
        plain: what unguided training is called.
    """
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    cells = [one for one in trials.candidates if trials.race.last(one) >= 0]
    gains = {one: trials.gain(one, ORIGIN).value for one in cells}
    gains = {one: gain for one, gain in gains.items() if math.isfinite(gain)}
    place = Stretch(trials.candidates)
    xs, ys = (sorted({getattr(one, axis) for one in trials.candidates}) for axis in ("x", "y"))
    px, py = ([place(value) for value in values] for values in (xs, ys))
    drawn = Figure(figsize=(2.6 + 1.0 * len(xs), 2.6 + 0.7 * len(ys)), layout="constrained")
    axes = drawn.subplots()
    edges = _edges(px), _edges(py)
    axes.set(xlim=(edges[0][0], edges[0][-1]), ylim=(edges[1][0], edges[1][-1]))
    _contours(drawn, axes, trials, gains, (xs, ys), (px, py))
    for cell, gain in gains.items():
        mark = "*" if cell in trials.region else ""  # as the table has it
        said = f"{trials.number(gain)}{mark} ({trials.race.last(cell) + 1})"
        at = place(cell.x), place(cell.y)
        axes.annotate(said, at, (0, -7), textcoords="offset points", ha="center", va="top", size=7)
    _region(axes, trials, (xs, ys), edges)
    _places(axes, trials, place, published, plain)
    _lines(axes, (xs, ys))
    axes.set_xticks(px, [f"{x:g}" for x in xs])
    axes.set_yticks(py, [f"{y:g}" for y in ys])
    axes.set(xlabel="1/τ: how sharp the adversary is", ylabel="κ: trust in the reference")
    axes.set_title("gain over unguided training, and the round of its runs", size=8)
    drawn.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return drawn


def _edges(places: list[float]) -> list[float]:
    """Where the cells of a row meet, and its two ends."""
    if len(places) == 1:
        return [places[0] - 0.5, places[0] + 0.5]
    middle = [(a + b) / 2 for a, b in pairwise(places)]
    first, last = places[0] - (middle[0] - places[0]), places[-1] + (places[-1] - middle[-1])
    return [first, *middle, last]


def _contours(
    drawn: Figure,
    axes: Any,
    trials: Trials[Cell],
    gains: Mapping[Cell, float],
    values: tuple[list[float], list[float]],
    places: tuple[list[float], list[float]],
) -> None:
    """Blue is better. What is worse by more than the best is better is as red as can be: one
    hopeless corner would leave no colours for the others."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    better = trials.meaning.sign * trials.meaning.scale
    (xs, ys), (px, py) = values, places
    table = np.full((len(ys), len(xs)), np.nan)
    for cell, gain in gains.items():
        table[ys.index(cell.y), xs.index(cell.x)] = better * gain
    most = abs(np.nanmax(table)) if gains else 1.0
    colours = Normalize(-(most or 1.0), most or 1.0)
    levels = np.linspace(colours.vmin, colours.vmax, LEVELS + 1)  # type: ignore[arg-type]
    known = np.isfinite(table)
    # Between four cells, three of which are known; a row or a column has no surface.
    if min(table.shape) > 1 and _corners(known).max() >= 3:
        masked = np.ma.masked_invalid(table)
        same = {"levels": levels, "zorder": 0}
        axes.contourf(px, py, masked, cmap="RdBu", norm=colours, alpha=0.8, extend="both", **same)
        axes.contour(
            px, py, masked, colors="white", linewidths=0.6, negative_linestyles="solid", **same
        )
    row, column = np.nonzero(known)
    axes.scatter(
        np.array(px)[column],
        np.array(py)[row],
        c=table[known],
        cmap="RdBu",
        norm=colours,
        s=40,
        edgecolors="black",
        linewidths=0.6,
    )
    label = "better than unguided by" + (", points" if trials.meaning.percent else "")
    drawn.colorbar(ScalarMappable(colours, "RdBu"), ax=axes, label=label, extend="min", alpha=0.8)


def _corners(known: np.ndarray) -> np.ndarray:
    """How many of the four cells around each meeting point are known, (rows − 1, columns − 1)."""
    one = known.astype(int)
    return one[:-1, :-1] + one[1:, :-1] + one[:-1, 1:] + one[1:, 1:]


def _region(
    axes: Any,
    trials: Trials[Cell],
    values: tuple[list[float], list[float]],
    edges: tuple[list[float], list[float]],
) -> None:
    """The outline of the cells that are not told from the best: their sides without a neighbour."""
    from matplotlib.collections import LineCollection

    (xs, ys), (ex, ey) = values, edges
    inside = np.zeros((len(ys) + 2, len(xs) + 2), dtype=bool)
    for cell in trials.region:
        inside[ys.index(cell.y) + 1, xs.index(cell.x) + 1] = True
    if not inside.any():
        return
    upright = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1])  # (row, edge)
    flat = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1])  # (edge, column)
    sides = [[(ex[edge], ey[row]), (ex[edge], ey[row + 1])] for row, edge in upright]
    sides += [[(ex[column], ey[edge]), (ex[column + 1], ey[edge])] for edge, column in flat]
    outline = LineCollection(
        sides, colors="black", linewidths=1.6, label="* not told from the best"
    )
    outline.set_clip_on(False)  # an outline on the frame has its whole width
    axes.add_collection(outline, autolim=False)


def _places(
    axes: Any, trials: Trials[Cell], place: Stretch, published: float | None, plain: str
) -> None:
    """Unguided training, DRRho as published and the best cell, where they are in sight."""
    known = [one for one in trials.candidates if trials.race.last(one) >= 0]
    if ORIGIN in known:
        axes.plot(0, 0, "ks", markersize=9, linestyle="none", label=plain)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    if published is not None and left <= (at := place(published)) <= right and low <= at <= high:
        style = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(at, at, "kD", linestyle="none", label="DRRho as published", **style)
    best = trials.race.best(trials.candidates)
    if best is not None:
        style = {"markersize": 15, "markerfacecolor": "gold", "markeredgecolor": "black"}
        axes.plot(place(best.x), place(best.y), "*", linestyle="none", label="best cell", **style)


def _lines(axes: Any, values: tuple[list[float], list[float]]) -> None:
    """DRRho's ray κ = 1/τ as far as it is in sight, and the names of the axes on which one of the two
    is missing."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    start, end = max(left, low, 0.0), min(right, high)
    if start < end:
        axes.plot(
            [start, end], [start, end], "k--", linewidth=1, zorder=1.5, label="DRRho, κ = 1/τ"
        )
    (xs, ys) = values
    middle = {"ha": "center", "va": "center", "size": 8, "style": "italic"}
    if 0 in xs:
        axes.text(0.7 * left, (max(low, 0) + high) / 2, "filter", rotation=90, **middle)
    if 0 in ys:
        axes.text((max(left, 0) + right) / 2, 0.75 * low, "adversary alone", **middle)
