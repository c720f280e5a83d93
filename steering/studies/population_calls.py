"""Work of the population study that is no training of its own: mixing members, averaging their
weights, distilling their mixture into one model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.plugins import load_file, load_module
from steering.population import (
    Mixed,
    MixtureOfProbabilities,
    Predicted,
    WeightAverage,
    fit_prior,
    predicted,
    renew_batch_norm,
    top_weights,
)
from steering.population.prior import Objective
from steering.reference import LiveReference
from steering.risk import Batch
from steering.runs.ask import Ask, training
from steering.runs.call import Call, Outcome
from steering.runs.measure import forward_flops, parameters
from steering.runs.opened import Frozen
from steering.runs.prepare import prepare
from steering.runs.record import WEIGHTS, Cost, Metric, Scores, meanings_of
from steering.training.job import Job
from steering.training.loop import run
from steering.weights import save_weights

MIXTURE = "mixture"  # role of the run whose weights a distillation uses
LOSS = Metric(percent=False, higher_is_better=False)


def members_of(ask: Ask) -> list[Ask]:
    """The members among the parents, in order."""
    return [ask.parents[role] for role in sorted(ask.parents) if role.startswith("member_")]


def mix(call: Call) -> Outcome:
    """Evaluate mixtures of finished runs on the held-out part, their weights fitted on another.

    Arguments: `fit` and `test`, the parts; `tops`, how many members are kept; `groups`, label →
    numbers of the members of a smaller mixture; `objective` of the fit.

    Metrics are "PLAN/nll", and "PLAN/accuracy" for examples. Plans: uniform and learned weights,
    each of the K largest learned ones with the learned and with equal weights, and the one member
    that is best on the part of the fit, or the last.
    """
    given, began = call.options, time.monotonic()
    fit, test = _parts(call, given["fit"], given["test"])
    probabilities, flops, size = _on_slice(call, fit)
    plans = _plans(probabilities, given)
    mixed = Mixed({name: weights for name, (weights, _) in plans.items()})
    own: list[float] = []
    for member in _predictions(call, test):
        own.append(member.nll().mean())
        mixed.add(member)
    scores = {k: v for name in plans for k, v in _scores(name, mixed.found(name)).items()}
    losses = {f"{name}/fit_gap": gap for name, (_, gap) in plans.items() if gap is not None}
    metrics = {name: score.mean() for name, score in scores.items()} | losses
    meaning = {
        name: Metric(of=(name,)) if name.endswith("accuracy") else LOSS for name in metrics
    } | {
        name: Metric(percent=False, higher_is_better=False, of=(name,))
        for name in scores
        if name.endswith("nll")
    }
    slice_losses = (-probabilities.log()).mean(1).tolist()
    summary = {
        "members": [{"fit": a, "test": b} for a, b in zip(slice_losses, own, strict=True)],
        "weights": {name: weights.tolist() for name, (weights, _) in plans.items()},
        "slice_items": probabilities.shape[1],
    }
    cost = Cost(parameters=size, forward_flops=flops, evaluation_seconds=time.monotonic() - began)
    return Outcome(metrics, meaning, cost=cost, summary=summary, scores=scores)


def _parts(call: Call, fit: str, test: str) -> tuple[str, str]:
    """The two parts' names; an empty one of the test is the first that is not the fit's."""
    opened = call.opened
    known = [*opened.task.held_out_data(opened.task.build(call.ask.config.target))]
    if fit not in known:
        raise SteeringError(
            f"studies.population.fit: the task's held-out data have no part {fit!r}, only "
            f"{', '.join(known) or 'none'}; set task.data.reserved=0.1, say"
        )
    others = [name for name in known if name != fit]
    if (test or others[:1] == []) and test not in others:
        raise SteeringError(
            f"studies.population.test: expected one of {', '.join(others) or 'none'}, got {test!r}"
        )
    return fit, test or others[0]


def _on_slice(call: Call, part: str) -> tuple[Tensor, int, int]:
    """Probabilities of the slice's items, (M, T); FLOPs of a forward pass of all members on one
    example, and their parameters."""
    found = torch.stack([member.items() for member in _predictions(call, part)])
    workshop, opened = call.workshop, call.opened
    flops, size = 0, 0
    for parent in members_of(call.ask):
        model = workshop.trained(parent, opened).model
        data, _ = opened.part(part, model)
        flops += forward_flops(opened.task.risk, model, data, workshop.device)
        size += parameters(model)
    return found, flops, size


def _predictions(call: Call, part: str) -> Iterator[Predicted]:
    """One member after another: never more than a few models are in memory."""
    workshop, opened = call.workshop, call.opened
    for parent in members_of(call.ask):
        model = workshop.trained(parent, opened).model
        data, _ = opened.part(part, model)
        yield predicted(model.module, opened.task.risk, data, workshop.device)


def _plans(
    probabilities: Tensor, given: Mapping[str, Any]
) -> dict[str, tuple[Tensor, float | None]]:
    """Name → weights of all members, (M,), and the gap of their fit where there was one."""
    count = len(probabilities)
    objective = _objective(given["objective"])
    losses = -probabilities.log().mean(1)

    def only(number: int) -> Tensor:
        return torch.eye(count, dtype=torch.float64)[number]

    def of_group(rows: Sequence[int], label: str) -> dict[str, tuple[Tensor, float | None]]:
        index = torch.tensor(rows)
        zeros = torch.zeros(count, dtype=torch.float64)
        prior = fit_prior(probabilities[index], objective)
        even = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
        return {
            f"uniform{label}": (zeros.scatter(0, index, even), None),
            f"learned{label}": (zeros.scatter(0, index, prior.weights), prior.gap),
            f"best{label}": (only(rows[int(losses[index].argmin())]), None),
        }

    plans = of_group(range(count), "")
    plans["last"] = (only(count - 1), None)
    for top in (top for top in given["tops"] if top < count):
        kept = top_weights(plans["learned"][0], top)
        plans[f"learned@{top}"] = (kept, None)
        # The prior may have given all its weight to fewer.
        plans[f"uniform@{top}"] = ((kept > 0).double() / int((kept > 0).sum()), None)
    for label, rows in given["groups"].items():
        plans |= of_group(rows, f":{label}")
    return plans


def _objective(name: str) -> Objective:
    """The function of "package.module:function" or "file.py:function"; SteeringError without it."""
    where, _, attribute = name.rpartition(":")
    key = "studies.population.objective"
    module = (load_file if where.endswith(".py") else load_module)(where, key)
    found = vars(module).get(attribute)
    if not callable(found):
        raise SteeringError(f"{key}: {where} has no function {attribute!r}")
    objective: Objective = found
    return objective


def _scores(name: str, found: Predicted) -> dict[str, Scores]:
    hits = found.hits()
    return {f"{name}/nll": found.nll()} | ({} if hits is None else {f"{name}/accuracy": hits})


def average(call: Call) -> Outcome:
    """Average the weights of finished runs, and renew what batch normalisation has counted.

    Arguments: `batch_size` and `batches`, the most that are read for that.
    """
    workshop, opened = call.workshop, call.opened
    mean, given = WeightAverage(), call.options
    for parent in members_of(call.ask):
        mean.add(workshop.trained(parent, opened).model.module.state_dict())
    model = opened.task.build(call.ask.config.target)
    mean.load_into(model.module)
    module = model.module.to(workshop.device)
    batches = _batches(
        opened.plain_data(model), given["batch_size"], given["batches"], workshop.device
    )
    renewed = renew_batch_norm(module, opened.task.risk, batches)
    if distributed.rank() == 0:
        save_weights(call.folder / WEIGHTS, module, {"key": call.ask.key})
    summary = {"averaged": mean.count, "batch_norm": renewed}
    return Outcome(cost=Cost(parameters=parameters(model)), summary=summary)


def _batches(data: IndexedData, size: int, most: int, device: torch.device) -> Iterator[Batch]:
    """Batches from all over the data; fewer than asked for if there are not so many."""
    count = max(1, min(most, len(data) // size))
    for rows in (
        np.linspace(0, len(data) - 1, count * min(size, len(data)))
        .astype(np.int64)
        .reshape(count, -1)
    ):
        yield {key: value.to(device) for key, value in data.batch(np.unique(rows), 0).items()}


def distil(call: Call) -> Outcome:
    """Train one model on the mixture's distributions, by the config's method of distillation.

    Arguments: `training`, the key of the training; `plan`, whose weights the teacher has. The
    mixture's members run live beside the target.
    """
    workshop, given = call.workshop, call.options
    mixture, members = call.ask.parents[MIXTURE], members_of(call.ask)
    # The reference of that training is the mixture below; a member stands in for its identity.
    inner = training(call.ask.config, call.ask.label, call.ask.axes, reference=members[0])
    prepared = prepare(inner, workshop)
    weights = torch.tensor(workshop.finished(mixture).summary["weights"][given["plan"]])
    used = [one for one, weight in zip(members, weights.tolist(), strict=True) if weight > 0]
    teachers: list[Frozen] = [workshop.trained(one, prepared.opened) for one in used]
    module = MixtureOfProbabilities([one.model.module for one in teachers], weights[weights > 0])
    risk = prepared.opened.task.risk
    job = Job(
        folder=call.folder,
        title=call.title,
        task=prepared.opened.task,
        target=prepared.target,
        reference=LiveReference(module.to(workshop.device), risk, inner.needs.logits),
        method=prepared.method,
        data=prepared.data,
        optimizer=call.ask.config.optimizer,
        train=call.ask.config.train,
        seed=call.ask.config.seed,
        device=workshop.device,
        identity={"key": call.ask.key},
    )
    result = run(job)
    found = {"task: data": prepared.found["task: data"]}
    teacher = len(teachers) * prepared.flops
    cost = Cost(
        trained=result["samples"],
        drawn=result["drawn"],
        reference=result["reference_samples"] * len(teachers),
        seconds=result["seconds"],
        evaluation_seconds=result["evaluation_seconds"],
        steps=result["steps"],
        parameters=parameters(prepared.target),
        forward_flops=prepared.flops,
        reference_flops=prepared.flops,
        flops=result["samples"] * (3 * prepared.flops + teacher),
    )
    summary = {**result["summary"], "teachers": len(teachers)}
    meaning = meanings_of(result["meaning"])
    return Outcome(result["metrics"], meaning, found=found, cost=cost, summary=summary)
