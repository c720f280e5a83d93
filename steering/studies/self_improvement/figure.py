"""The figure of the study `activation`, from its records alone; needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steering.analysis.intervals import Bootstrap, Interval, paired_difference
from steering.studies.self_improvement.tables import BASE, Reports

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gain_and_price(reports: Reports, budget: float) -> Figure:
    """What each policy gains at the judge, over what it costs in fluency; the rounds are joined."""
    from matplotlib.figure import Figure

    bootstrap = Bootstrap()
    places = {
        policy: tuple(
            paired_difference(runs, reports[BASE], name, bootstrap) or Interval(math.nan)
            for name in ("nll", "judge")
        )
        for policy, runs in reports.items()
        if policy != BASE
    }
    drawn = Figure(figsize=(7.2, 4.6), layout="constrained")
    ax = drawn.subplots()
    for number, (policy, (price, gain)) in enumerate(places.items()):
        round_, colour = policy.startswith("round"), f"C{number % 10}"
        ax.errorbar(
            price.value,
            gain.value,
            xerr=_arms(price),
            yerr=_arms(gain),
            fmt="o" if round_ else "s",
            color="black" if round_ else colour,
            elinewidth=0.8,
            markersize=5,
            label=policy,
        )
        if round_:
            ax.annotate(
                policy.removeprefix("round "),
                (price.value, gain.value),
                (5, 5),
                textcoords="offset points",
            )
    rounds = [place for policy, place in places.items() if policy.startswith("round")]
    track = [(0.0, 0.0), *((price.value, gain.value) for price, gain in rounds)]
    ax.plot(*zip(*track, strict=True), color="black", linewidth=0.8)
    ax.plot(0, 0, "k+", markersize=10, label=BASE)
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.axvline(budget, color="grey", linewidth=0.8, linestyle="--", label="the search's budget")
    ax.set_xlabel("nll − base, nats a token (less fluent →)")
    ax.set_ylabel("judge − base")
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return drawn


def _arms(place: Interval) -> list[list[float]] | None:
    """Lengths of an error bar below and above; None without an interval."""
    if math.isnan(place.low):
        return None
    return [[max(place.value - place.low, 0.0)], [max(place.high - place.value, 0.0)]]
