"""The ranges of the study of tuned methods that a config leaves to the methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.schema import MethodConfig
    from steering.studies.tuned import TunedOptions


def with_documented(options: TunedOptions, base: RunConfig) -> TunedOptions:
    """The options in which every label without `ranges` has those that its method and its selector
    document, for the losses of the config's task.

    Raises:
        ConfigError: a section of `methods` is wrong.
    """
    from steering.config import method_section, with_method

    found: dict[str, dict[str, Any]] = {}
    left = [label for label in options.methods if label not in options.ranges]
    unit = _unit(base) if left else ""
    for label in left:
        section = method_section(options.methods[label])
        method = with_method(base, section, f"studies.tuned.methods.{label}").method
        ranges = documented_ranges(method, unit)
        found[label] = {
            key: given for key, given in ranges.items() if not _meets(key, options.common)
        }
    documented = [label for label, ranges in found.items() if ranges]
    return replace(options, ranges={**options.ranges, **found}, documented=documented)


def documented_ranges(method: MethodConfig, unit: str) -> dict[str, Any]:
    """Dotted config key -> range, of what is worth searching of a `method:` section as it stands."""
    from steering.methods.ranges import searched

    parts = {"method.": method.options}
    if method.select is not None:
        parts["method.select."] = method.select
    return {
        prefix + key: given
        for prefix, part in parts.items()
        for key, given in searched(part, unit).items()
    }


def origin(options: TunedOptions) -> str:
    """A sentence that says whose the ranges are."""
    if not options.documented:
        return "The ranges are the config's."
    labels = ", ".join(options.documented)
    return f"The ranges of {labels} are those that the methods document, all others the config's."


def _unit(base: RunConfig) -> str:
    """Of the losses of a config's task."""
    from steering.task import find_task

    task = find_task(base.task.name)
    # Where its options cannot change the unit, they are not asked: it would open the data.
    return task.units[0] if len(task.units) == 1 else task(base.task).risk.unit


def _meets(key: str, others: Iterable[str]) -> bool:
    """Whether a dotted key is one of the others, above one, or below one."""
    return any(f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in others)
