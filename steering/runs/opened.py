"""A task with its data, opened once for all runs that ask for the same `task:` section."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.outputs import weights_fingerprint
from steering.reading import user_path
from steering.runs.sources import sources_of
from steering.storage import known_sha256
from steering.task import Model, ModelSpec, Task, find_task
from steering.typed import plain

KEPT = 2  # data sets in memory, of a target's inputs and of a reference's; and frozen models
TRAINING = "train"


@dataclass(frozen=True)
class Frozen:
    """A model that no run changes, and the digest of its weights."""

    model: Model
    weights: str


class Opened:
    """What runs share that name the same data: neither a method nor a seed plays a part in it.

    Args:
        options: the task's options, a config's `task:` section.

    Raises:
        SteeringError: the task or its data cannot be had.
    """

    def __init__(self, options: Any) -> None:
        self.task: Task = find_task(options.name)(options)
        self._options = options
        self._plain: dict[str, IndexedData] = {}
        self._frozen: dict[str, Frozen] = {}
        self._digest = ""
        self._held_out: dict[str, str] | None = None

    @cached_property
    def sources(self) -> dict[str, list[int]]:
        """Files that the section names, and their sizes and times."""
        return sources_of(plain(self._options))

    def plain_data(self, model: Model) -> IndexedData:
        """The training examples for one model, without augmentation.

        Opened once for models of the same preprocessing, as an index of many shards takes a while.
        """
        name = model.inputs_fingerprint
        if name not in self._plain:
            make_room(self._plain, KEPT)
            self._plain[name] = self.task.plain_data(model)
        return self._plain[name]

    def digest(self, data: IndexedData) -> str:
        """The digest of the training data, computed once, whichever view of them comes first."""
        if not self._digest:
            self._digest = data.fingerprint()
        return self._digest

    def held_out(self, model: Model) -> dict[str, str]:
        """What finished runs that were evaluated on the same are compared with; nothing where the
        task has no held-out data by number."""
        if self._held_out is None:
            parts = self.task.held_out_data(model)
            self._held_out = {name: parts[name].fingerprint() for name in sorted(parts)}
        return {f"task: {name} data": digest for name, digest in self._held_out.items()}

    def frozen(self, spec: ModelSpec) -> Frozen:
        """A model of given weights, in eval mode and without gradient.

        Another task may build another network from the same words (its classes, its image size), so
        it is kept here and not by its name alone.
        """
        file = None if spec.checkpoint is None else user_path(spec.checkpoint)
        content = known_sha256(file) if file is not None and file.is_file() else ""
        name = f"{spec} {content}"
        if name not in self._frozen:
            make_room(self._frozen, KEPT)
            model = self.task.build(spec)
            model.module.eval().requires_grad_(False)
            self._frozen[name] = Frozen(model, weights_fingerprint(model.module))
        return self._frozen[name]

    def part(self, name: str, model: Model) -> tuple[IndexedData, str]:
        """The training data or a part of the held-out data, without augmentation, and the digest.

        Raises:
            SteeringError: the task has no such part; the message lists those that it has.
        """
        if name == TRAINING:
            data = self.plain_data(model)
            return data, self.digest(data)
        parts = self.task.held_out_data(model)
        if name not in parts:
            known = ", ".join([TRAINING, *parts])
            raise SteeringError(f"outputs: the task has no part {name!r}; it has {known}")
        return parts[name], parts[name].fingerprint()


def make_room(kept: dict[Any, Any], most: int) -> None:
    """For one more: the oldest go."""
    while len(kept) >= most:
        del kept[next(iter(kept))]
