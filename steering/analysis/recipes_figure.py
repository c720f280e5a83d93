"""The figure of the study of data recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steering.analysis.ranks import over_items, regret, spearman
from steering.analysis.recipes_axis import Axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def axis_figure(axis: Axis) -> Figure:
    """Agreement over the whole axis of learning rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    found = [over_items(spearman, axis.proxy[rate].mean(-1), axis.truth) for rate in axis.rates]
    left.plot(axis.rates, [one.value for one in found], "o-", label="Spearman")
    left.fill_between(
        axis.rates, [one.low for one in found], [one.high for one in found], alpha=0.15
    )
    left.plot(axis.rates, [axis.agreement(rate).all for rate in axis.rates], "s--", label="pairs")
    left.axhline(axis.ceiling(), color="grey", linewidth=0.8, label="two seeds of the target")
    for k in (1, 2):
        values = [regret(axis.proxy[rate].mean(-1), axis.truth, k) for rate in axis.rates]
        right.plot(axis.rates, values, "o-", label=f"regret@{k}")
    for ax in (left, right):
        ax.set_xscale("log")
        ax.axvline(axis.small, color="C3", linewidth=0.8, linestyle=":")
        ax.axvline(axis.usual, color="C2", linewidth=0.8, linestyle=":")
        ax.set_xlabel("the proxy's learning rate (dotted: small, usual)")
        ax.legend(frameon=False)
    left.set_title("agreement with the tuned target")
    right.set_title("what the choice costs")
    return figure
