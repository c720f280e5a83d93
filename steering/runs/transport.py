"""An ask as a file, from the driver of a study to a process that executes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steering.config import config_of
from steering.errors import SteeringError
from steering.runs.ask import Ask, with_parents_first
from steering.storage import write_text

_AS_THEY_ARE = ("label", "axes", "kind", "about", "may_diverge")


def write_ask(path: Path, ask: Ask) -> None:
    """Keep an ask, with those that it is built on."""
    # Each once: a run may start from the one that is its reference, and so on along a chain.
    write_text(path, json.dumps([_plain(one) for one in with_parents_first([ask])]))


def read_ask(path: Path) -> Ask:
    """The ask of `write_ask`; SteeringError if it is another run here, as when a file that it names
    has changed meanwhile."""
    found: dict[str, Ask] = {}
    for values in json.loads(path.read_text(encoding="utf-8")):
        ask = _ask(values, found)
        found[values["key"]] = ask
        if ask.key != values["key"]:
            raise SteeringError(
                f"{ask.label}: a file that its config names has changed since the study began; start it again"
            )
    return ask


def _plain(ask: Ask) -> dict[str, Any]:
    return {
        "key": ask.key,
        "config": ask.yaml,
        "label": ask.label,
        "axes": dict(ask.axes),
        "kind": ask.kind,
        "about": dict(ask.about),
        "may_diverge": ask.may_diverge,
        "parents": {role: parent.key for role, parent in ask.parents.items()},
    }


def _ask(values: Mapping[str, Any], known: Mapping[str, Ask]) -> Ask:
    parents = {role: known[key] for role, key in values["parents"].items()}
    config = config_of(values["config"], f"config of {values['label']}")
    return Ask(config, parents=parents, **{name: values[name] for name in _AS_THEY_ARE})
