"""What the runs of a study share while they are executed: opened tasks, frozen models, stored
outputs. Nothing is made twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from steering import distributed
from steering.data import IndexedData
from steering.errors import ConfigError, SteeringError
from steering.methods import check_options
from steering.outputs import Artefact, Estimate, Fingerprint, build, estimate
from steering.outputs.computing import Batches
from steering.runs.ask import REFERENCE, Ask
from steering.runs.opened import Frozen, Opened, make_room
from steering.runs.record import WEIGHTS, RunRecord
from steering.runs.store import OUTPUTS, Store, diverged, require_same_found
from steering.storage import known_sha256
from steering.training.loader import load

KEPT_TASKS = 4


class Workshop:
    """Opens, builds and computes what runs need, once.

    Args:
        store: where runs and outputs are kept.
        device: where models run.
    """

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store, self.device = store, device
        self._opened: dict[str, Opened] = {}

    def opened(self, ask: Ask) -> Opened:
        """The task of a run and its data."""
        if ask.task_key not in self._opened:
            make_room(self._opened, KEPT_TASKS)
            self._opened[ask.task_key] = Opened(ask.config.task)
        return self._opened[ask.task_key]

    def fitting(self, ask: Ask) -> Opened:
        """The task of a training, once it is sure that the method makes sense for its losses.

        Raises:
            ConfigError: it does not, an option is out of range, or a batch is too small.
        """
        # Before the data are opened, which may take a while.
        check_options(ask.config.method.name, ask.config.method.options)
        opened = self.opened(ask)
        objection = ask.objection(opened.task.risk.unit, bool(opened.task.groups))
        if objection is not None:
            raise ConfigError(objection)
        return opened

    def verify(self, ask: Ask, record: RunRecord) -> None:
        """Compare the data with those that a finished run met, if their files' sizes or times say
        that they may have changed.

        Raises:
            SteeringError: they have; names both sides.
        """
        if ask.kind not in ("train", "evaluate"):
            return
        opened = self.opened(ask)
        if opened.sources != {path: [*one] for path, one in record.sources.items()}:
            model = opened.task.build(ask.config.target)
            found = opened.held_out(model)
            if ask.kind == "train":
                found["task: data"] = opened.digest(opened.plain_data(model))
            require_same_found([record], ask.asked, found, record.folder)

    def reference(self, ask: Ask) -> Frozen:
        """The frozen reference of a training: its parent's weights, or those of its config."""
        opened = self.opened(ask)
        if REFERENCE in ask.parents:
            return self.trained(ask.parents[REFERENCE], opened)
        try:
            return opened.frozen(ask.reference)
        except SteeringError as error:
            # A task builds any model as a target, and names its keys so.
            raise type(error)(re.sub(r"^target\b", "reference", str(error))) from error

    def trained(self, parent: Ask, opened: Opened) -> Frozen:
        """The model that a finished run has trained, in eval mode and without gradient."""
        weights = self.finished(parent).folder / WEIGHTS
        return opened.frozen(replace(parent.config.target, checkpoint=str(weights)))

    def finished(self, ask: Ask) -> RunRecord:
        """The record of a run that others are built on; SteeringError when its weights are no
        longer those that it wrote."""
        record = self.store.find(ask.key)
        if record is None:
            raise SteeringError(f"{ask.label}: not finished in {self.store.folder}")
        if record.diverged:  # there is nothing to build on
            raise diverged(record)
        path = record.folder / WEIGHTS
        if record.weights:
            now = known_sha256(path) if path.is_file() else "nothing"
            if now != record.weights:
                raise SteeringError(
                    f"{path} has changed since the run finished (weights: {record.weights[:12]} "
                    f"written, {now[:12]} found); delete the run's folder to train it again"
                )
        return record

    def outputs(self, ask: Ask, frozen: Frozen, kind: str, part: str) -> Artefact:
        """Stored outputs of a model on a part of a run's data, computed if they are not there.

        They lie beside the runs; those of a training's reference where `reference.cache` says.
        """
        opened = self.opened(ask)
        data, digest = opened.part(part, frozen.model)
        risk = opened.task.risk
        wanted = Fingerprint(
            frozen.weights, frozen.model.inputs_fingerprint, digest, risk=risk.identity
        )
        module = frozen.model.module.to(self.device)
        root, (batches, _) = self.outputs_root(ask), batches_of(data, ask)
        return build(root, wanted, kind, risk, module, batches, len(data), self.device)

    def estimate(self, ask: Ask, frozen: Frozen, kind: str, part: str) -> Estimate:
        """Bytes and seconds of `outputs`, from two batches."""
        opened = self.opened(ask)
        data, _ = opened.part(part, frozen.model)
        batches, steps = batches_of(data, ask)
        module = frozen.model.module.to(self.device).eval()
        return estimate(kind, opened.task.risk, module, batches, len(data), steps, self.device)

    def outputs_root(self, ask: Ask) -> Path:
        """Folder of the outputs that a run stores or reads."""
        return self.store.folder / OUTPUTS if ask.cache is None else ask.cache


def batches_of(data: IndexedData, ask: Ask) -> tuple[Batches, int]:
    """From a batch number on, this rank's batches in the order of the data; and how many there are.

    Every rank takes the same number of batches, since opening the files of outputs is a joint step.
    The last ones wrap around.
    """
    train, rank, world = ask.config.train, distributed.rank(), distributed.world_size()
    size = train.batch_size
    steps = -(-len(data) // (size * world))
    # The last batches wrap around to the first examples: a row may be written twice, with the same
    # numbers.
    numbers = torch.arange(steps * size * world).remainder(len(data)).numpy()
    order = numbers.reshape(steps, world, size)

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        return load(data, ((0, rows[rank]) for rows in order[start:]), train.workers, pin=False)

    return batches, steps
