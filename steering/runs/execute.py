"""From an ask to a record: the kernel that does one run, once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from steering import distributed
from steering.errors import SteeringError
from steering.methods import build_method
from steering.outputs import WithOutputs, weights_fingerprint
from steering.reference import STORED, LiveReference, Reference, StoredReference
from steering.runs.ask import Ask, start_file, with_parents_first
from steering.runs.call import Call, find_function
from steering.runs.measure import environment, forward_flops, parameters, peak_bytes
from steering.runs.record import (
    CONFIG,
    SCORES,
    WEIGHTS,
    Cost,
    Metric,
    RunRecord,
    meanings_of,
    write_record,
    write_scores,
)
from steering.runs.store import OUTPUTS, require_same_found
from steering.runs.workshop import Frozen, Workshop
from steering.storage import known_sha256, write_text
from steering.task import Evaluation, Model, Task
from steering.training.checkpoint import load_weights
from steering.training.job import Job
from steering.training.loop import run


def execute(ask: Ask, workshop: Workshop, title: str | None = None) -> RunRecord:
    """Do a run and those that it is built on, or hand out their records if that has been done.

    Every rank calls this. A run that was cut off goes on where it was.

    Raises:
        SteeringError: the method does not fit the task, the run met other data or weights than
            finished runs that asked for the same, or it failed.
    """
    todo = [one for one in with_parents_first([ask]) if workshop.store.find(one.key) is None]
    for one in todo:  # what does not fit shows before a reference is trained for it
        if one.kind == "train":
            workshop.fitting_task(one)
    for one in todo:
        if workshop.store.find(one.key) is None:
            distributed.barrier()  # nobody may find a record that another rank has just written
            _KERNELS[one.kind](one, workshop, title if one is ask and title else one.label)
            distributed.barrier()
    record = workshop.store.find(ask.key)
    assert record is not None
    return record.asked_as(ask.label, ask.axes)


def _train(ask: Ask, workshop: Workshop, title: str) -> None:
    config, store = ask.config, workshop.store
    task = workshop.fitting_task(ask)
    torch.manual_seed(config.seed)
    target = task.build(config.target)
    found = {"target: inputs": target.inputs_fingerprint}
    start = _start(ask, workshop)
    if start is not None:
        load_weights(start, target.module)
        found["start: weights"] = weights_fingerprint(target.module)
    reference, live, stored = None, None, None
    if ask.needs.reference:
        frozen = workshop.reference(ask)
        reference, live, stored = _reference(ask, frozen, task, workshop)
        found |= {
            "reference: weights": frozen.weights,
            "reference: inputs": frozen.model.inputs_fingerprint,
        }
        torch.manual_seed(config.seed)
    data = task.train_data(target, live, config.seed)
    found["task: data"] = workshop.data_digest(config, data)
    folder = store.place(ask.key, ask.label)
    require_same_found(store.all(), ask.asked, found, folder)
    flops = forward_flops(task.risk, target, data, workshop.device)
    reference_flops = (
        forward_flops(
            task.risk, frozen.model, workshop.plain_data(config, frozen.model), workshop.device
        )
        if reference
        else 0
    )
    if distributed.rank() == 0:
        store.begin(ask.key, ask.kind, ask.label)
    result = run(
        Job(
            folder=folder,
            title=title,
            task=task,
            target=target,
            reference=reference,
            method=build_method(
                config.method.name,
                config.method.options,
                len(data),
                task.groups,
                task.risk.unit,
                data.group_counts(len(task.groups)),
            ),
            data=data if stored is None else WithOutputs(data, stored, STORED),
            optimizer=config.optimizer,
            train=config.train,
            seed=config.seed,
            device=workshop.device,
            identity={"key": ask.key, **found},
            config=ask.yaml,
        )
    )
    passes = (
        3 * result["samples"]
        + result["scored"]
        + (result["samples"] if config.train.accumulation > 1 else 0)
    )
    cost = Cost(
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
        parameters=parameters(target),
        forward_flops=flops,
        reference_flops=reference_flops,
        flops=passes * flops + result["reference_samples"] * reference_flops,
        peak_bytes=peak_bytes(workshop.device),
    )
    meaning = meanings_of(result["meaning"])
    _finish(ask, workshop, folder, found, result["metrics"], meaning, cost, result["summary"])


def _start(ask: Ask, workshop: Workshop) -> Path | None:
    """The weights that the target starts from, if not from its own."""
    if "start" in ask.parents:
        return workshop.finished(ask.parents["start"]).folder / WEIGHTS
    if ask.config.start is None:
        return None
    path = start_file(ask.config.start)
    if not path.is_file():
        raise SteeringError(
            f"start: no weights in {ask.config.start}; expected a {WEIGHTS} or the folder of a finished run"
        )
    return path


def _reference(
    ask: Ask, frozen: Frozen, task: Task, workshop: Workshop
) -> tuple[Reference, Model | None, Any]:
    """Who gives the reference's outputs; the model if it needs its own view of the data; the stored
    outputs if there are."""
    config = ask.config
    if config.reference is None or config.reference.cache is None:
        return LiveReference(frozen.model.module.to(workshop.device), task.risk), frozen.model, None
    return StoredReference(), None, workshop.stored_reference(ask, frozen)


def _evaluate(ask: Ask, workshop: Workshop, title: str) -> None:  # noqa: ARG001
    task = workshop.task(ask.config)
    frozen = _model(ask, task, workshop)
    folder = workshop.store.place(ask.key, ask.label)
    if distributed.rank() == 0:
        workshop.store.begin(ask.key, ask.kind, ask.label)
    found = evaluated(frozen.model, task, workshop.device)
    if distributed.rank() == 0:
        write_text(folder / CONFIG, ask.yaml)
        write_scores(folder / SCORES, found.scores)
    cost = Cost(parameters=parameters(frozen.model), peak_bytes=peak_bytes(workshop.device))
    meaning = found.meanings(task.metrics)
    _finish(
        ask, workshop, folder, {"model: weights": frozen.weights}, found.values(), meaning, cost, {}
    )


def _outputs(ask: Ask, workshop: Workshop, title: str) -> None:  # noqa: ARG001
    config, about = ask.config, ask.about
    task = workshop.task(config)
    frozen = _model(ask, task, workshop)
    if about["part"] == "train":
        data = workshop.plain_data(config, frozen.model)
        digest = workshop.data_digest(config, data)
    else:
        parts = task.held_out_data(frozen.model)
        if about["part"] not in parts:
            raise SteeringError(
                f"outputs: the task has no part {about['part']!r}; it has {', '.join(['train', *parts])}"
            )
        data = parts[about["part"]]
        digest = data.fingerprint()
    root = workshop.store.folder / OUTPUTS
    stored = workshop.stored(root, about["kind"], frozen, data, digest, config, task)
    folder = workshop.store.place(ask.key, ask.label)
    if distributed.rank() == 0:
        workshop.store.begin(ask.key, ask.kind, ask.label)
        write_text(folder / CONFIG, ask.yaml)
    summary = {
        "outputs": os.path.relpath(stored.folder, workshop.store.folder),
        "tensors": {name: list(shape) for name, shape in stored.tensors.items()},
        "missing": int((~stored.valid).sum()),
        **about,
    }
    cost = Cost(seconds=stored.seconds, stored=len(stored), parameters=parameters(frozen.model))
    found = {"model: weights": frozen.weights, "task: outputs' data": digest}
    _finish(ask, workshop, folder, found, {}, {}, cost, summary)


def _call(ask: Ask, workshop: Workshop, title: str) -> None:  # noqa: ARG001
    folder = workshop.store.place(ask.key, ask.label)
    if distributed.rank() == 0:
        workshop.store.begin(ask.key, ask.kind, ask.label)
    found = find_function(ask.about["call"])(Call(ask, workshop, folder))
    if distributed.rank() == 0:
        write_text(folder / CONFIG, ask.yaml)
        write_scores(folder / SCORES, found.scores)
    _finish(
        ask,
        workshop,
        folder,
        found.found,
        found.metrics,
        found.meaning,
        found.cost,
        found.summary,
    )


_KERNELS = {"train": _train, "evaluate": _evaluate, "outputs": _outputs, "call": _call}


def _model(ask: Ask, task: Task, workshop: Workshop) -> Frozen:
    return (
        workshop.trained(ask.parents["model"], task)
        if "model" in ask.parents
        else workshop.given(ask.config.target, task)
    )


def evaluated(model: Model, task: Task, device: torch.device) -> Evaluation:
    """Evaluate a model that is not being trained; every rank calls this."""
    model.module.to(device).eval()
    return task.evaluate(model, device)


def _finish(
    ask: Ask,
    workshop: Workshop,
    folder: Path,
    found: Mapping[str, str],
    metrics: Mapping[str, float],
    meaning: Mapping[str, Metric],
    cost: Cost,
    summary: Mapping[str, Any],
) -> None:
    if distributed.rank() != 0:
        return
    weights = folder / WEIGHTS
    write_record(
        RunRecord(
            key=ask.key,
            kind=ask.kind,
            label=ask.label,
            axes=dict(ask.axes),
            folder=folder,
            asked=ask.asked,
            found=dict(found),
            metrics=dict(metrics),
            meaning=dict(meaning),
            cost=cost,
            parents={role: parent.key for role, parent in ask.parents.items()},
            summary=dict(summary),
            weights=known_sha256(weights) if weights.is_file() else "",
            sources=workshop.sources(ask.config),
            environment=environment(workshop.device),
            created=datetime.now(UTC).isoformat(timespec="microseconds"),
        )
    )
