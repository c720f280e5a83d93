"""A run that is a function of a study's own: neither a training nor an evaluation, and a record all
the same.

    calling(base, "steering.studies.recipes_order0:order0", {}, "order0-even", one=a, two=b)

asks for it. The function gets a `Call` on every rank and returns an `Outcome`. Its name, its options,
the content of the files that it names, the `task:` section and the parents are the run's identity.
What it reads of its config beyond the task, it says as an option.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steering import distributed
from steering.config import RunConfig
from steering.errors import SteeringError
from steering.plugins import load_file, load_module
from steering.runs.opened import Frozen, Opened
from steering.runs.record import Cost, Metric, RunRecord, Scores
from steering.runs.wanted import MODEL, Ask, file_content, model_content
from steering.runs.workshop import Workshop
from steering.storage import write_text
from steering.task import Task


@dataclass(frozen=True)
class Outcome:
    """What a run has found; `steering.runs.record.RunRecord` says what each part means.

    Attributes:
        scores: written as the run's `scores.npz`; None when the run has written them itself, or has
            none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    meaning: Mapping[str, Metric] = field(default_factory=dict)
    scores: Mapping[str, Scores] | None = None
    cost: Cost = field(default_factory=Cost)
    summary: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A run under way: what was asked, and where it is done.

    Attributes:
        folder: the run's own; only rank 0 writes there.
        title: for a progress line.
    """

    ask: Ask
    workshop: Workshop
    folder: Path
    title: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """What `calling` was given."""
        return dict(self.ask.about["options"])

    @property
    def opened(self) -> Opened:
        """The task with its data."""
        return self.workshop.opened(self.ask)

    @property
    def task(self) -> Task:
        return self.opened.task

    def model(self) -> Frozen:
        """The frozen model: that of the parent "model", else the config's target as it is given."""
        if MODEL in self.ask.parents:
            return self.workshop.trained(self.ask.parents[MODEL], self.opened)
        return self.opened.frozen(self.ask.config.target)

    def parent(self, role: str) -> RunRecord | None:
        """The record of another run that this one is built on; None without one."""
        found = self.ask.parents.get(role)
        return None if found is None else self.workshop.finished(found)

    def write(self, name: str, text: str) -> None:
        """A text in the run's folder."""
        if distributed.rank() == 0:
            write_text(self.folder / name, text)


def calling(
    config: RunConfig,
    function: str,
    options: Mapping[str, Any],
    label: str,
    axes: Mapping[str, Any] | None = None,
    files: Sequence[str] = (),
    *,
    reads_model: bool = False,
    **parents: Ask,
) -> Ask:
    """Call a function of a study, and keep what it found as a record.

    Args:
        function: "package.module:name", or "path/to/file.py:name", whose content counts.
        options: plain values; part of the key.
        reads_model: whether the function reads the config's target, which then counts, its files by
            their content.
        files: that the function reads; their content counts. "file.py:name" stands for the file.
        parents: runs that it is built on, by role.
    """
    about: dict[str, Any] = {"call": function, "options": dict(options)}
    named = [one.rpartition(":")[0] if ".py:" in one else one for one in (function, *files)]
    contents = [file_content(one) for one in named]
    if any(one.startswith("sha256:") for one in contents) or files:
        about["files"] = contents
    if reads_model:
        about["model"] = model_content(config.target)
    return Ask(config, label, axes or {}, parents, "call", about)


def find_function(name: str) -> Callable[[Call], Outcome]:
    """The function of a call; SteeringError when there is none of that name."""
    where, _, attribute = name.rpartition(":")
    module = (load_file if where.endswith(".py") else load_module)(where, "call")
    found = vars(module).get(attribute)
    if not callable(found):
        raise SteeringError(f"call: {where} has no function {attribute!r}")
    function: Callable[[Call], Outcome] = found
    return function
