"""Tables and the figure of the weak-to-strong study: records in, numbers and a picture out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.intervals import Bootstrap, Interval, over_both, seeds_interval
from steering.analysis.page import Table
from steering.runs.record import RunRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAIN = ["vanilla/balanced", "teacher/balanced"]
BASELINES = (
    "vanilla",
    "gce",
    "selection",
    "random_subset",
    "confidence",
    "adaptive",
    "self_training",
)


def _by_shares(records: Sequence[RunRecord]) -> dict[tuple[float, float], list[RunRecord]]:
    found: dict[tuple[float, float], list[RunRecord]] = {}
    for record in records:
        place = record.axes["labelled_share"], record.axes["unlabelled_share"]
        found.setdefault(place, []).append(record)
    return found


def _values(records: Sequence[RunRecord], name: str) -> list[float]:
    return [r.metrics[name] for r in records if name in r.metrics]


def _interval(
    records: Sequence[RunRecord],
    names: Sequence[str],
    number: Callable[..., Any],
    draws: Bootstrap,
    metric: str = "",
) -> Interval:
    """The mean over the draws of points of a number made of some metrics of a cell; its interval is
    over these and the test points, where scores were kept.

    Args:
        number: of a value of each metric, or of arrays of them.
        metric: that is this number; empty: none is.
    """
    values = [
        r.metrics[metric] if metric else float(number(*(r.metrics[name] for name in names)))
        for r in records
    ]
    columns = [[draws.values(r, name) for name in names] for r in records]
    if not values or any(one is None for column in columns for one in column):
        return seeds_interval(values) if values else Interval(float("nan"))
    return over_both(values, [number(*column) for column in columns])


def _gain(student: Any, teacher: Any) -> Any:
    return student - teacher


def _recovered(student: Any, teacher: Any, ceiling: Any) -> Any:
    """PGR; of draws of test points without a gap the gap is a little one."""
    return (student - teacher) / np.maximum(ceiling - teacher, 1e-3)


def accuracies(name: str, records: Sequence[RunRecord]) -> Table:
    lines, draws = [], Bootstrap()
    for (one, other), cell in _by_shares(records).items():
        levels = [
            _interval(cell, [f"{who}/balanced"], lambda value: value, draws)
            for who in ("teacher", "vanilla", "enhanced", "ceiling")
        ]
        lines.append(
            [
                f"{one:g} / {other:g}",
                *(_shown(level) for level in levels),
                _shown(_interval(cell, GAIN, _gain, draws), signed=True),
                _pgr(cell, "vanilla", draws),
                _pgr(cell, "enhanced", draws),
            ]
        )
    header = [
        "η_ℓ / η_u",
        "teacher",
        "vanilla",
        "enhanced",
        "ceiling",
        "gain",
        "PGR",
        "PGR enhanced",
    ]
    return Table(name, header, lines)


def _pgr(cell: Sequence[RunRecord], who: str, draws: Bootstrap) -> str:
    """Over the draws of points that have a gap between teacher and ceiling, which are counted."""
    some = [r for r in cell if f"{who}/PGR" in r.metrics]
    if not some:
        return "–"
    names = [f"{who}/balanced", "teacher/balanced", "ceiling/balanced"]
    count = f" ({len(some)} of {len(cell)})" if len(some) < len(cell) else ""
    return _shown(_interval(some, names, _recovered, draws, f"{who}/PGR")) + count


def baselines(name: str, records: Sequence[RunRecord]) -> Table:
    draws = Bootstrap()
    lines = [
        [
            f"{one:g} / {other:g}",
            *(
                _shown(
                    _interval(cell, ["enhanced/balanced", f"{who}/balanced"], _gain, draws),
                    signed=True,
                )
                for who in BASELINES
            ),
        ]
        for (one, other), cell in _by_shares(records).items()
    ]
    header = ["η_ℓ / η_u", *(f"− {who.replace('_', ' ')}" for who in BASELINES)]
    return Table(f"{name}: Enhanced-W2S less each baseline, paired by draw", header, lines)


def claims(name: str, records: Sequence[RunRecord]) -> Table:
    """What the theory predicts, each with its interval over the draws."""
    from scipy.stats import spearmanr

    cells, lines, draws = _by_shares(records), [], Bootstrap()
    for one in dict.fromkeys(labelled for labelled, _ in cells):
        others = [other for labelled, other in cells if labelled == one]
        near = min(others, key=lambda other: abs(other - one))
        far = max(others, key=lambda other: abs(other - one))
        gains = {other: _gains(cells[one, other]) for other in others}
        seeds = set.intersection(*(set(found) for found in gains.values()))
        difference = _less([cells[one, near], cells[one, far]], sorted(seeds), draws)
        distance = [-abs(other - one) for other in others]
        ranks = [
            float(spearmanr([gains[other][seed] for other in others], distance).statistic)
            for seed in sorted(seeds)
            if len(others) > 2 and len({gains[other][seed] for other in others}) > 1
        ]
        lines.append(
            [
                f"{one:g}",
                _pgr(cells[one, near], "vanilla", draws),
                f"{near:g} − {far:g}: {_shown(difference, signed=True)}",
                _plain(seeds_interval(ranks)) if ranks else "–",
            ]
        )
    header = [
        "η_ℓ",
        "PGR where the shares agree",
        "gain there less the far end",
        "Spearman with −|η_u − η_ℓ|",
    ]
    return Table(f"{name}: what the theory predicts", header, lines)


def _less(pair: Sequence[Sequence[RunRecord]], seeds: Sequence[int], draws: Bootstrap) -> Interval:
    """The gain in one cell less that in another, paired by the draws of points and by test point."""
    mine, other = ({r.axes["seed"]: r for r in cell} for cell in pair)
    values, columns = [], []
    for seed in seeds:
        runs = mine[seed], other[seed]
        near, far = (_gain(*(run.metrics[name] for name in GAIN)) for run in runs)
        values.append(float(near - far))
        drawn = [[draws.values(run, name) for name in GAIN] for run in runs]
        if all(one is not None for column in drawn for one in column):
            columns.append(_gain(*drawn[0]) - _gain(*drawn[1]))
    return over_both(values, columns) if len(columns) == len(seeds) else seeds_interval(values)


def _gains(records: Sequence[RunRecord]) -> dict[int, float]:
    return {
        r.axes["seed"]: r.metrics["vanilla/balanced"] - r.metrics["teacher/balanced"]
        for r in records
    }


def details(name: str, records: Sequence[RunRecord]) -> Table:
    lines = []
    for (one, other), cell in _by_shares(records).items():
        pairs = [f"{r.summary['p']:g}, {r.summary['q']:g}" for r in cell]
        lines.append(
            [
                f"{one:g} / {other:g}",
                _over_seeds(_values(cell, "vanilla/share_weighted")),
                _over_seeds(_values(cell, "vanilla/worst_group")),
                _over_seeds(_values(cell, "enhanced/worst_group")),
                _over_seeds(_values(cell, "vanilla/agreement")),
                _over_seeds(_values(cell, "unlabelled/wrong_labels")),
                _over_seeds(_values(cell, "unlabelled/kept_minority_share")),
                max(sorted(set(pairs)), key=pairs.count),
            ]
        )
    header = [
        "η_ℓ / η_u",
        "vanilla at η_u",
        "worst group",
        "worst, enhanced",
        "agrees with teacher",
        "wrong labels",
        "minority among the kept",
        "p, q most often",
    ]
    return Table(f"{name}: details", header, lines)


def _over_seeds(values: Sequence[float], signed: bool = False) -> str:
    """A cell of a table; a dash where no seed has a value, as PGR has none where the ceiling is not
    above the teacher."""
    return _shown(seeds_interval(values), signed) if values else "–"


def _shown(found: Interval, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{100 * found.value:{sign}.1f}"
    if np.isnan(found.low):
        return text
    return f"{text} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def _plain(found: Interval) -> str:
    """Of a correlation: Student's interval of a mean knows no bounds, correlations do."""
    if np.isnan(found.low):
        return f"{found.value:.2f}"
    low, high = max(found.low, -1.0), min(found.high, 1.0)
    return f"{found.value:.2f} [{low:.2f}, {high:.2f}]"


def figure(cells: Sequence[RunRecord], pairs: Sequence[tuple[str, str]]) -> Figure:
    """Gain over the unlabelled share: measured with its band, and the theory's, scaled to fit."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5.2 * len(pairs), 4.2), layout="constrained")
    axes = drawn.subplots(1, len(pairs), squeeze=False, sharey=True)[0]
    draws = Bootstrap()
    for ax, pair in zip(axes, pairs, strict=True):
        found = _by_shares([r for r in cells if (r.axes["teacher"], r.axes["student"]) == pair])
        gains = {p: _interval(cell, GAIN, _gain, draws) for p, cell in found.items()}
        theory = {
            place: float(np.mean(_values(cell, "theory/teacher")))
            - float(np.mean(_values(cell, "theory/student")))
            for place, cell in found.items()
        }
        measured = np.array([gains[place].value for place in found])
        expected = np.array([theory[place] for place in found])
        scale = float(expected @ measured / max(expected @ expected, 1e-300))
        for number, one in enumerate(dict.fromkeys(place[0] for place in found)):
            others = sorted(other for labelled, other in found if labelled == one)
            lines = [gains[one, other] for other in others]
            colour = f"C{number}"
            ax.plot(
                others, [100 * x.value for x in lines], "o-", color=colour, label=f"η_ℓ = {one:g}"
            )
            ax.fill_between(
                others,
                [100 * x.low for x in lines],
                [100 * x.high for x in lines],
                color=colour,
                alpha=0.15,
            )
            ax.plot(
                others, [100 * scale * theory[one, other] for other in others], "--", color=colour
            )
            ax.axvline(one, color=colour, linewidth=0.8, alpha=0.5)
        ax.axhline(0, color="black", linewidth=0.8)
        ax.set_title(f"{pair[0]} → {pair[1]}")
        ax.set_xlabel("minority share of the unlabelled points, η_u")
    axes[0].set_ylabel("student − teacher, points")
    axes[0].plot([], [], "--", color="grey", label="matrix formula, scaled")
    axes[0].legend(frameon=False)
    return drawn
