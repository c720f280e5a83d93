"""Data that are made of what a finished run says of them: its answers as labels (pseudo-labels), and
the examples that it is surest of.

    task.data.derive: {labels_from: runs/teacher/erm-seed0, keep: {score: entropy, share: 0.5}}

The run is named by its folder and counts by its key and weights, so a run on derived data is another
one whenever its parent is. Its outputs are artefacts like any other: computed once, stored beside
it, shared. They are of the training data as they would be without this section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering import distributed
from steering.data import IndexedData, seeded
from steering.errors import SteeringError
from steering.outputs import Artefact, Fingerprint, build, open_artefact, weights_fingerprint
from steering.reading import user_path
from steering.runs.record import WEIGHTS, RunRecord, read_record
from steering.storage import known_sha256
from steering.task import Model, ModelSpec, Task
from steering.typed import differences

SCORES = {"entropy": "entropy", "loss": "losses"}
"""Score → the kind of outputs that has it."""
KEY = "task.data.derive"
BATCH = 256


@dataclass
class Keep:
    """Which examples stay, by what a run says of them."""

    run: str | None = None
    """Folder of a finished run; null: that of labels_from."""
    score: str = "entropy"
    """"entropy" of its answer, or "loss" (of the labels that the data had before)."""
    share: float = 1.0
    """Share of the examples that stays, those of the lowest scores."""
    highest: bool = False
    """Those of the highest scores stay."""

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise SteeringError(f"score: expected one of {', '.join(SCORES)}, got {self.score!r}")
        if not 0 < self.share <= 1:
            raise SteeringError(f"share: expected a number in (0, 1], got {self.share}")


@dataclass
class Derive:
    """A subset of the training data, by a score of a finished run."""

    keep: Keep = field(default_factory=Keep)
    """Which examples stay."""

    def __post_init__(self) -> None:
        if self.keep.share < 1 and self.scored_by is None:
            raise SteeringError("keep.run: expected the folder of a finished run")

    @property
    def scored_by(self) -> str | None:
        """The folder of the run whose scores count."""
        return self.keep.run

    def identity(self) -> dict[str, Any]:
        """What of the section counts for a run's key: folders by the runs in them."""
        found = differences(self)
        if "run" in found.get("keep", {}):
            found["keep"]["run"] = content(str(self.keep.run), f"{KEY}.keep.run")
        return found


@dataclass
class DeriveLabels(Derive):
    """Training data with the answers of a finished run as labels, or a subset by its scores."""

    labels_from: str | None = None
    """Folder of a finished run whose answers become the labels; null: they stay."""

    @property
    def scored_by(self) -> str | None:
        return self.keep.run or self.labels_from

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.labels_from is not None:
            found["labels_from"] = content(self.labels_from, f"{KEY}.labels_from")
        return found


def content(folder: str, key: str) -> dict[str, str]:
    """Key and weights of the run in a folder; SteeringError when there is no finished one."""
    record = _record(folder, key)
    return {"run": record.key, "weights": record.weights or record.found.get("model: weights", "")}


def answers(folder: str, task: Task, data: Callable[[Model | None], IndexedData]) -> np.ndarray:
    """The class that a run's model gives each example, int64, (n,); −1 where it could not be read.

    Args:
        data: the examples as a model wants to see them; None: for their fingerprint alone.

    Raises:
        SteeringError: the run has no logits, or its outputs are of other data.
    """
    stored = _outputs(folder, "logits", f"{KEY}.labels_from", task, data)
    found = np.full(len(stored), -1, dtype=np.int64)
    logits = _array(stored, "logits", f"{KEY}.labels_from")
    for rows in np.array_split(np.flatnonzero(stored.valid), max(1, len(stored) // 4096)):
        found[rows] = np.asarray(logits[rows]).argmax(-1)
    return found


def scores(
    folder: str, score: str, task: Task, data: Callable[[Model | None], IndexedData]
) -> np.ndarray:
    """A score of each example or item under a run's model, float32, (n, ...); NaN where it could not
    be read. Arguments and errors as of `answers`."""
    key = f"{KEY}.keep.run"
    stored = _outputs(folder, SCORES[score], key, task, data)
    name = "loss" if score == "loss" else "entropy"
    if name == "entropy" and name not in stored.tensors and "logits" in stored.tensors:
        log_p = torch.from_numpy(np.array(stored.array("logits"))).log_softmax(-1)
        found = -(log_p.exp() * log_p).sum(-1).numpy()
    else:
        found = np.array(_array(stored, name, key))
    found[~stored.valid] = np.nan
    return found


def _record(folder: str, key: str) -> RunRecord:
    try:
        return read_record(user_path(folder))
    except SteeringError as error:
        raise SteeringError(f"{key}: {error}") from error


def _array(stored: Artefact, name: str, key: str) -> np.ndarray:
    if name not in stored.tensors:
        raise SteeringError(
            f"{key}: the outputs in {stored.folder} have no {name}, only "
            f"{', '.join(stored.tensors)}; name the folder of the training itself"
        )
    return stored.array(name)


def _outputs(
    folder: str, kind: str, key: str, task: Task, data: Callable[[Model | None], IndexedData]
) -> Artefact:
    """Outputs of a run: those that it is, else of the model that it has trained."""
    record = _record(folder, key)
    if record.kind == "outputs":
        stored = open_artefact(
            record.folder.parent / record.summary["outputs"], record.summary["kind"]
        )
        if stored.fingerprint.data != data(None).fingerprint():
            raise SteeringError(
                f"{key}: the outputs in {folder} are of part {record.summary['part']!r} of other "
                "data than these without derive"
            )
        return stored
    weights = record.folder / WEIGHTS
    if record.diverged:
        raise SteeringError(f"{key}: {folder} has no model: {record.diverged}")
    if record.kind != "train" or not weights.is_file():
        raise SteeringError(f"{key}: {folder} is no training and no outputs, but {record.kind!r}")
    if known_sha256(weights) != record.weights:
        raise SteeringError(f"{key}: {weights} has changed since the run finished")
    spec = ModelSpec(**{**record.config()["target"], "checkpoint": str(weights)})
    with seeded(0):  # building draws numbers, and the run's own must not depend on whether it did
        model = task.build(spec)
    examples = data(model)
    fingerprint = Fingerprint(
        weights_fingerprint(model.module),
        model.inputs_fingerprint,
        examples.fingerprint(),
        risk=task.risk.identity,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = model.module.to(device).eval().requires_grad_(False)
    root: Path = record.folder.parent / "outputs"
    batches = _batches(examples)
    return build(root, fingerprint, kind, task.risk, module, batches, len(examples), device)


def _batches(data: IndexedData) -> Callable[[int], Iterator[dict[str, Tensor]]]:
    """This rank's batches in the order of the data, as many on every rank; the last wrap around."""
    rank, world = distributed.rank(), distributed.world_size()
    steps = -(-len(data) // (BATCH * world))
    order = (np.arange(steps * BATCH * world) % len(data)).reshape(steps, world, BATCH)

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for rows in order[start:]:
            yield dict(data.batch(rows[rank], 0))

    return batches
