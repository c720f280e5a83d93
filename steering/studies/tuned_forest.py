"""The figure that every tuned study has: each method's difference to each family's best member."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from steering.studies.tuned_page import Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Gaps = dict[str, tuple[float, float, float]]  # method -> difference and its interval, as drawn


def gaps_of(found: Found) -> dict[str, Gaps]:
    """Family -> the differences of the reported methods to its best member; what is better is above
    0. Empty where nothing can be compared."""
    metric, meaning = found.options.metric, found.trials.meaning
    better = meaning.sign * meaning.scale
    families: dict[str, Gaps] = {}
    for family, opponent in found.opponents.items():
        gaps = {
            label: found.difference(label, opponent, found.own, metric)
            for label in found.best
            if label != opponent and found.runs(label, found.own)
        }
        drawn = {}
        for label, gap in gaps.items():
            if not math.isnan(gap.value):
                low, high = sorted((better * gap.low, better * gap.high))
                drawn[label] = (better * gap.value, low, high)
        if drawn:
            families[family] = drawn
    return families


def forest(found: Found, families: Mapping[str, Gaps]) -> Figure:
    """Differences with 95 % intervals, a panel for each family, the methods in the config's order."""
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    labels = [label for label in found.best if any(label in gaps for gaps in families.values())]
    labels.reverse()  # the first one on top
    size = (2.2 + 3.4 * len(families), 1.4 + 0.34 * len(labels))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, (family, gaps) in zip(panels, families.items(), strict=True):
        values = np.array([gaps.get(label, (math.nan,) * 3) for label in labels])  # (methods, 3)
        sides = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
        axes.errorbar(
            values[:, 0], range(len(labels)), xerr=sides, fmt="o", markersize=5, capsize=3
        )
        axes.axvline(0, color="black", linewidth=0.8)
        best = f", the best of {family}" if family else ""
        axes.set_title(f"against {found.opponents[family]}{best}", fontsize="medium")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.grid(axis="x", alpha=0.3)
    points = ", points" if found.trials.meaning.percent else ""
    figure.supxlabel(f"better in {found.options.metric} by{points}", fontsize="medium")
    return figure
