"""Which values of a method's keys are worth searching, as its options document them.

The options class of a method or of a selector may have

    search: ClassVar = {"share": {"low": 0.1, "high": 0.9}}

or a static method `search(unit)` that returns this for losses of that unit: key -> a list to choose
from, or {low:, high:} between which numbers are drawn evenly, with `log: true` by their logarithm.
A method `idle()` may name the keys among these that have no effect as the others stand.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

from steering.dro.adversary import Adversary
from steering.errors import ConfigError
from steering.schedules import Constant

Ranges = dict[str, Any]


def evenly(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high}


def by_log(low: float, high: float) -> dict[str, Any]:
    return {"low": low, "high": high, "log": True}


@dataclass(frozen=True)
class _OfAdversary:
    tau: Mapping[str, Any]
    radius: Mapping[str, Any]
    strength: Mapping[str, Any]
    prior: Mapping[str, Any]


# Losses of a sequence are means over its tokens: they differ less than those of tokens, and want a
# lower tau and a larger prior.
_BY_UNIT = {
    "example": _OfAdversary(
        by_log(0.5, 16.0), by_log(0.05, 2.0), by_log(0.25, 8.0), by_log(0.1, 4.0)
    ),
    "token": _OfAdversary(by_log(0.5, 16.0), by_log(0.05, 2.0), by_log(0.5, 4.0), by_log(0.1, 1.5)),
    "sequence": _OfAdversary(
        by_log(0.05, 2.0), by_log(0.05, 2.0), by_log(0.5, 4.0), by_log(1.0, 16.0)
    ),
    "pair": _OfAdversary(
        by_log(0.01, 0.15), by_log(1.0, 16.0), evenly(0.25, 1.0), by_log(0.5, 6.0)
    ),
}


def adversary_ranges(unit: str) -> Ranges:
    """Of the keys of an adversary over losses of a unit."""
    return dict(vars(_BY_UNIT.get(unit, _BY_UNIT["example"])))


def idle_keys(adversary: Adversary) -> Collection[str]:
    """Keys of an adversary that have no effect, or next to none, as the others stand."""
    if adversary.radius is not None:
        return ("tau",)  # where it starts, and then it is learned
    return ("strength",) if adversary.tau == Constant(math.inf) else ()


def documented(options: Any, unit: str) -> Ranges:
    """The ranges that an options class, or an instance of it, documents; none by default."""
    search = getattr(options, "search", {})
    return dict(search(unit) if callable(search) else search)


def searched(options: Any, unit: str) -> Ranges:
    """The documented ranges of the keys that a search should touch.

    These are the keys whose value is a plain number inside its range, be it the default or what a
    config says. What is switched off (0, null, .inf) stays off; a schedule stays.

    Raises:
        ConfigError: a range is documented for what is no key.
    """
    usual = options.for_unit(unit) if hasattr(options, "for_unit") else options
    idle = options.idle() if hasattr(options, "idle") else ()
    return {
        key: given
        for key, given in documented(options, unit).items()
        if key not in idle and _holds(given, _value(usual, key))
    }


def in_words(given: Any) -> str:
    """A range as tables show it: "0.5 to 16, log"."""
    if not isinstance(given, Mapping):
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in given)
    return f"{given['low']:g} to {given['high']:g}{', log' if given.get('log') else ''}"


def _value(options: Any, key: str) -> Any:
    try:
        found = reduce(getattr, key.split("."), options)
    except AttributeError:
        name = type(options).__name__
        raise ConfigError(f"{name}.search: {key!r} is no key of {name}") from None
    return found.value if isinstance(found, Constant) else found


def _holds(given: Any, value: Any) -> bool:
    if isinstance(given, list):
        return value in given
    if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys():
        return True  # no range: refused by name where it is to be drawn from
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and bool(given["low"] <= value <= given["high"])
