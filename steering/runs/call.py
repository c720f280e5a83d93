"""A run that is a function of a study's own: neither a training nor an evaluation, and a record all
the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steering import distributed
from steering.config import RunConfig
from steering.errors import SteeringError
from steering.plugins import load_file, load_module
from steering.reading import user_path
from steering.runs.ask import Ask
from steering.runs.record import Cost, Metric, RunRecord, Scores
from steering.runs.workshop import Frozen, Workshop
from steering.storage import known_sha256, write_text
from steering.task import Task


@dataclass(frozen=True)
class Call:
    """What the function is given.

    Attributes:
        folder: of the run; only rank 0 writes there.
    """

    ask: Ask
    workshop: Workshop
    folder: Path

    @property
    def options(self) -> dict[str, Any]:
        return dict(json.loads(self.ask.about["options"]))

    @property
    def task(self) -> Task:
        return self.workshop.task(self.ask.config)

    def model(self) -> Frozen:
        """The frozen model: that of the parent "model", else the config's target as it is given."""
        if "model" in self.ask.parents:
            return self.workshop.trained(self.ask.parents["model"], self.task)
        return self.workshop.given(self.ask.config.target, self.task)

    def parent(self, role: str) -> RunRecord | None:
        """The record of another run that this one is built on; None without one."""
        found = self.ask.parents.get(role)
        return None if found is None else self.workshop.finished(found)

    def write(self, name: str, text: str) -> None:
        """A text in the run's folder."""
        if distributed.rank() == 0:
            write_text(self.folder / name, text)


@dataclass(frozen=True)
class Finding:
    """What the function found; fields as those of a record."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    meaning: Mapping[str, Metric] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    summary: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)


def calling(
    config: RunConfig,
    function: str,
    options: Mapping[str, Any],
    label: str,
    axes: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
    **parents: Ask,
) -> Ask:
    """Run a function of a study's own, `steering.runs.call.Call` in and `Finding` out, and keep what
    it found as a record.

    Args:
        function: "package.module:name", or "path/to/file.py:name", whose content counts.
        options: plain values; part of the key.
        files: that the function reads; their content counts. "file.py:name" stands for the file.
    """
    named = [one.rpartition(":")[0] if ".py:" in one else one for one in (function, *files)]
    about = {
        "call": function,
        "options": json.dumps(options, sort_keys=True),
        "files": json.dumps([_content(one) for one in named]),
    }
    return Ask(config, label, axes or {}, parents, "call", about)


def _content(name: str) -> str:
    """A file's digest; what is no file, as it is."""
    path = user_path(name)
    return f"sha256:{known_sha256(path)}" if path.is_file() else name


def find_function(name: str) -> Callable[[Call], Finding]:
    """The function of a call; SteeringError when there is none of that name."""
    where, _, attribute = name.rpartition(":")
    module = (load_file if where.endswith(".py") else load_module)(where, "call")
    found = vars(module).get(attribute)
    if not callable(found):
        raise SteeringError(f"call: {where} has no function {attribute!r}")
    return found
