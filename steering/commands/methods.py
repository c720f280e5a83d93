"""`steering methods`: which method fits which task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import entry_points

from steering.errors import SteeringError
from steering.methods import Entry, find_method, registered
from steering.task import Task, find_task
from steering.training.log import CONSOLE


def valid_units(entry: Entry, task: type[Task]) -> tuple[str, ...]:
    """The units of a task whose losses a method can take, with the groups that the task can have."""
    return tuple(unit for unit in task.units if entry.objection(unit, task.may_have_groups) is None)


def methods_table(tasks: dict[str, type[Task]]) -> list[str]:
    """A line for each method, a column for each task: the units that it works on, "–" where it makes no sense."""
    lines = [["method", *tasks, "what it does"]]
    for name, entry in registered().items():
        cells = [", ".join(valid_units(entry, task)) or "–" for task in tasks.values()]
        lines.append([name, *cells, entry.summary])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return ["  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines]


def main(argv: Sequence[str]) -> int:
    """Print the table; exit code 0, or 1 if a task or method that was named cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="steering methods",
        description="Print every method and the tasks that it fits, by the unit whose losses it reweights or selects.",
        epilog="examples:\n  steering methods\n  steering methods --task my_task.py:MyTask",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--task", action="append", default=[], metavar="FILE.py:CLASS", help="one more task")
    parser.add_argument("--method", action="append", default=[], metavar="FILE.py:NAME", help="one more method")
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.method:
            find_method(name)
        names = [*sorted(point.name for point in entry_points(group="steering.tasks")), *arguments.task]
        tasks = {name.rpartition(":")[2]: find_task(name) for name in names}
    except SteeringError as error:
        CONSOLE.print(f"steering: error: {error}", markup=False, soft_wrap=True)
        return 1
    for line in methods_table(tasks):
        clipped = CONSOLE.is_terminal  # a file or a pipe gets whole lines
        CONSOLE.print(
            line, markup=False, no_wrap=clipped, overflow="ellipsis" if clipped else None, soft_wrap=not clipped
        )
    return 0
