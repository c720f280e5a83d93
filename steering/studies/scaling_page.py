"""Tables and figures of the scaling study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.fits import Fit, beats
from steering.analysis.intervals import Interval, in_brackets, seeds_interval
from steering.analysis.page import Table
from steering.analysis.points import COSTS, Point
from steering.analysis.savings import Saving, curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.studies.scaling import ScalingOptions


def point_table(runs: Sequence[Point], metric: str, lawless: Mapping[str, str]) -> Table:
    """Every point; below it methods without a law, and why."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for run in runs:
        groups.setdefault((run.method, run.size, run.samples, run.share), []).append(run)
    lines = []
    for (method, size, samples, share), mine in groups.items():
        found = seeds_interval([run.error for run in mine])
        cells = [method, size or "–", f"{samples:,}", f"{share:g}", f"{mine[0].cost:.3g}"]
        lines.append([*cells, _interval(found, 4), str(len(mine))])
    header = ["method", "size", "samples", "share", "C", "E ↓", "seeds"]
    note = " ".join(
        [
            "In brackets Student's 95 % interval.",
            *(f"{m} has no law: {w}." for m, w in lawless.items()),
        ]
    )
    return Table(f"error of {metric}", header, lines, note=note)


def law_table(fits: Mapping[str, Fit], options: ScalingOptions) -> Table:
    first = next(iter(fits))
    lines = []
    for label, fit in fits.items():
        chance, gap = beats(fit, fits[first])
        against = ["–", "–"] if label == first else [_interval(gap, 3), _chance(chance)]
        floor = [_interval(fit.floor(), 4)] if options.floor else []
        laws = [f"{math.exp(fit.law.log_a):.3g}", _interval(fit.exponent(), 3), *floor]
        lines.append([label, *laws, f"{fit.residual:.3f}", *against])
    names = ["method", "a", "β", *(["e"] if options.floor else []), "residual"]
    over = {fit.over for fit in fits.values()} - {""}
    said = (
        f"In brackets 95 % of a bootstrap over {', '.join(sorted(over))}."
        if over
        else "One run at as many costs as the law has parameters: no interval."
    )
    note = f"E = a·C^−β{' + e' if options.floor else ''}; residual: of log E. {said}"
    return Table("laws", [*names, f"β − β of {first}", f"P(β above {first}'s)"], lines, note=note)


def _chance(chance: float) -> str:
    return "–" if math.isnan(chance) else f"{100 * chance:.0f} %"


def ahead_tables(
    fits: Mapping[str, Fit], runs: Sequence[Point], options: ScalingOptions
) -> list[Table]:
    """What the laws say beyond the runs, and the compute that the baseline's error takes there."""
    cost = options.ahead * max(run.cost for run in runs)
    first = next(iter(fits))
    level = float(fits[first].law.at(cost))
    lines = []
    for label, fit in fits.items():
        needed = fit.law.cost_of(level)
        ratio = [cost / one.cost_of(float(base.at(cost))) for one, base in _pairs(fit, fits[first])]
        times = Interval(cost / needed)
        if ratio:
            low, high = np.quantile(ratio, [0.025, 0.975])
            times = Interval(cost / needed, float(low), float(high))
        same = "–" if label == first else _times(times)
        lines.append([label, _interval(fit.at(cost), 4), same])
    note = (
        f"At C = {cost:.3g}, {options.ahead:g} times the largest run: an extrapolation, whose band "
        f"holds only as far as the law does. The last column: by how much less compute than {first} "
        f"a method gets to the error of {first} there."
    )
    return [Table("ahead", ["method", "E", "× less compute"], lines, note=note)]


def _pairs(fit: Fit, base: Fit) -> list[tuple[Any, Any]]:
    return [*zip(fit.draws, base.draws, strict=False)]


def savings_table(data: Sequence[Saving], baseline: str) -> Table:
    lines = []
    for one in data:
        about = [one.method, one.size or "–", f"{one.samples:,}", f"{abs(one.level):.4f}"]
        reached = "–" if math.isnan(one.reached) else f"{100 * one.reached:.0f} %"
        lines.append([*about, one.text(), reached])
    header = [
        "method",
        "size",
        "samples",
        f"{baseline} on all",
        "share that suffices",
        "reached in",
    ]
    note = (
        f"The share of the data at which a method's mean score reaches that of {baseline} on all of "
        "them, on a straight line over log share between the shares tried. "
        f"{in_brackets(one.over for one in data)} The last column says how many of the draws get "
        "there. ≤ and >: beyond the shares tried."
    )
    return Table("share of the data that suffices", header, lines, note=note)


def _times(found: Interval) -> str:
    """How many times: laws that hardly fall give draws of any size, which nobody wants to read."""

    def shown(value: float) -> str:
        if not 0.01 <= value <= 1000:
            return "< 0.01" if value < 0.01 else "> 1,000"
        return f"{value:.2f}"

    return _in_words(found, shown)


def _interval(found: Interval, digits: int) -> str:
    return _in_words(found, lambda value: f"{value:.{digits}f}")


def _in_words(found: Interval, shown: Callable[[float], str]) -> str:
    if math.isnan(found.value):
        return "–"
    if math.isnan(found.low):
        return shown(found.value)
    return f"{shown(found.value)} [{shown(found.low)}, {shown(found.high)}]"


def fit_row(label: str, fit: Fit) -> dict[str, Any]:
    beta, floor = fit.exponent(), fit.floor()
    return {
        "kind": "law",
        "method": label,
        "a": math.exp(fit.law.log_a),
        "beta": [beta.value, beta.low, beta.high],
        "floor": [floor.value, floor.low, floor.high],
        "residual": fit.residual,
        "over": fit.over,
    }


def laws_figure(runs: Sequence[Point], fits: Mapping[str, Fit], options: ScalingOptions) -> Figure:
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    whole = max(run.share for run in runs)
    mine = [run for run in runs if run.share == whole]
    most = max(run.cost for run in mine)
    grid = np.geomspace(min(run.cost for run in mine), options.ahead * most, 60)
    for label, fit in fits.items():
        own = [run for run in mine if run.method == label]
        (line,) = axes.plot(grid, fit.law.at(grid), label=f"{label}: β = {fit.law.beta:.3f}")
        costs, errors = [run.cost for run in own], [run.error for run in own]
        axes.scatter(costs, errors, s=12, alpha=0.6, color=line.get_color())
        if fit.draws:
            drawn = np.stack([one.at(grid) for one in fit.draws])
            low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
            axes.fill_between(grid, low, high, alpha=0.15, color=line.get_color())
    axes.axvspan(most, grid[-1], color="black", alpha=0.04, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel=COSTS[options.cost], ylabel="error")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def data_figure(runs: Sequence[Point], options: ScalingOptions) -> Figure:
    from matplotlib.figure import Figure

    largest = (runs[-1].size, runs[-1].samples)
    mine = [run for run in runs if (run.size, run.samples) == largest]
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for label in options.methods:
        shares = curve(mine, label)
        found = [seeds_interval(np.abs(scores).tolist()) for scores in shares.values()]
        middle = np.array([one.value for one in found])
        (line,) = axes.plot([*shares], middle, marker="o", markersize=3, label=label)
        low, high = (np.array([getattr(one, side) for one in found]) for side in ("low", "high"))
        axes.fill_between([*shares], low, high, alpha=0.15, color=line.get_color())
    baseline = curve(mine, next(iter(options.methods)))
    level = abs(float(np.mean(baseline[max(baseline)])))
    axes.axhline(level, color="black", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="share of the data", ylabel=options.metric)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
