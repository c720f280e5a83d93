"""Random search: settings drawn from the ranges of dotted config keys, the same draws everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steering.errors import ConfigError

Settings = dict[str, Any]
_PATIENCE = 100  # draws of a number that is to be a new one, before its range counts as used up


def settings(ranges: Mapping[str, Any], count: int, seed: int, section: str) -> list[Settings]:
    """Different settings: the first changes nothing, the others are drawn.

    A value depends on those of the keys before it alone: methods whose ranges begin with the same
    keys are compared at the same places, whatever else is drawn. A draw is never skipped, which
    would shift those behind it: of a list only what has come least often beside the same values is
    drawn, so that settings are equal only where there are no others.

    Args:
        ranges: dotted key -> a list to choose from, or {low:, high:} between which numbers are
            drawn uniformly, with `log: true` by their logarithm. What methods share comes first.
        section: of the ranges, for messages.

    Raises:
        ConfigError: what is given is no range, or holds fewer different settings.
    """
    for key, given in ranges.items():
        _require_range(given, f"{section}.{key}")
    found: list[Settings] = [{}]
    for number in range(1, count):
        drawn: Settings = {}
        alike = found[1:]  # so far, with the same values of the keys before
        for key, given in ranges.items():
            drawn[key] = _value(given, seed, number, key, [one[key] for one in alike])
            alike = [one for one in alike if one[key] == drawn[key]]
        if alike or not ranges:
            raise ConfigError(
                f"{section}: {'nothing to search' if not ranges else 'too few different settings'} "
                f"for {count} tries; widen the ranges, or lower studies.tuned.tries"
            )
        found.append(drawn)
    return found


def _require_range(given: Any, where: str) -> None:
    if isinstance(given, list) and given:
        return
    expected = "a list, or {low: a, high: b} with a < b, and above 0 with log: true"
    if not isinstance(given, Mapping) or not {"low", "high"} <= given.keys() <= _KEYS:
        raise ConfigError(f"{where}: expected {expected}, got {given!r}")
    low, high = given["low"], given["high"]
    numbers = all(type(one) in (int, float) and math.isfinite(one) for one in (low, high))
    if not numbers or low >= high or (given.get("log") and low <= 0):
        raise ConfigError(f"{where}: expected {expected}, got {dict(given)!r}")


_KEYS = {"low", "high", "log"}


def _value(given: Any, seed: int, number: int, key: str, taken: list[Any]) -> Any:
    """A draw for a key; `taken` are its values so far where all keys before had the same ones."""
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.default_rng([seed, number, int.from_bytes(digest[:8], "big")])
    if isinstance(given, list):
        drawn = given[int(generator.integers(len(given)))]
        least = min(map(taken.count, given))
        free = [one for one in given if taken.count(one) == least]
        return drawn if drawn in free else free[int(generator.integers(len(free)))]
    low, high = given["low"], given["high"]
    if given.get("log"):
        low, high = math.log(low), math.log(high)
    for _ in range(_PATIENCE):
        place = float(generator.uniform(low, high))
        # Three digits are plenty, and can be typed again.
        drawn = float(f"{math.exp(place) if given.get('log') else place:.3g}")
        if drawn not in taken:
            break
    return drawn
