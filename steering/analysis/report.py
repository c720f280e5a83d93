"""Results as tables and curves. A row is {"method", "seed", "metrics", "samples", "seconds", ...};
see `steering compare`.

A metric is a share, shown in percent, of which more is better, unless its task says otherwise
(`Task.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.events import Curve
from steering.analysis.page import Cells, Table, markdown_table, print_tables
from steering.runs.record import SHARE, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Styles = Mapping[str, Metric]
CROWDED = 3  # lines, beyond which a legend inside a panel would cover some
_COSTS = {
    "samples": "trained on",
    "drawn": "drawn",
    "scored": "scored",
    "reference_samples": "by the live reference",
    "seconds": "seconds",
}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, s/√n with the n − 1 divisor; the error of one value is NaN."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)


def methods(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by method, in order of first appearance."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["method"], []).append(row)
    return grouped


def metric_groups(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Metric names by the part before their "/", in order of first appearance."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row["metrics"]):
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    return groups


def style(name: str, styles: Styles) -> Metric:
    """How a metric is shown: by its name, the last part of it, else the first."""
    return (
        styles.get(name)
        or styles.get(name.rpartition("/")[2])
        or styles.get(name.partition("/")[0], SHARE)
    )


def tables(rows: Sequence[Row], styles: Styles | None = None) -> dict[str, Cells]:
    """One table per group of metrics, mean ± standard error over seeds; and last one with the cost.

    A metric of which less is better has a ↓ in its header.
    """
    grouped, styles = methods(rows), styles or {}
    found: dict[str, Cells] = {}
    for group, names in metric_groups(rows).items():
        header = ["method", *(_head(name, style(name, styles)) for name in names)]
        lines = [
            [m, *(_cell(runs, name, style(name, styles)) for name in names)]
            for m, runs in grouped.items()
        ]
        found[group or "evaluation"] = header, lines
    kinds = [
        key for key in _COSTS if key in ("samples", "seconds") or any(row.get(key) for row in rows)
    ]
    if "drawn" in kinds and not any(row.get("scored") for row in rows):
        kinds.remove("drawn")  # each example that is drawn is trained on
    cost = [
        [method, str(len(runs)), *(_plain(runs, key) for key in kinds)]
        for method, runs in grouped.items()
    ]
    header = [
        "samples" if key == "samples" and "drawn" not in kinds else _COSTS[key] for key in kinds
    ]
    found["cost of one run"] = ["method", "runs", *header], cost
    return found


def _head(name: str, shown: Metric) -> str:
    return name.rpartition("/")[2].replace("_", " ") + ("" if shown.higher_is_better else " ↓")


def _cell(runs: Sequence[Row], name: str, shown: Metric) -> str:
    values = [run["metrics"][name] for run in runs if name in run["metrics"]]
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    if math.isnan(mean):  # a run that diverged is left out of no mean
        return "–"
    scale, digits = (100, 1) if shown.percent else (1, 3)
    text = f"{scale * mean:.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {scale * error:.{digits}f}"


def _plain(runs: Sequence[Row], key: str) -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    return f"{mean_and_error(values)[0]:,.0f}" if values else "–"


def markdown_report(rows: Sequence[Row], title: str, styles: Styles | None = None) -> str:
    """All tables in Markdown: mean ± standard error over the seeds."""
    parts = [f"# {title}", intro(rows, styles)]
    for name, (header, lines) in tables(rows, styles).items():
        parts += [f"## {name}", markdown_table(header, lines)]
    return "\n\n".join(parts) + "\n"


def intro(rows: Sequence[Row], styles: Styles | None = None) -> str:
    """What the numbers of the tables are."""
    plain = sorted(
        {name.rpartition("/")[2].replace("_", " ") for name in _plain_metrics(rows, styles or {})}
    )
    unit = f"Percent, but for {', '.join(plain)}" if plain else "Percent"
    return f"{unit}; ± is one standard error over the runs' seeds."


def page_tables(
    rows: Sequence[Row], styles: Styles | None = None, winners: Mapping[str, str] | None = None
) -> list[Table]:
    """The tables of `tables`, as a page shows them.

    Args:
        winners: metric -> the method that is shown in bold there (`steering.analysis.winners`).
    """
    plain = {name.rpartition("/")[0] or "evaluation" for name in _plain_metrics(rows, styles or {})}
    places = {method: line for line, method in enumerate(methods(rows))}
    bold = {
        group or "evaluation": {
            (places[winners[name]], column)
            for column, name in enumerate(names, 1)
            if winners and name in winners
        }
        for group, names in metric_groups(rows).items()
    }
    return [
        Table(
            name,
            header,
            lines,
            percent=not (name.startswith("cost") or name in plain),
            bold=bold.get(name, ()),
        )
        for name, (header, lines) in tables(rows, styles).items()
    ]


def _plain_metrics(rows: Sequence[Row], styles: Styles) -> list[str]:
    return [
        name
        for names in metric_groups(rows).values()
        for name in names
        if not style(name, styles).percent
    ]


def print_results(rows: Sequence[Row], title: str, styles: Styles | None = None) -> None:
    """The same tables on the terminal. A wide table continues in a second one below."""
    print_tables(title, page_tables(rows, styles))


def curves_figure(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    rows: Sequence[Row],
    batch_size: int,
    styles: Styles | None = None,
) -> Figure:
    """First metric of each group against samples trained on; lines are means over seeds, bands one
    standard error.

    Args:
        curves: method -> for each seed the rows of its metrics.jsonl.
        rows: as in the tables; the reference, which has no curve, becomes a dashed line.
        batch_size: examples per step.
    """
    firsts = [names[0] for names in metric_groups(rows).values()]
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    figure = Figure(figsize=(4.2 * max(1, len(firsts)), 3.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(firsts)), squeeze=False)[0]
    for axes, name in zip(panels, firsts, strict=False):
        shown = style(name, styles or {})
        scale = 100 if shown.percent else 1
        for method, seeds in curves.items():
            _curve(axes, method, seeds, f"eval/{name}", batch_size, scale)
        for row in rows:
            if row["method"] not in curves and name in row["metrics"]:
                axes.axhline(
                    scale * row["metrics"][name],
                    color="black",
                    linestyle="--",
                    linewidth=1,
                    label=row["method"],
                )
        axes.set_title(name.rpartition("/")[0].replace("_", " ") or "evaluation")
        axes.set_xlabel("samples trained on")
        axes.set_ylabel(
            f"{name.rpartition('/')[2].replace('_', ' ')}{', %' if shown.percent else ''}"
        )
        if shown.higher_is_better:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if len(labels) > CROWDED:  # beside the panels, where it hides nothing
        figure.set_figwidth(figure.get_figwidth() + 1.5)
        figure.legend(handles, labels, loc="outside right upper")
    elif labels:
        panels[0].legend()
    return figure


def study_curves(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], rows: Sequence[Row]
) -> dict[str, dict[str, Curve]]:
    """Method -> metric -> mean over its seeds at each evaluation, and one standard error; the
    reference, which has no curve, as a level line. Arguments as for `curves_figure`."""
    found: dict[str, dict[str, Curve]] = {}
    last = 1
    for method, seeds in curves.items():
        by_name: dict[str, dict[int, list[float]]] = {}
        for row in (row for seed in seeds for row in seed):
            for name, value in row.items():
                if name.startswith("eval/"):
                    steps = by_name.setdefault(name.removeprefix("eval/"), {})
                    steps.setdefault(int(row["step"]), []).append(value)
        found[method] = {name: _mean_curve(steps) for name, steps in by_name.items()}
        last = max([last, *(max(steps) for steps in by_name.values())])
    for contestant in rows:
        if contestant["method"] not in curves:
            level = {
                name: Curve((0, last), (value, value), (0.0, 0.0))
                for name, value in contestant["metrics"].items()
            }
            found[contestant["method"]] = level
    return found


def _mean_curve(by_step: Mapping[int, Sequence[float]]) -> Curve:
    steps = sorted(by_step)
    pairs = [mean_and_error(by_step[step]) for step in steps]
    errors = [0.0 if math.isnan(error) else error for _, error in pairs]
    return Curve(steps, [mean for mean, _ in pairs], errors)


def _curve(
    axes: Any,
    method: str,
    seeds: Sequence[Sequence[Mapping[str, float]]],
    name: str,
    batch_size: int,
    scale: float,
) -> None:
    by_step: dict[float, list[float]] = {}
    for seed in seeds:
        for row in seed:
            if name in row:
                by_step.setdefault(row["step"], []).append(scale * row[name])
    steps = sorted(by_step)
    if not steps:
        return
    mean, error = np.array([mean_and_error(by_step[step]) for step in steps]).T
    x = np.array(steps) * batch_size
    (line,) = axes.plot(x, mean, marker="o", markersize=3, label=method)
    if not np.isnan(error).all():
        axes.fill_between(x, mean - error, mean + error, alpha=0.2, color=line.get_color())
