"""Tables and the figure of the audit: expected gains with their errors, or without a calibration the
signals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from steering.analysis.calibration import number
from steering.analysis.page import Table
from steering.analysis.signals import Signals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Expected = Mapping[str, Mapping[str, Mapping[str, Any]]]  # reference -> method -> what is expected
SHOWN = {
    "variance_ratio": "Var(ℓ − ℓ_ref)/Var(ℓ)",
    "strength": "α*",
    "explained": "explained",
    "late_auc": "AUC, not yet learned",
    "agreement": "agreement",
    "reference_wrong": "reference wrong",
    "target_wrong": "target wrong",
    "bound": "bound falls by",
    "advantage": "held-out advantage",
}
"""Signal -> its column."""
DRAWN = {"advantage": 0.0, "explained": 0.0, "late_auc": 0.5, "agreement": 0.0}
"""Signals of the figure without a calibration -> the value that says nothing of the reference."""


def signal_table(found: Mapping[str, Signals]) -> Table:
    rows = {label: asdict(signals) for label, signals in found.items()}
    shown = finite(found, SHOWN)
    lines = [[label, *(f"{row[name]:.3f}" for name in shown)] for label, row in rows.items()]
    note = (
        "Below 1 in the first column the reference explains part of the target's loss. The AUC is "
        "the chance that the reference's loss is higher on an example that the short run has not "
        "yet learned (its loss above the mean) than on one that it has; one short run cannot tell what "
        "is learned late from what is never learned. Wrong: loss above 3 nats, of pairs above that of guessing."
    )
    return Table("signals", ["reference", *(SHOWN[name] for name in shown)], lines, note=note)


def finite(found: Mapping[str, Signals], names: Iterable[str]) -> list[str]:
    """Signals that every reference has."""
    return [name for name in names if all(math.isfinite(getattr(s, name)) for s in found.values())]


def _by_gain(expected: Expected) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Reference, method and what is expected; the largest gain first."""
    found = [(label, method, one) for label, row in expected.items() for method, one in row.items()]
    return sorted(found, key=lambda case: -case[2]["gain"])


def _odds(chances: Mapping[str, float]) -> str:
    """ "79, 2, 19 %": helps, no matter, hurts."""
    return ", ".join(f"{100 * chance:.0f}" for chance in chances.values()) + " %"


def verdict_table(expected: Expected, percent: bool, cases: int) -> Table:
    """The best reference and place on the plane first; `cases` of the calibration."""
    lines = []
    for label, method, one in _by_gain(expected):
        plane = ", ".join(f"{value:g}" for value in one["plane"]) or "–"
        sure = f"{one['verdict']} ({_odds(one['chances'])})"
        gain = f"{number(one['gain'], percent)} ± {number(one['spread'], percent, '')}"
        lines.append([label, method, plane, gain, sure, ", ".join(one["outside"]) or "–"])
    header = ["reference", "method", "(1/τ, κ)", "expected gain", "verdict", "outside"]
    note = (
        f"Gain over unguided training{' in points' if percent else ''}, ± one standard error of predictions on left-out "
        f"cases, by a calibration on {cases} cases. In brackets the chances of helps, no matter, "
        f"hurts; open: none reaches two in three. Where a signal is named as outside, the "
        "calibration has seen no such value, and the verdict is a guess."
    )
    return Table("verdict", header, lines, note=note)


def gains_figure(expected: Expected, percent: bool, margin: float) -> Figure:
    """The expected gain of every reference and method, ± one standard error; the best on top."""
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    pairs = _by_gain(expected)[::-1]  # upwards
    figure = Figure(figsize=(6.4, 1.6 + 0.34 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    scale = 100 if percent else 1
    axes.axvspan(-scale * margin, scale * margin, color="black", alpha=0.12, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8)
    gains, spreads = ([scale * one[key] for *_, one in pairs] for key in ("gain", "spread"))
    axes.errorbar(gains, range(len(pairs)), xerr=spreads, fmt="o", markersize=5, capsize=3)
    labels = [f"{label}, {method}: {one['verdict']}" for label, method, one in pairs]
    axes.set_yticks(range(len(pairs)), labels)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.set_xlabel(
        f"expected gain over unguided training{', points' if percent else ''}, ± one standard error"
        f"\ngrey: within ± {scale * margin:g}, which does not matter"
    )
    axes.grid(axis="x", alpha=0.3)
    return figure


def signals_figure(found: Mapping[str, Signals]) -> Figure:
    """Bars of the signals that tell most, a panel each; they begin where a signal says nothing."""
    from matplotlib.figure import Figure

    shown = finite(found, DRAWN)
    figure = Figure(figsize=(1.6 + 2.2 * len(shown), 1.3 + 0.4 * len(found)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    labels = [*found][::-1]  # the first one on top
    for axes, name in zip(panels, shown, strict=True):
        neutral = DRAWN[name]
        values = [getattr(found[label], name) for label in labels]
        bars = axes.barh(range(len(labels)), [one - neutral for one in values], left=neutral)
        axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize="small")
        axes.axvline(neutral, color="black", linewidth=0.8)
        axes.margins(x=0.3)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(SHOWN[name], fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    return figure
