"""Results as tables and curves. A row is {"method", "seed", "metrics", "samples", "seconds", ...}; see `steering compare`.

A metric is a share, shown in percent, of which more is better, unless its task says otherwise (`Task.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from steering.task import Metric
from steering.training.log import CONSOLE

Row = Mapping[str, Any]
Cells = tuple[list[str], list[list[str]]]  # header, lines
Styles = Mapping[str, Metric]
CROWDED = 5  # lines, beyond which a legend inside a panel would cover some
_SHARE = Metric()
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
    """How a metric is shown: by the last part of its name, else by the first."""
    return styles.get(name.rpartition("/")[2]) or styles.get(name.partition("/")[0], _SHARE)


def tables(rows: Sequence[Row], styles: Styles | None = None) -> dict[str, Cells]:
    """One table per group of metrics, mean ± standard error over seeds; and last one with the cost.

    A metric of which less is better has a ↓ in its header.
    """
    grouped, styles = methods(rows), styles or {}
    found: dict[str, Cells] = {}
    for group, names in metric_groups(rows).items():
        header = ["method", *(_head(name, style(name, styles)) for name in names)]
        lines = [[m, *(_cell(runs, name, style(name, styles)) for name in names)] for m, runs in grouped.items()]
        found[group or "evaluation"] = header, lines
    kinds = [key for key in _COSTS if key in ("samples", "seconds") or any(row.get(key) for row in rows)]
    if "drawn" in kinds and not any(row.get("scored") for row in rows):
        kinds.remove("drawn")  # each example that is drawn is trained on
    cost = [[method, str(len(runs)), *(_plain(runs, key) for key in kinds)] for method, runs in grouped.items()]
    header = ["samples" if key == "samples" and "drawn" not in kinds else _COSTS[key] for key in kinds]
    found["cost of one run"] = ["method", "runs", *header], cost
    return found


def _head(name: str, shown: Metric) -> str:
    return name.rpartition("/")[2].replace("_", " ") + ("" if shown.higher_is_better else " ↓")


def _cell(runs: Sequence[Row], name: str, shown: Metric) -> str:
    values = [run["metrics"][name] for run in runs if name in run["metrics"]]
    if not values:
        return "–"
    mean, error = mean_and_error(values)
    scale, digits = (100, 1) if shown.percent else (1, 3)
    text = f"{scale * mean:.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {scale * error:.{digits}f}"


def _plain(runs: Sequence[Row], key: str) -> str:
    values = [run[key] for run in runs if run.get(key) is not None]
    return f"{mean_and_error(values)[0]:,.0f}" if values else "–"


def markdown_report(rows: Sequence[Row], title: str, styles: Styles | None = None) -> str:
    """All tables in Markdown: mean ± standard error over the seeds."""
    plain = sorted({name.rpartition("/")[2].replace("_", " ") for name in _plain_metrics(rows, styles or {})})
    unit = f"Percent, but for {', '.join(plain)}" if plain else "Percent"
    parts = [f"# {title}", f"{unit}; ± is one standard error over the runs' seeds."]
    for name, (header, lines) in tables(rows, styles).items():
        table = [header, ["---"] * len(header), *lines]
        written = [" | ".join(cell.replace("|", "\\|") for cell in line) for line in table]
        parts += [f"## {name}", "\n".join(f"| {line} |" for line in written)]
    return "\n\n".join(parts) + "\n"


def _plain_metrics(rows: Sequence[Row], styles: Styles) -> list[str]:
    return [name for names in metric_groups(rows).values() for name in names if not style(name, styles).percent]


def print_results(rows: Sequence[Row], title: str, styles: Styles | None = None) -> None:
    """The same tables on the terminal; the best of each column in bold. A wide table continues in a second one below."""
    CONSOLE.rule(Text(title))
    plain = {name.rpartition("/")[0] or "evaluation" for name in _plain_metrics(rows, styles or {})}
    for name, (header, lines) in tables(rows, styles).items():
        best = _best(header, lines) if not name.startswith("cost") and len(lines) > 1 else {}
        widths = [_width(head, [line[column] for line in lines]) for column, head in enumerate(header)]
        for number, columns in enumerate(_fitting(widths, CONSOLE.width)):
            table = Table(
                title=None if number else Text(name if name.startswith("cost") or name in plain else f"{name}, %"),
                title_justify="left",
                title_style="bold",
            )
            for column in (0, *columns):
                table.add_column(Text(header[column]), justify="right" if column else "left", width=widths[column])
            for line in lines:
                table.add_row(*(Text(line[c], style="bold" if line[c] == best.get(c) else "") for c in (0, *columns)))
            CONSOLE.print(table)


def _width(head: str, cells: Sequence[str]) -> int:
    """Characters that keep every cell, and every word of the header, on one line."""
    return max(cell_len(text) for text in [*head.split(), *cells])


def _fitting(widths: Sequence[int], limit: int) -> list[list[int]]:
    """The columns after the first in as few equal groups as fit, each beside the first, into `limit` characters."""
    columns = range(1, len(widths))
    for size in range(len(columns), 0, -1):
        groups = [list(columns[start : start + size]) for start in range(0, len(columns), size)]
        # Two blanks and a border for each column. A single column is shown however wide.
        fits = all(sum(widths[c] + 3 for c in (0, *group)) + 1 <= limit for group in groups)
        equal = len(columns) % size == 0 or len(columns) % size > size // 2
        if size == 1 or (fits and equal):
            return groups
    return [[]]


def _best(header: Sequence[str], lines: Sequence[Sequence[str]]) -> dict[int, str]:
    columns = {column: [line[column] for line in lines if line[column] != "–"] for column in range(1, len(lines[0]))}
    first = {column: min if header[column].endswith("↓") else max for column in columns}
    return {c: first[c](cells, key=lambda cell: float(cell.split()[0])) for c, cells in columns.items() if cells}


def curves_figure(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    rows: Sequence[Row],
    batch_size: int,
    styles: Styles | None = None,
) -> Figure:
    """First metric of each group against samples trained on; lines are means over seeds, bands one standard error.

    Args:
        curves: method -> for each seed the rows of its metrics.jsonl.
        rows: as in the tables; the reference, which has no curve, becomes a dashed line.
        batch_size: examples per step.
    """
    firsts = [names[0] for names in metric_groups(rows).values()]
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
                    scale * row["metrics"][name], color="black", linestyle="--", linewidth=1, label=row["method"]
                )
        axes.set_title(name.rpartition("/")[0].replace("_", " ") or "evaluation")
        axes.set_xlabel("samples trained on")
        axes.set_ylabel(f"{name.rpartition('/')[2].replace('_', ' ')}{', %' if shown.percent else ''}")
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
