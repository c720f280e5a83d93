"""From an ask to a record: the kernel that does one run, once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from steering import distributed
from steering.errors import DivergedError
from steering.runs.ask import Ask, with_parents_first
from steering.runs.call import Call, Outcome, find_function
from steering.runs.measure import environment, parameters, peak_bytes, training_passes
from steering.runs.prepare import Prepared, prepare
from steering.runs.record import (
    CONFIG,
    DIVERGED,
    SCORES,
    WEIGHTS,
    Cost,
    RunRecord,
    meanings_of,
    write_record,
    write_scores,
)
from steering.runs.store import require_converged, require_same_found
from steering.runs.workshop import Workshop
from steering.storage import known_sha256, write_text
from steering.task import Evaluation, Model, Task
from steering.training.job import Job
from steering.training.loop import run


def execute(ask: Ask, workshop: Workshop, title: str | None = None) -> RunRecord:
    """Do a run and those that it is built on, or hand out their records if that has been done.

    Every rank calls this. A run that was cut off goes on where it was.

    Raises:
        SteeringError: the method does not fit the task, the run met other data or weights than
            finished runs that asked for the same, or it failed.
    """
    store = workshop.store
    todo = [one for one in with_parents_first([ask]) if store.find(one.key) is None]
    # What does not fit shows before a reference is trained for it.
    for one in todo:
        if one.kind == "train":
            workshop.fitting(one)
    for one in todo:
        if store.find(one.key) is None:
            distributed.barrier()  # nobody may find a record that another rank has just written
            folder = store.place(one.key, one.label)
            shown = title if one is ask and title else one.label
            call = Call(one, workshop, folder, shown)
            outcome = _KERNELS[one.kind](call)
            if distributed.rank() == 0:
                _record(call, outcome)
            distributed.barrier()
    record = store.find(ask.key)
    assert record is not None
    require_converged(ask, record)
    return record.asked_as(ask.label, ask.axes)


def evaluated(model: Model, task: Task, device: torch.device) -> Evaluation:
    """Evaluate a model that is not being trained; every rank calls this."""
    model.module.to(device).eval()
    return task.evaluate(model, device)


def _train(call: Call) -> Outcome:
    ask, workshop = call.ask, call.workshop
    prepared = prepare(ask, workshop)
    require_same_found(workshop.store.all(), ask.asked, prepared.found, call.folder)
    _begin(call)
    begin = time.monotonic()
    try:
        result = run(_job(call, prepared))
    except DivergedError as error:
        if not ask.may_diverge:
            raise
        return Outcome(
            cost=_cost_until(error.steps, time.monotonic() - begin, ask, prepared),
            summary={DIVERGED: str(error)},
            found=prepared.found,
        )
    cost = _training_cost(ask, prepared, result, workshop.device)
    meaning = meanings_of(result["meaning"])
    return Outcome(
        metrics=result["metrics"],
        meaning=meaning,
        cost=cost,
        summary=result["summary"],
        found=prepared.found,
    )


def _job(call: Call, prepared: Prepared) -> Job:
    ask, reference = call.ask, prepared.reference
    config = ask.config
    return Job(
        folder=call.folder,
        title=call.title,
        task=prepared.opened.task,
        target=prepared.target,
        reference=None if reference is None else reference.outputs,
        method=prepared.method,
        data=prepared.data,
        optimizer=config.optimizer,
        carried=prepared.optimizer,
        train=config.train,
        seed=config.seed,
        device=call.workshop.device,
        identity={"key": ask.key, **_trained_on(prepared)},
        config=ask.yaml,
    )


def _trained_on(prepared: Prepared) -> dict[str, str]:
    """What was found, but for data that a model is evaluated on: they change no checkpoint."""
    evaluated_on = prepared.opened.held_out(prepared.target)
    return {name: digest for name, digest in prepared.found.items() if name not in evaluated_on}


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
        # Stored outputs are not in it: all runs that share them would count them.
        flops=passes * prepared.flops + result["reference_samples"] * reference_flops,
        peak_bytes=peak_bytes(device),
    )


def _cost_until(steps: int, seconds: float, ask: Ask, prepared: Prepared) -> Cost:
    """Of a training that diverged, evaluations included; what a selection drew beyond the batches,
    and what a live reference did, is left out."""
    train = ask.config.train
    samples = steps * train.batch_size
    return Cost(
        trained=samples,
        drawn=samples,
        seconds=seconds,
        steps=steps,
        parameters=parameters(prepared.target),
        forward_flops=prepared.flops,
        flops=training_passes(samples, 0, train.accumulation) * prepared.flops,
    )


def _evaluate(call: Call) -> Outcome:
    frozen, task, device = call.model(), call.task, call.workshop.device
    _begin(call)
    found = evaluated(frozen.model, task, device)
    return Outcome(
        metrics=found.values(),
        meaning=found.meanings(task.metrics),
        found={"model: weights": frozen.weights} | call.opened.held_out(frozen.model),
        cost=Cost(parameters=parameters(frozen.model), peak_bytes=peak_bytes(device)),
        scores=found.scores,
    )


def _outputs(call: Call) -> Outcome:
    workshop, about = call.workshop, call.ask.about
    frozen = call.model()
    stored = workshop.outputs(call.ask, frozen, about["kind"], about["part"])
    _begin(call)
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


def _call(call: Call) -> Outcome:
    function = find_function(call.ask.about["call"])
    _begin(call)
    return function(call)


_KERNELS: dict[str, Callable[[Call], Outcome]] = {
    "train": _train,
    "evaluate": _evaluate,
    "outputs": _outputs,
    "call": _call,
}


def _begin(call: Call) -> None:
    """Make the run's folder, and say in it what it is for."""
    if distributed.rank() == 0:
        call.workshop.store.begin(call.ask.key, call.ask.kind, call.ask.label)
        # The loop of a training compares with the config that is there before it writes its own.
        if call.ask.kind != "train":
            write_text(call.folder / CONFIG, call.ask.yaml)


def _record(call: Call, outcome: Outcome) -> None:
    ask, weights = call.ask, call.folder / WEIGHTS
    if outcome.scores is not None:
        write_scores(call.folder / SCORES, outcome.scores)
    record = RunRecord(
        key=ask.key,
        kind=ask.kind,
        label=ask.label,
        axes=dict(ask.axes),
        folder=call.folder,
        asked=ask.asked,
        found=dict(outcome.found),
        metrics=dict(outcome.metrics),
        meaning=dict(outcome.meaning),
        cost=outcome.cost,
        parents={role: parent.key for role, parent in ask.parents.items()},
        summary=dict(outcome.summary),
        weights=known_sha256(weights) if weights.is_file() else "",
        sources=call.opened.sources,
        environment=environment(call.workshop.device),
        created=datetime.now(UTC).isoformat(timespec="microseconds"),
    )
    write_record(record)
