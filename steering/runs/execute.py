"""From an ask to a record: the kernel that does one run, once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from steering import distributed
from steering.runs.ask import MODEL, Ask, with_parents_first
from steering.runs.functions import find_function
from steering.runs.measure import environment, parameters, peak_bytes, training_passes
from steering.runs.prepare import Prepared, prepare
from steering.runs.record import (
    CONFIG,
    SCORES,
    WEIGHTS,
    Cost,
    Metric,
    RunRecord,
    Scores,
    meanings_of,
    write_record,
    write_scores,
)
from steering.runs.store import require_same_found
from steering.runs.workshop import Frozen, Workshop
from steering.storage import known_sha256, write_text
from steering.task import Evaluation, Model, Task
from steering.training.job import Job
from steering.training.loop import run


@dataclass(frozen=True)
class Outcome:
    """What a run has found; `steering.runs.record.RunRecord` says what each part means.

    Attributes:
        scores: written as the run's `scores.npz`; None when the run has written them itself, or has
            none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    meaning: Mapping[str, Metric] = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    summary: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Scores] | None = None


@dataclass(frozen=True)
class Place:
    """Where a run is done.

    Attributes:
        folder: the run's own; it is there on rank 0.
        title: for a progress line.
    """

    folder: Path
    title: str
    workshop: Workshop


def execute(ask: Ask, workshop: Workshop, title: str | None = None) -> RunRecord:
    """Do a run and those that it is built on, or hand out their records if that has been done.

    Every rank calls this. A run that was cut off goes on where it was.

    Raises:
        SteeringError: the method does not fit the task, the run met other data or weights than
            finished runs that asked for the same, or it failed.
    """
    store = workshop.store
    todo = [one for one in with_parents_first([ask]) if store.find(one.key) is None]
    for one in todo:  # what does not fit shows before a reference is trained for it
        if one.kind == "train":
            workshop.fitting(one)
    for one in todo:
        if store.find(one.key) is None:
            distributed.barrier()  # nobody may find a record that another rank has just written
            folder = store.place(one.key, one.label)
            place = Place(folder, title if one is ask and title else one.label, workshop)
            outcome = _KERNELS[one.kind](one, place)
            if distributed.rank() == 0:
                _record(one, place, outcome)
            distributed.barrier()
    record = store.find(ask.key)
    assert record is not None
    return record.asked_as(ask.label, ask.axes)


def evaluated(model: Model, task: Task, device: torch.device) -> Evaluation:
    """Evaluate a model that is not being trained; every rank calls this."""
    model.module.to(device).eval()
    return task.evaluate(model, device)


def _train(ask: Ask, place: Place) -> Outcome:
    prepared = prepare(ask, place.workshop)
    finished = place.workshop.store.all()
    require_same_found(finished, ask.asked, prepared.found, place.folder)
    _begin(ask, place)
    result = run(_job(ask, place, prepared))
    cost = _training_cost(ask, prepared, result, place.workshop.device)
    meaning = meanings_of(result["meaning"])
    return Outcome(result["metrics"], meaning, prepared.found, cost, result["summary"])


def _job(ask: Ask, place: Place, prepared: Prepared) -> Job:
    config, reference = ask.config, prepared.reference
    return Job(
        folder=place.folder,
        title=place.title,
        task=prepared.opened.task,
        target=prepared.target,
        reference=None if reference is None else reference.outputs,
        method=prepared.method,
        data=prepared.data,
        optimizer=config.optimizer,
        train=config.train,
        seed=config.seed,
        device=place.workshop.device,
        identity={"key": ask.key, **prepared.found},
        config=ask.yaml,
    )


def _training_cost(
    ask: Ask, prepared: Prepared, result: Mapping[str, Any], device: torch.device
) -> Cost:
    reference = prepared.reference
    stored = None if reference is None else reference.stored
    reference_flops = 0 if reference is None else reference.flops
    passes = training_passes(result["samples"], result["scored"], ask.config.train.accumulation)
    return Cost(
        trained=result["samples"],
        drawn=result["drawn"],
        scored=result["scored"],
        reference=result["reference_samples"],
        stored=0 if stored is None else len(stored),
        seconds=result["seconds"],
        evaluation_seconds=result["evaluation_seconds"],
        reference_seconds=0.0 if stored is None else stored.seconds,
        steps=result["steps"],
        skipped=result["skipped"],
        parameters=parameters(prepared.target),
        forward_flops=prepared.flops,
        reference_flops=reference_flops,
        flops=passes * prepared.flops + result["reference_samples"] * reference_flops,
        peak_bytes=peak_bytes(device),
    )


def _evaluate(ask: Ask, place: Place) -> Outcome:
    workshop = place.workshop
    frozen, task = _model(ask, workshop), workshop.opened(ask).task
    _begin(ask, place)
    found = evaluated(frozen.model, task, workshop.device)
    return Outcome(
        metrics=found.values(),
        meaning=found.meanings(task.metrics),
        found={"model: weights": frozen.weights},
        cost=Cost(parameters=parameters(frozen.model), peak_bytes=peak_bytes(workshop.device)),
        scores=found.scores,
    )


def _outputs(ask: Ask, place: Place) -> Outcome:
    workshop, about = place.workshop, ask.about
    frozen = _model(ask, workshop)
    stored = workshop.outputs(ask, frozen, about["kind"], about["part"])
    _begin(ask, place)
    summary = {
        "outputs": os.path.relpath(stored.folder, workshop.store.folder),
        "tensors": {name: list(shape) for name, shape in stored.tensors.items()},
        "missing": int((~stored.valid).sum()),
        **about,
    }
    return Outcome(
        found={"model: weights": frozen.weights, "task: outputs' data": stored.fingerprint.data},
        cost=Cost(seconds=stored.seconds, stored=len(stored), parameters=parameters(frozen.model)),
        summary=summary,
    )


def _call(ask: Ask, place: Place) -> Outcome:
    function = find_function(ask.about["function"])
    _begin(ask, place)
    outcome: Outcome = function(ask, place)
    return outcome


_KERNELS: dict[str, Callable[[Ask, Place], Outcome]] = {
    "train": _train,
    "evaluate": _evaluate,
    "outputs": _outputs,
    "call": _call,
}


def _model(ask: Ask, workshop: Workshop) -> Frozen:
    """The model that is evaluated, or whose outputs are stored."""
    opened = workshop.opened(ask)
    if MODEL in ask.parents:
        return workshop.trained(ask.parents[MODEL], opened)
    return workshop.given(ask.config.target, opened)


def _begin(ask: Ask, place: Place) -> None:
    """Make the run's folder, and say in it what it is for."""
    if distributed.rank() == 0:
        place.workshop.store.begin(ask.key, ask.kind, ask.label)
        if ask.kind != "train":  # the loop compares with the one that is there before it writes
            write_text(place.folder / CONFIG, ask.yaml)


def _record(ask: Ask, place: Place, outcome: Outcome) -> None:
    if outcome.scores is not None:
        write_scores(place.folder / SCORES, outcome.scores)
    weights = place.folder / WEIGHTS
    record = RunRecord(
        key=ask.key,
        kind=ask.kind,
        label=ask.label,
        axes=dict(ask.axes),
        folder=place.folder,
        asked=ask.asked,
        found=dict(outcome.found),
        metrics=dict(outcome.metrics),
        meaning=dict(outcome.meaning),
        cost=outcome.cost,
        parents={role: parent.key for role, parent in ask.parents.items()},
        summary=dict(outcome.summary),
        weights=known_sha256(weights) if weights.is_file() else "",
        sources=place.workshop.opened(ask).sources,
        environment=environment(place.workshop.device),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    write_record(record)
