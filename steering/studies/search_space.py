"""Random search: settings drawn from the ranges of dotted config keys, the same draws everywhere."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from steering.errors import ConfigError

Settings = dict[str, Any]
_PATIENCE = 100  # draws for each setting that is wanted, before the ranges count as used up


def settings(ranges: Mapping[str, Any], count: int, seed: int, section: str) -> list[Settings]:
    """Different settings: the first changes nothing, the others are drawn.

    The same key with the same range gets the same values at the same try, whatever else is drawn:
    methods that share a range are compared at the same places.

    Args:
        ranges: dotted key -> a list to choose from, or {low:, high:} between which numbers are
            drawn uniformly, with `log: true` by their logarithm.
        section: of the ranges, for messages.

    Raises:
        ConfigError: what is given is no range, or holds fewer different settings.
    """
    for key, given in ranges.items():
        _require_range(given, f"{section}.{key}")
    found: list[Settings] = [{}]
    for number in range(1, _PATIENCE * count):
        if len(found) == count:
            break
        drawn = {key: _value(given, seed, number, key) for key, given in ranges.items()}
        if drawn and drawn not in found:
            found.append(drawn)
    if len(found) < count:
        raise ConfigError(
            f"{section}: {'nothing to search' if not ranges else 'too few different settings'} "
            f"for {count} tries; widen the ranges, or lower studies.tuned.tries"
        )
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


def _value(given: Any, seed: int, number: int, key: str) -> Any:
    digest = hashlib.sha256(key.encode()).digest()
    generator = np.random.default_rng([seed, number, int.from_bytes(digest[:8], "big")])
    if isinstance(given, list):
        return given[int(generator.integers(len(given)))]
    low, high = given["low"], given["high"]
    if given.get("log"):
        low, high = math.log(low), math.log(high)
    drawn = float(generator.uniform(low, high))
    # Three digits are plenty, and can be typed again.
    return float(f"{math.exp(drawn) if given.get('log') else drawn:.3g}")
