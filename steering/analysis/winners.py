"""Which method a table may show in bold: one that an interval sets apart from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steering.analysis.intervals import Bootstrap, Interval, paired_difference, seeds_interval
from steering.analysis.report import metric_groups, style
from steering.runs.record import Metric, RunRecord

Runs = Mapping[str, Mapping[int, RunRecord]]


def winners(
    runs: Runs, rows: Sequence[Mapping[str, Any]], styles: Mapping[str, Metric]
) -> dict[str, str]:
    """Metric -> the method that is better than each other one and than the reference, by a 95 %
    interval over two seeds or more; metrics without such a method are left out.

    Args:
        runs: method -> seed -> run.
        rows: those of the table; a method that is not in `runs` is a single model.
    """
    bootstrap, found = Bootstrap(), {}
    single = {row["method"]: row["metrics"] for row in rows if row["method"] not in runs}
    for names in metric_groups(rows).values():
        for name in names:
            sign = style(name, styles).sign
            if (best := _best(runs, name, sign)) is None:
                continue
            others = [label for label in runs if label != best]
            cells = [
                paired_difference(runs[best], runs[other], name, bootstrap) for other in others
            ]
            mine = [run.metrics[name] for run in runs[best].values() if name in run.metrics]
            cells += [
                seeds_interval([value - one[name] for value in mine])
                for one in single.values()
                if name in one
            ]
            if cells and all(_apart(cell, sign) for cell in cells):
                found[name] = best
    return found


def _best(runs: Runs, name: str, sign: int) -> str | None:
    means = {
        label: sum(values) / len(values)
        for label, one in runs.items()
        if (values := [run.metrics[name] for run in one.values() if name in run.metrics])
    }
    return max(means, key=lambda label: sign * means[label]) if means else None


def _apart(cell: Interval | None, sign: int) -> bool:
    """Whether the interval lies wholly on the better side; that of examples alone knows nothing of
    another seed."""
    if cell is None or not cell.over or cell.over == "examples":
        return False
    return min(sign * cell.low, sign * cell.high) > 0
