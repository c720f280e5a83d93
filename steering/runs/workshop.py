"""What the runs of a study share while they are executed: opened tasks, references, stored outputs.
Nothing is made twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steering import distributed
from steering.config import RunConfig
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.methods import check_options
from steering.outputs import Artefact, Estimate, Fingerprint, build, estimate, weights_fingerprint
from steering.reading import user_path
from steering.runs.ask import REFERENCE, Ask, differences, objection_of, reference_target
from steering.runs.record import WEIGHTS, RunRecord
from steering.runs.sources import sources_of
from steering.runs.store import OUTPUTS, Store, require_same_found
from steering.schema import ConfigError, plain
from steering.storage import known_sha256
from steering.task import Model, ModelSpec, Task, find_task
from steering.training.loader import load

KEPT = 2  # frozen models, and data, in memory


@dataclass(frozen=True)
class Frozen:
    """A model that no run changes, and the digest of its weights."""

    model: Model
    weights: str


class Workshop:
    """Opens, builds and computes what runs need, once.

    Args:
        store: where runs and outputs are kept.
        device: where models run.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store, self.device = store, device
        self._tasks: dict[str, Task] = {}
        self._data: dict[str, str] = {}
        self._plain: dict[str, IndexedData] = {}
        self._sources: dict[str, dict[str, list[int]]] = {}
        self._frozen: dict[str, Frozen] = {}

    def task(self, config: RunConfig) -> Task:
        """The config's task, opened once for all runs that ask for the same."""
        name = _text(config)
        if name not in self._tasks:
            self._tasks[name] = find_task(config.task.name)(config.task)
        return self._tasks[name]

    def fitting_task(self, ask: Ask) -> Task:
        """The task of a training, set up for its method; ConfigError when the two do not fit."""
        # Before the data are opened, which may take a while.
        check_options(ask.config.method.name, ask.config.method.options)
        task = self.task(ask.config)
        objection = objection_of(ask.config, task.risk.unit, bool(task.groups))
        if objection is not None:
            raise ConfigError(
                f"method.name: {ask.config.method.name} {objection} (task {ask.config.task.name})"
            )
        if task.risk.unit == "pair" and ask.config.train.batch_size < 2:
            raise ConfigError(
                "train.batch_size: a pair is compared with the others of its batch; expected at least 2, got "
                f"{ask.config.train.batch_size}"
            )
        return task

    def sources(self, config: RunConfig) -> dict[str, list[int]]:
        """Files that a task's section names, and their sizes and times; looked at once."""
        name = _text(config)
        if name not in self._sources:
            self._sources[name] = sources_of(plain(config.task))
        return self._sources[name]

    def verify(self, ask: Ask, record: RunRecord) -> None:
        """Compare the data with those that a finished run met, if their files' sizes or times say
        that they may have changed.

        Raises:
            SteeringError: they have; names both sides.
        """
        if ask.kind == "train" and self.sources(ask.config) != {
            path: [*one] for path, one in record.sources.items()
        }:
            task = self.task(ask.config)
            data = self.plain_data(ask.config, task.build(ask.config.target))
            found = {"task: data": self.data_digest(ask.config, data)}
            require_same_found([record], ask.asked, found, record.folder)

    def plain_data(self, config: RunConfig, model: Model) -> IndexedData:
        """The task's examples for one model, without augmentation; opened once, as an index of many
        shards takes a while."""
        name = f"{_text(config)} {model.inputs_fingerprint}"
        if name not in self._plain:
            _make_room(self._plain)
            self._plain[name] = self.task(config).plain_data(model)
        return self._plain[name]

    def data_digest(self, config: RunConfig, data: IndexedData) -> str:
        """The digest of a task's training data, computed once."""
        name = _text(config)
        if name not in self._data:
            self._data[name] = data.fingerprint()
        return self._data[name]

    def reference(self, ask: Ask) -> Frozen:
        """The frozen reference of a training: its parent's weights, or those that its config
        gives."""
        if REFERENCE in ask.parents:
            return self.trained(ask.parents[REFERENCE], self.task(ask.config))
        return self.given(reference_target(ask.config).target, self.task(ask.config))

    def trained(self, parent: Ask, task: Task) -> Frozen:
        """The model that a finished run has trained, in eval mode and without gradient."""
        record = self.finished(parent)
        return self.given(
            replace(parent.config.target, checkpoint=str(record.folder / WEIGHTS)), task
        )

    def given(self, spec: ModelSpec, task: Task) -> Frozen:
        """A model of given weights, frozen."""
        file = None if spec.checkpoint is None else user_path(spec.checkpoint)
        name = f"{spec} {known_sha256(file) if file is not None and file.is_file() else ''}"
        if name not in self._frozen:
            _make_room(self._frozen)
            model = task.build(spec)
            model.module.eval().requires_grad_(False)
            self._frozen[name] = Frozen(model, weights_fingerprint(model.module))
        return self._frozen[name]

    def finished(self, ask: Ask) -> RunRecord:
        """The record of a run that others are built on; SteeringError when its weights are no
        longer those that it wrote."""
        record = self.store.find(ask.key)
        if record is None:
            raise SteeringError(f"{ask.label}: not finished in {self.store.folder}")
        path = record.folder / WEIGHTS
        if record.weights:
            now = known_sha256(path) if path.is_file() else "nothing"
            if now != record.weights:
                raise SteeringError(
                    f"{path} has changed since the run finished (weights: {record.weights[:12]} written, {now[:12]} found); "
                    "delete the run's folder to train it again"
                )
        return record

    def stored(
        self,
        root: Path,
        kind: str,
        frozen: Frozen,
        data: IndexedData,
        digest: str,
        config: RunConfig,
        task: Task,
    ) -> Artefact:
        """Stored outputs of a model on some data, computed if they are not there.

        Args:
            digest: the data's fingerprint.
        """
        wanted = Fingerprint(frozen.weights, frozen.model.inputs_fingerprint, digest)
        module = frozen.model.module.to(self.device)
        return build(
            root,
            wanted,
            kind,
            task.risk,
            module,
            self._batches(data, config)[0],
            len(data),
            self.device,
        )

    def stored_reference(self, ask: Ask, frozen: Frozen) -> Artefact:
        """The outputs of a training's reference that its method needs, on the training data without
        augmentation."""
        task, config = self.task(ask.config), ask.config
        data = self.plain_data(config, frozen.model)
        root, digest = self.outputs_root(config), self.data_digest(config, data)
        return self.stored(root, ask.needs.outputs, frozen, data, digest, config, task)

    def estimate_reference(self, ask: Ask, frozen: Frozen) -> Estimate:
        """Bytes and seconds of `stored_reference`, from two batches."""
        task = self.task(ask.config)
        data = self.plain_data(ask.config, frozen.model)
        batches, steps = self._batches(data, ask.config)
        module = frozen.model.module.to(self.device).eval()
        return estimate(
            ask.needs.outputs, task.risk, module, batches, len(data), steps, self.device
        )

    def outputs_root(self, config: RunConfig) -> Path:
        """Folder of stored outputs: beside the runs, or where `reference.cache` says."""
        where = None if config.reference is None else config.reference.cache
        return self.store.folder / OUTPUTS if where in (None, "auto") else user_path(str(where))

    def _batches(self, data: IndexedData, config: RunConfig):  # type: ignore[no-untyped-def]
        """From a batch number on, this rank's batches; and how many there are."""
        size, rank, world = config.train.batch_size, distributed.rank(), distributed.world_size()
        steps = -(-len(data) // (size * world))
        # Every rank takes the same number of batches, since opening the files is a joint step; the
        # last ones wrap around.
        order = (
            torch.arange(steps * size * world)
            .remainder(len(data))
            .numpy()
            .reshape(steps, world, size)
        )

        def batches(start: int) -> Iterator[dict[str, Tensor]]:
            return load(
                data, ((0, rows[rank]) for rows in order[start:]), config.train.workers, pin=False
            )

        return batches, steps


def _make_room(kept: dict[str, Any]) -> None:
    """For one more: the oldest go."""
    while len(kept) >= KEPT:
        del kept[next(iter(kept))]


def _text(config: RunConfig) -> str:
    return json.dumps(differences(config.task), sort_keys=True, default=str)
