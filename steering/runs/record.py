"""A finished run as data: read without torch, without the training data and without the task that
made it.

A run's folder holds `record.json` (this), `config.yaml`, `metrics.jsonl` (its curves), `scores.npz`
(a number for each evaluated example and score) and, after a training, `model.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from steering.errors import SteeringError
from steering.storage import write_atomically, write_text

SCHEMA = 1
RECORD, CONFIG, CURVES, SCORES, WEIGHTS = (
    "record.json",
    "config.yaml",
    "metrics.jsonl",
    "scores.npz",
    "model.safetensors",
)
DIVERGED = "diverged"  # in the summary
_WEIGHT = "|weight"  # behind a score's name in the file: the weights of its mean


@dataclass(frozen=True)
class Metric:
    """What a metric means: how to show it, and which scores it is made of.

    Attributes:
        percent: a share, shown in percent; else shown as it is.
        higher_is_better: False for an error, a loss, a perplexity.
        of: scores whose means (each over its examples) are averaged into it; empty: it is no mean
            of scores (a worst group, a calibration error), and has no interval over examples.
        exp: the exponential of that average (a perplexity of losses).
    """

    percent: bool = True
    higher_is_better: bool = True
    of: tuple[str, ...] = ()
    exp: bool = False

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return 1 if self.higher_is_better else -1

    @property
    def scale(self) -> int:
        """Times this, as tables and figures show it."""
        return 100 if self.percent else 1


SHARE = Metric()


def meanings_of(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics as they were before JSON made plain values of them."""
    return {name: Metric(**{**one, "of": tuple(one["of"])}) for name, one in plain.items()}


@dataclass(frozen=True)
class Cost:
    """What a run took. Samples are counted over all processes; a repetition counts again.

    Attributes:
        trained: examples that gave a gradient.
        drawn: examples that were drawn; more than `trained` for a method that selects.
        scored: examples that the target was run on for a selection alone.
        reference: examples that a live reference was run on.
        stored: examples whose reference outputs were computed beforehand, once for all runs that
            share them.
        seconds: of training, evaluations excluded.
        evaluation_seconds: of all evaluations.
        reference_seconds: of computing the reference's stored outputs, once for all runs that share
            them.
        steps: of the optimiser.
        parameters: of the target.
        forward_flops: floating point operations of the target's forward pass on one example (a
            multiplication and an addition are two), as `torch.utils.flop_counter` counts them; 0
            where it could not be counted.
        reference_flops: the same of the reference; 0 without one.
        flops: of the whole training: a backward pass counts as two forward passes.
        peak_bytes: largest memory of the process until its end: of the GPU if one was used, else
            resident.
    """

    trained: int = 0
    drawn: int = 0
    scored: int = 0
    reference: int = 0
    stored: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    reference_seconds: float = 0.0
    steps: int = 0
    skipped: int = 0
    parameters: int = 0
    forward_flops: int = 0
    reference_flops: int = 0
    flops: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class RunRecord:
    """One finished run.

    Attributes:
        key: digest of what was asked for (`steering.runs.ask`).
        kind: "train", "evaluate", "outputs" or "call".
        label: a readable name, which the run's folder begins with.
        axes: what the study that asked varies: "method", "seed", ....
        folder: where the record was read; not in the file.
        asked: digests of parts of what was asked, "task" for one: runs that agree here must have
            found the same.
        found: digests of what was met: data, inputs, initial weights; those of the parts in
            `asked`, task and reference, are compared at every execution.
        metrics: by name, such as "heldout_images/image_to_text_R@1".
        meaning: what each metric means.
        cost: what the run took.
        parents: role ("reference", "start") -> key of the run that this one was built on.
        summary: what the method or the kind of run has to say: DoReMi's mix, where outputs lie.
        weights: sha256 of model.safetensors; "" without one.
        sources: files of the data -> [bytes, mtime in ns], to tell cheaply that one may have
            changed.
        environment: versions, device, threads.
        created: when it was finished, ISO 8601 in UTC.
    """

    key: str
    kind: str
    label: str
    axes: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = field(default=Path(), compare=False)
    asked: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    meaning: Mapping[str, Metric] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    parents: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    sources: Mapping[str, Sequence[int]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    created: str = ""
    schema: int = SCHEMA

    @property
    def diverged(self) -> str:
        """How a training ended whose loss or gradient was not finite, so that it has no metrics; ""
        of all others."""
        return str(self.summary.get(DIVERGED, ""))

    def config(self) -> dict[str, Any]:
        """The run's config as plain values; {} when its file is gone."""
        path = self.folder / CONFIG
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def curves(self) -> list[dict[str, Any]]:
        """Rows of the log, each with "step": "train/...", "eval/..." values, and "warning/..."
        texts."""
        return read_curves(self.folder / CURVES)

    def scores(self) -> dict[str, Scores]:
        """One number per evaluated example and score; {} when there are none."""
        return dict(_read_scores(self.folder / SCORES))

    def asked_as(self, label: str, axes: Mapping[str, Any]) -> RunRecord:
        """The same run as another study names it."""
        return replace(self, label=label, axes=dict(axes))


@dataclass(frozen=True)
class Scores:
    """Values of the evaluated examples in a fixed order, float64 (n,), and what each counts in the
    mean, (n,)."""

    values: np.ndarray
    weights: np.ndarray

    def mean(self) -> float:
        return float((self.values * self.weights).sum() / self.weights.sum())


def write_record(record: RunRecord) -> None:
    """Write `record.json` into the record's folder: from then on the run is finished."""
    values = asdict(record)
    del values["folder"]
    write_text(record.folder / RECORD, json.dumps(values, indent=1) + "\n")


def read_record(folder: Path) -> RunRecord:
    """The record of a folder.

    Raises:
        SteeringError: there is none, it is damaged, or a newer version of the framework wrote it.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] > SCHEMA:
            raise SteeringError(
                f"{path}: schema {values['schema']} is newer than this version's {SCHEMA}; update it"
            )
        values["meaning"] = meanings_of(values["meaning"])
        values["cost"] = Cost(**values["cost"])
        return RunRecord(folder=folder, **values)
    except FileNotFoundError:
        raise SteeringError(f"no finished run in {folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SteeringError(
            f"{path} is damaged ({error}); delete its folder to run it again"
        ) from None


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`, numbers and the text of warnings; an unfinished last line is left
    out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        # A killed run may leave half a line, and nothing behind it.
        except ValueError:
            break
    return rows


def write_scores(path: Path, scores: Mapping[str, Scores]) -> None:
    """Keep scores as `scores.npz`; weights that are all one are left out."""
    arrays: dict[str, np.ndarray] = {}
    for name, score in scores.items():
        arrays[name] = np.asarray(score.values, dtype=np.float64)
        if not np.all(score.weights == 1):
            arrays[name + _WEIGHT] = np.asarray(score.weights, dtype=np.float64)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # arrays of numbers: nothing is pickled

    write_atomically(path, write)


@cache
def _read_scores(path: Path) -> Mapping[str, Scores]:
    """Kept in memory, as every comparison of a study asks again; files of finished runs do not
    change."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return {
        name: Scores(values, arrays.get(name + _WEIGHT, np.ones_like(values)))
        for name, values in arrays.items()
        if not name.endswith(_WEIGHT)
    }
