"""What one training needs, gathered from its ask: the one place where a config becomes objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.methods import Method, build_method
from steering.methods.selection import with_selection
from steering.outputs import Artefact, WithOutputs, weights_fingerprint
from steering.population.noise import perturb
from steering.reference import STORED, LiveReference, Reference, StoredReference
from steering.runs.ask import START, Ask
from steering.runs.measure import forward_flops
from steering.runs.opened import TRAINING, Frozen, Opened
from steering.runs.record import WEIGHTS
from steering.runs.workshop import Workshop
from steering.schema import RestartConfig
from steering.task import Model
from steering.training.checkpoint import load_newest
from steering.training.state import take_memory
from steering.weights import load_weights


@dataclass(frozen=True)
class Steered:
    """The reference of a training.

    Attributes:
        outputs: who gives its outputs for a batch.
        frozen: the model.
        stored: its outputs on disk; None when it runs live.
        flops: of a forward pass on one example.
    """

    outputs: Reference
    frozen: Frozen
    stored: Artefact | None
    flops: int


@dataclass(frozen=True)
class Prepared:
    """A training before its first step.

    Attributes:
        target: the model, with the weights that it starts from.
        reference: None for a method that needs none.
        data: training examples, which carry stored outputs of the reference where there are such.
        optimizer: state that the optimiser goes on with; None: its own.
        found: "part: what" -> digest of what was met, to compare with finished runs.
        flops: of a forward pass of the target on one example.
    """

    opened: Opened
    target: Model
    reference: Steered | None
    data: IndexedData
    method: Method
    optimizer: dict[str, Any] | None
    found: dict[str, str]
    flops: int


def prepare(ask: Ask, workshop: Workshop) -> Prepared:
    """Open the data, build the models and the method of a training.

    Raises:
        SteeringError: something cannot be had, or the method does not fit the task.
    """
    opened, config = workshop.fitting(ask), ask.config
    # Initial weights are drawn from the seed alone, whatever the process has drawn before.
    torch.manual_seed(config.seed)
    target = opened.task.build(config.target)
    found = {"target: inputs": target.inputs_fingerprint}
    start = _start(ask, workshop)
    if start is not None:
        load_weights(start, target.module)
        found["start: weights"] = weights_fingerprint(target.module)
        # The file that others start from, or learn from, stays without noise.
        perturb(target.module, config.restart.noise, config.seed)
    reference = _reference(ask, opened, workshop) if ask.needs.reference else None
    if reference is not None:
        found["reference: weights"] = reference.frozen.weights
        found["reference: inputs"] = reference.frozen.model.inputs_fingerprint
        # Building the reference has drawn numbers; one that is kept from another run has not.
        torch.manual_seed(config.seed)
    # Only a live reference needs inputs of its own in a batch.
    live = None if reference is None or reference.stored is not None else reference.frozen.model
    data = opened.task.train_data(target, live, config.seed)
    found |= {"task: data": opened.digest(data)} | opened.held_out(target)
    method = build_method(
        config.method.name,
        config.method.options,
        len(data),
        opened.task.groups,
        opened.task.risk.unit,
        data.group_counts(len(opened.task.groups)),
    )
    method = with_selection(method, config.method.select, config.method.name)
    flops = forward_flops(opened.task.risk, target, data, workshop.device)
    if reference is not None and reference.stored is not None:
        data = WithOutputs(data, reference.stored, STORED)
    carried = _carried(ask, start, method, found["task: data"])
    return Prepared(opened, target, reference, data, method, carried, found, flops)


def _reference(ask: Ask, opened: Opened, workshop: Workshop) -> Steered:
    frozen = workshop.reference(ask)
    plain = opened.plain_data(frozen.model)
    flops = forward_flops(opened.task.risk, frozen.model, plain, workshop.device)
    if ask.stores_reference:
        stored = workshop.outputs(ask, frozen, ask.needs.outputs, TRAINING)
        return Steered(StoredReference(), frozen, stored, flops)
    module = frozen.model.module.to(workshop.device)
    live = LiveReference(module, opened.task.risk, ask.needs.logits)
    return Steered(live, frozen, None, flops)


def _start(ask: Ask, workshop: Workshop) -> Path | None:
    """The weights that the target starts from, if not from its own."""
    if START in ask.parents:
        return workshop.finished(ask.parents[START]).folder / WEIGHTS
    if ask.start is not None and not ask.start.is_file():
        raise SteeringError(
            f"start: no weights in {ask.config.start}; expected a {WEIGHTS} or the folder of a "
            "finished run"
        )
    return ask.start


def _carried(ask: Ask, start: Path | None, method: Method, examples: str) -> dict[str, Any] | None:
    """What is wanted of the end of the run that this one starts from: the optimiser's state is
    returned, the method's memory given to the method."""
    restart = ask.config.restart
    if start is None and restart != RestartConfig():
        raise SteeringError("restart: there is nothing to go on from; set start")
    if start is None or not (restart.optimizer or restart.method):
        return None
    folder = start.parent / "checkpoints"
    found = load_newest(folder, torch.device("cpu"))
    if found is None:
        key = "optimizer" if restart.optimizer else "method"
        raise SteeringError(
            f"restart.{key}: no intact checkpoint beside {start}; expected the folder of a "
            "finished run with its checkpoints/"
        )
    step, state = found
    if restart.method:
        # Estimates are kept by the example's number, which means nothing in other data.
        if state["identity"].get("task: data", examples) != examples:
            raise SteeringError(f"restart.method: {start.parent} was trained on other examples")
        try:
            take_memory(method, folder, step, state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise SteeringError(
                f"restart.method: the memory in {start.parent} is of another method: {error}"
            ) from error
    moments: dict[str, Any] = state["optimizer"]
    return moments if restart.optimizer else None
