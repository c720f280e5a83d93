"""A config's plain values before they are checked: overrides, base files, and who set what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from steering.errors import ConfigError
from steering.typed import MISSING

_DOTTED = ("smoke_overrides", "reference.train")  # mappings whose own keys are dotted
_CHOOSING = ("method", "optimizer", "train", "compare")  # sections in which parts are chosen
_NAMED = (
    "task",
    "target",
    "reference",
    "method",
    "optimizer",
)  # sections that `key=name` may replace


@dataclass
class Tree:
    """Nested plain values on their way to a RunConfig, and who set what."""

    values: dict[str, Any]
    where: str
    set_by: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, by: str) -> None:
        """Replace one value; sections on the way that are absent or null are made."""
        *above, last = split_key(key)
        node = self.values
        for depth, part in enumerate(above, 1):
            if node.get(part) in (None, MISSING):
                node[part] = {}
                self.set_by[".".join(above[:depth])] = by
            if isinstance(node[part], str) and above[0] in _CHOOSING and depth > 1:
                node[part] = {"name": node[part]}  # the name of a part, whose own keys follow
            if not isinstance(node[part], dict):
                raise ConfigError(
                    f"{by}: {key}: {'.'.join(above[:depth])} is a value, not a section"
                )
            node = node[part]
        old = node.get(last)
        if is_name(key, value):
            value = old if isinstance(old, dict) and old.get("name") == value else {"name": value}
        node[last] = value
        self.set_by.pop(key, None)  # the latest stands last
        self.set_by[key] = by

    def source(self, path: str) -> str:
        """Who set the value at a dotted path: the file, or the source of the overrides at, above or
        below it."""
        above = [
            by
            for key, by in self.set_by.items()
            if path == key or path.startswith((f"{key}.", f"{key}["))
        ]
        if above:
            return above[-1]
        below = dict.fromkeys(by for key, by in self.set_by.items() if key.startswith(f"{path}."))
        return ", ".join([self.where, *below])

    def fail(self, path: str, message: str) -> NoReturn:
        raise ConfigError(f"{self.source(path)}: {message}")


def merged(base: dict[str, Any], own: dict[str, Any], path: str) -> dict[str, Any]:
    """A config laid over its base: sections are merged, and a section with another `name` replaces
    the base's."""
    found = dict(base)
    for key, value in own.items():
        where = f"{path}.{key}" if path else key
        old = base.get(key)
        found[key] = value
        if (
            isinstance(old, dict)
            and isinstance(value, dict)
            and where not in ("compare.methods", *_DOTTED)
        ):
            named = where in _NAMED or where.partition(".")[0] in _CHOOSING
            other = named and value.get("name", old.get("name")) != old.get("name")
            found[key] = value if other else merged(old, value, where)
    return found


def split_key(key: str) -> list[str]:
    """The parts of a dotted key; behind a mapping of dotted keys the rest is one part."""
    for section in _DOTTED:
        if key.startswith(f"{section}."):
            return [*section.split("."), key.removeprefix(f"{section}.")]
    return key.split(".")


def is_name(key: str, value: Any) -> bool:
    """True for the drrho of `method: drrho`, which means `method: {name: drrho}`."""
    return key in _NAMED and isinstance(value, str) and value != MISSING and "${" not in value


def spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    return {key: {"name": value} if is_name(key, value) else value for key, value in values.items()}
