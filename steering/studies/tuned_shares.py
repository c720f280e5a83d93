"""What tuned methods gain on other shares of the data: tables, the figure, and what the theory expects."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from steering.analysis.intervals import in_brackets
from steering.analysis.page import Table
from steering.analysis.points import Point
from steering.analysis.savings import savings
from steering.analysis.signals import leading_terms
from steering.analysis.stored import losses_of
from steering.analysis.trials import REPORT
from steering.runs.record import RunRecord
from steering.studies.tuned_page import LOSSES, Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Terms = dict[str, tuple[int, float, float]]  # share -> examples, √(2Var(ℓ)/n), √(2Var(h)/n)


def share_tables(found: Found) -> list[Table]:
    """None without other shares, or where all that gains are measured against has diverged."""
    if not found.options.shares or not shares_of(found):
        return []
    terms = theory_terms(found)
    return [
        _gain_table(found),
        *_saving_tables(found),
        *([_theory_table(found, terms)] if terms else []),
    ]


def shares_of(found: Found) -> list[str]:
    """In order of size, those that have runs of what gains are measured against."""
    every = sorted([found.own, *found.options.shares], key=float)
    return [share for share in every if found.runs(found.opponent, share)]


def _gain_table(found: Found) -> Table:
    metric, shares = found.options.metric, shares_of(found)
    lines, over = [], []
    for label in found.best:
        cells = []
        for share in shares:
            if label == found.opponent:
                cells.append(found.shown(found.value(label, share, metric), metric))
            else:
                gain = found.difference(label, found.opponent, share, metric)
                cells.append(found.signed(gain, metric))
                over.append(gain.over)
        if any(cell != "–" for cell in cells):
            lines.append([label, *cells])
    header = ["method", *(f"{100 * float(share):g} %" for share in shares)]
    note = (
        f"{found.trials.head} of {found.opponent} on the report half, and of the others the "
        f"difference to it on the same share. {in_brackets(over)} All were tuned at "
        f"{100 * float(found.own):g} %."
    )
    return Table("by share of the data", header, lines, note=note)


def _points(found: Found) -> list[Point]:
    """Report-half scores of the methods that have all seeds on all shares, so that seeds pair up."""
    shares, metric = shares_of(found), found.options.metric
    half, sign = found.trials.halves[REPORT], found.trials.meaning.sign
    points = []
    for label in found.best:
        runs = {share: found.runs(label, share) for share in shares}
        if any(set(one) != set(found.runs(found.opponent, shares[0])) for one in runs.values()):
            continue
        if any(run.diverged for by_seed in runs.values() for run in by_seed.values()):
            continue
        for share, by_seed in runs.items():
            for seed, run in by_seed.items():
                score, drawn = sign * half.value(run, metric), half.values(run, metric)
                assert drawn is not None  # as the metric has a half
                point = Point(label, "", 0, float(share), seed, 0.0, -score, score, sign * drawn)
                points.append(point)
    return points


def _saving_tables(found: Found) -> list[Table]:
    """Where a method's curve reaches the opponent's score on the largest share."""
    shares, points = shares_of(found), _points(found)
    if len(shares) < 2 or found.opponent not in {one.method for one in points}:
        return []
    largest = float(shares[-1])
    saved = [one for one in savings(points, found.opponent) if one.method != found.opponent]
    lines = []
    for one in saved:
        level = found.shown(abs(one.level), found.options.metric)
        lines.append([one.method, level, one.text(times=True), f"{100 * one.reached:.0f} %"])
    if not lines:
        return []
    note = (
        f"How many times fewer examples a method needs for the score of {found.opponent} on "
        f"{100 * largest:g} %, on a straight line over log share between the shares tried. "
        f"{in_brackets(one.over for one in saved)} The last column says how many of the draws get "
        "there. ≥ and <: beyond the shares tried."
    )
    header = ["method", f"{found.opponent} on {100 * largest:g} %", "× fewer data", "reached in"]
    return [Table("data saved", header, lines, note=note)]


def theory_terms(found: Found) -> Terms:
    """Of the shares whose held-out losses were stored, and whose number of examples is known."""
    target: dict[str, RunRecord] = {}
    guide: dict[str, RunRecord] = {}
    for record in found.done:
        if record.axes.get("role") == LOSSES:
            side = target if record.axes["of"] == "target" else guide
            side.update(dict.fromkeys(record.axes["data"], record))
    terms: Terms = {}
    for share in shares_of(found):
        # A run that keeps its reference's outputs has counted the examples.
        runs = [run for label in found.best for run in found.runs(label, share).values()]
        n = max((run.cost.stored for run in runs), default=0)
        if share in target and share in guide and n:
            terms[share] = (n, *leading_terms(losses_of(target[share]), losses_of(guide[share]), n))
    return terms


def _theory_table(found: Found, terms: Terms) -> Table:
    lines = [
        [
            f"{100 * float(share):g} %",
            f"{n:,}",
            f"{own:.4f}",
            f"{excess:.4f}",
            f"{own - excess:+.4f}",
        ]
        for share, (n, own, excess) in terms.items()
    ]
    note = (
        f"Leading terms of the bounds in nats: ℓ is the loss of {found.opponent} on held-out "
        "examples, h = ℓ − ℓ_ref. What falls with them is the excess risk, not the metric."
    )
    header = ["share", "n", "√(2Var(ℓ)/n)", "√(2Var(h)/n)", "the bound falls by"]
    return Table("what the theory expects", header, lines, note=note)


def share_figure(found: Found) -> Figure:
    """Gain over the opponent against the share of the data; dashed the theory's, to scale."""
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    metric, shares = found.options.metric, shares_of(found)
    better = found.trials.meaning.sign * found.trials.meaning.scale
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    most: dict[str, float] = {}
    for label in found.best:
        if label == found.opponent or not any(found.runs(label, share) for share in shares):
            continue
        mine = [share for share in shares if found.runs(label, share)]
        gains = [found.difference(label, found.opponent, share, metric) for share in mine]
        x = [100 * float(share) for share in mine]
        y = [better * one.value for one in gains]
        (line,) = axes.plot(x, y, marker="o", markersize=3, label=label)
        low, high = ([better * getattr(one, side) for one in gains] for side in ("low", "high"))
        axes.fill_between(x, low, high, alpha=0.12, color=line.get_color())
        for share, value in zip(mine, y, strict=True):
            if math.isnan(value):
                continue
            most[share] = max(most.get(share, -math.inf), value)
    terms = {share: term for share, term in theory_terms(found).items() if share in most}
    if terms:
        falls = np.array([own - excess for _, own, excess in terms.values()])
        best = np.array([most[share] for share in terms])
        factor = float(falls @ best / max(falls @ falls, 1e-300))
        x = [100 * float(share) for share in terms]
        axes.plot(x, factor * falls, "k--", linewidth=1, label="the bound's fall, to scale")
    axes.axhline(0, color="black", linewidth=0.8)
    points = ", points" if found.trials.meaning.percent else ""
    axes.set(
        xscale="log",
        xlabel="share of the data, %",
        ylabel=f"gain over {found.opponent}{points}",
        title=metric,  # a long name has more room there
    )
    axes.set_xticks(
        [100 * float(share) for share in shares], [f"{100 * float(s):g}" for s in shares]
    )
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure
