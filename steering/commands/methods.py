"""`steering methods`: which method fits which task, and what one method is: its formula, its
source, its keys."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Sequence
from dataclasses import fields
from typing import get_type_hints

from steering.console import CONSOLE, in_columns, print_lines
from steering.errors import ConfigError, SteeringError
from steering.extras import MissingExtraError
from steering.methods import Entry, find_method, registered
from steering.methods.ranges import documented, in_words
from steering.plugins import installed
from steering.registry import registry_of
from steering.schema import MISSING, default_of, nearest
from steering.task import Task, find_task
from steering.typed import plain_field
from steering.values import described, field_docs, section_of


def valid_units(entry: Entry, task: type[Task]) -> tuple[str, ...]:
    """The units of a task whose losses a method can take, with the groups that the task can
    have."""
    return tuple(unit for unit in task.units if entry.objection(unit, task.may_have_groups) is None)


def methods_table(tasks: dict[str, type[Task]]) -> list[str]:
    """A line for each method, a column for each task: the units that it works on, "–" where it
    makes no sense."""
    lines = [["method", *tasks, "what it does"]]
    for name, entry in registered().items():
        cells = [", ".join(valid_units(entry, task)) or "–" for task in tasks.values()]
        lines.append([name, *cells, entry.summary])
    return in_columns(lines)


def method_page(entry: Entry) -> list[str]:
    """What a method is: its docstring, the units of its losses, every key with its default, and the
    ranges worth searching.

    The docstring of a method's class or builder says what is computed and where it comes from in lines "Formula: ..." and
    "Source: ...".
    """
    text = inspect.cleandoc(entry.build.__doc__ or "").partition("\n\n")[2]
    more = [line for line in text.splitlines() if line.strip()]
    units = ", ".join(entry.units) + ("; the task needs groups" if entry.groups else "")
    lines = [["key", "default", "type", "meaning"], *_key_lines(entry.options, "method.")]
    keys = in_columns(lines) if len(lines) > 1 else ["It has no keys."]
    return [
        f"{entry.name}: {entry.summary or '(no description)'}",
        *more,
        f"Losses of: {units}",
        "",
        *keys,
        "",
        *_range_lines(entry),
    ]


def ranges_table(entry: Entry) -> list[list[str]]:
    """A line for each key that is worth searching, a column for each unit of the losses."""
    by_unit = [documented(entry.options, unit) for unit in entry.units]
    keys = list(dict.fromkeys(key for ranges in by_unit for key in ranges))
    return [
        [f"method.{key}", *(in_words(one[key]) if key in one else "–" for one in by_unit)]
        for key in keys
    ]


def _range_lines(entry: Entry) -> list[str]:
    lines = ranges_table(entry)
    if not lines:
        return ["It documents no ranges that are worth searching."]
    about = "Worth searching, by `steering study tuned` where a config gives no ranges:"
    if all(len({*cells}) == 1 for _, *cells in lines):
        return [about, *in_columns([["key", "range"], *([key, one] for key, one, *_ in lines)])]
    return [about, *in_columns([["key", *entry.units], *lines])]


def _key_lines(options: type, prefix: str) -> list[list[str]]:
    """A line for each key of a dataclass, those of its sections below them."""
    docs, hints, lines = field_docs(options), get_type_hints(options), []
    for key in (option for option in fields(options) if option.init):
        registry = registry_of(key.metadata)
        section = section_of(hints[key.name]) if registry is None else None
        default = default_of(key)
        shown = default if default == MISSING else plain_field(key, default)
        if registry is not None and isinstance(shown, dict) and [*shown] == ["name"]:
            shown = shown["name"]
        value = "required" if default == MISSING else json.dumps(shown, ensure_ascii=False)
        kind = described(hints[key.name]) if registry is None else f"a {registry.kind}"
        if section is not None:
            value = "section"
        lines.append([prefix + key.name, value, kind, docs.get(key.name, "–")])
        if section is not None:
            lines += _key_lines(section, f"{prefix}{key.name}.")
    return lines


def main(argv: Sequence[str]) -> int:
    """Print the table, or the page of one method.

    Raises:
        ConfigError: a task or method that was named cannot be loaded.
    """
    parser = argparse.ArgumentParser(
        prog="steering methods",
        description="Print every method and the tasks that it fits, by the unit whose losses it reweights or selects; "
        "or, with NAME, one method: its formula, its source, and every key with its default.",
        epilog="examples:\n  steering methods\n  steering methods drrho\n  steering methods my_method.py:name\n"
        "  steering methods --task my_task.py:MyTask",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show this method: a registered name, or FILE.py:NAME",
    )
    parser.add_argument(
        "--task", action="append", default=[], metavar="FILE.py:CLASS", help="one more task"
    )
    parser.add_argument(
        "--method", action="append", default=[], metavar="FILE.py:NAME", help="one more method"
    )
    arguments = parser.parse_args(argv)
    try:
        for name in arguments.method:
            find_method(name)
        if arguments.name is not None:
            lines = method_page(_named(arguments.name))
        else:
            tasks, missing = _installed_tasks()
            named = {name.rpartition(":")[2]: find_task(name) for name in arguments.task}
            lines = [*methods_table(tasks | named), *missing]
    except SteeringError as error:
        raise ConfigError(str(error)) from error
    print_lines(CONSOLE, lines, clip=arguments.name is None)
    return 0


def _installed_tasks() -> tuple[dict[str, type[Task]], list[str]]:
    """The tasks whose packages are here, and a line for each other one that says what it needs."""
    tasks, missing = {}, []
    for name in sorted(installed("steering.tasks")):
        try:
            tasks[name] = find_task(name)
        except MissingExtraError as error:
            missing.append(f"not shown: {error}")
    return tasks, missing


def _named(name: str) -> Entry:
    """The method of that name; SteeringError that names the nearest one."""
    try:
        return find_method(name)
    except SteeringError as error:
        if ":" in name:
            raise
        raise SteeringError(
            f"no method {name!r}; {nearest(name, [*registered()], keys=False)}"
        ) from error
