"""The registry of methods: a name, a dataclass of options, and a class, one short file each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.errors import ConfigError
from steering.methods.contract import Method, Needs, Step
from steering.plugins import find_registered
from steering.reading import report_once
from steering.typed import KEYS

__all__ = [
    "GIVEN",
    "UNITS",
    "Entry",
    "Method",
    "Needs",
    "Step",
    "build_method",
    "check_options",
    "find_method",
    "register",
    "registered",
]

UNITS = ("example", "token", "sequence", "pair")
"""What a loss item can belong to: `ReferenceRisk.unit`."""


@dataclass(frozen=True)
class Entry:
    """A registered method.

    Attributes:
        options: dataclass of its `method:` section.
        build: the method's class, or a function that makes one.
        summary: one sentence.
        units: the units whose losses it can reweight or select.
        groups: whether it weights groups (domains), and so needs a task that has some.
        needs: what it asks of a run, a pure function of the options.
        takes: what `build` takes after the options, by name, of `GIVEN`.
        for_unit: (options, unit) -> the options with what None means for losses of that unit.
    """

    name: str
    options: type
    build: Callable[..., Method]
    summary: str
    units: tuple[str, ...] = UNITS
    groups: bool = False
    needs: Callable[[Any], Needs] = lambda _: Needs()
    takes: tuple[str, ...] = ()
    for_unit: Callable[[Any, str], Any] = lambda options, _: options

    def objection(self, unit: str, has_groups: bool) -> str | None:
        """Why this method makes no sense for such losses, or None."""
        if unit not in self.units:
            return f"works on losses of {' or '.join(map(_with_article, self.units))}, not of {_with_article(unit)}"
        return "weights groups, and there are none" if self.groups and not has_groups else None


def _with_article(unit: str) -> str:
    return f"an {unit}" if unit[0] in "aeiou" else f"a {unit}"


GROUP = "steering.methods"
"""Entry points in which installed packages offer methods."""
_REGISTRY: dict[str, Entry] = {}
GIVEN = ("num_examples", "groups", "unit")
"""What a builder may take beside the options, by name: the size of the training set, the names of
its groups, and what a loss belongs to, one of `UNITS`."""


def register(
    name: str,
    options: type,
    *,
    units: Iterable[str] = UNITS,
    groups: bool = False,
    needs: Needs | None = None,
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Decorate a method's class, or a function that builds one, `build(options, ...) -> Method`.

    Its constructor takes the options, and by name what it wants of `GIVEN`. Its docstring's first
    paragraph is the summary.

    Args:
        options: dataclass of the `method:` section. Methods of it are used if it has them:
            `needs()` returns the `Needs`, where they depend on the options; `for_unit(unit)` the
            options with their defaults for losses of that unit; `search` and `idle()`, what is
            worth searching: `steering.methods.ranges`.
        units: what the loss items may belong to, of `UNITS`.
        groups: it weights groups, and is refused for data that have none.
        needs: what it needs whatever the options; None: what the options say, else nothing.

    Raises:
        ValueError: the name is taken, a unit is unknown, or the constructor takes something else.
    """

    def add(build: Callable[..., Method]) -> Callable[..., Method]:
        if name in _REGISTRY:
            raise ValueError(f"a method named {name!r} is registered already")
        if unknown := set(units) - {*UNITS}:
            raise ValueError(f"units: expected some of {', '.join(UNITS)}, got {sorted(unknown)}")
        # The class's own docstring: one that has none inherits no summary.
        summary = inspect.cleandoc(build.__doc__ or "").partition("\n\n")[0]
        for key in getattr(options, "__dataclass_fields__", {}):
            KEYS.setdefault(key, f"method.{key}")
        _REGISTRY[name] = Entry(
            name,
            options,
            build,
            " ".join(summary.split()),
            units=tuple(units),
            groups=groups,
            needs=getattr(options, "needs", Entry.needs) if needs is None else lambda _: needs,
            takes=_takes(name, build),
            for_unit=getattr(options, "for_unit", Entry.for_unit),
        )
        return build

    return add


def _takes(name: str, build: Callable[..., Method]) -> tuple[str, ...]:
    others = [*inspect.signature(build).parameters][1:]
    if unknown := set(others) - {*GIVEN}:
        raise ValueError(
            f"method {name!r}: its builder takes {', '.join(sorted(unknown))}; "
            f"expected the options and some of {', '.join(GIVEN)}"
        )
    return tuple(others)


def find_method(name: str) -> Entry:
    """The registered method of that name.

    Args:
        name: one of ours, an entry point in the group "steering.methods" (a module that registers
            it), or where the module is and the name it registers: "package.module:tail",
            "path/to/file.py:tail".

    Raises:
        SteeringError: nothing of that name; the message lists the known ones.
    """
    return find_registered(name, registered, "method", "method.name", [GROUP])


def registered() -> dict[str, Entry]:
    """All methods by name."""
    return dict(sorted(_REGISTRY.items()))


def build_method(
    name: str,
    options: Any,
    num_examples: int,
    groups: Sequence[str] = (),
    unit: str | None = None,
    group_counts: Sequence[int] | np.ndarray | None = None,
) -> Method:
    """Build a method for a training set of `num_examples` examples.

    Args:
        options: of the method's own class; what is None and depends on the unit is filled in here.
        groups: names of the groups, for a method that weights groups.
        unit: of the losses, one of `UNITS`; None: the first that the method knows, which is the
            example if it knows it.
        group_counts: training examples of each group, (k,); one without any gets no weight. None:
            unknown, all have some.

    Raises:
        ConfigError: an option is out of range, or a group has no examples and the method cannot
            leave it out.
    """
    entry = find_method(name)
    unit = unit or entry.units[0]
    options = entry.for_unit(options, unit)
    given = {"num_examples": num_examples, "groups": tuple(groups), "unit": unit}
    try:
        method = entry.build(options, **{key: given[key] for key in entry.takes})
    except ValueError as error:
        raise ConfigError(f"method ({name}): {error}") from error
    method.needs = entry.needs(options)
    if entry.groups and group_counts is not None:
        _leave_out(method, name, groups, group_counts)
    return method


def check_options(name: str, options: Any, unit: str | None = None) -> None:
    """ConfigError where an option is out of range, before any data are opened.

    A method checks its options where it is constructed, so one for a single example is made, and
    dropped.
    """
    build_method(name, options, 1, ("all",), unit)


def _leave_out(
    method: Method, name: str, groups: Sequence[str], counts: Sequence[int] | np.ndarray
) -> None:
    """Tell the method, and the user, which groups have no training example."""
    empty = [number for number, count in enumerate(counts) if not count]
    if not empty:
        return
    names = ", ".join(groups[number] for number in empty)
    try:
        method.without_groups(empty)
    except NotImplementedError:
        raise ConfigError(
            f"method ({name}): no training example belongs to group {names}"
        ) from None
    report_once(f"method ({name}): no training example belongs to group {names}; it gets no weight")
