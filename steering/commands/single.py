"""`steering train`, `evaluate` and `cache`: one run from a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from steering import distributed
from steering.analysis.report import print_results
from steering.config import RunConfig
from steering.console import CONSOLE, in_bytes, in_time
from steering.errors import ConfigError, SteeringError
from steering.runs.ask import (
    REFERENCE,
    Ask,
    reference_label,
    reference_training,
    study_folder,
    training,
    trains_reference,
)
from steering.runs.execute import evaluated, execute
from steering.runs.opened import TRAINING, Frozen
from steering.runs.record import WEIGHTS, Metric, RunRecord
from steering.runs.store import Store
from steering.runs.workshop import Workshop
from steering.task import Evaluation
from steering.training.session import session


def train(config: RunConfig) -> None:
    """`steering train`: one run to its end, resumed if it was interrupted, and its metrics."""
    with session(config.device, config.train.threads) as device:
        record = execute(training(config), _workshop(config, device), config.method.name)
        if distributed.rank() == 0:
            print_results(
                [_row(config.method.name, config.seed, record)], str(record.folder), record.meaning
            )
            CONSOLE.print(
                f"weights: {record.folder}/{WEIGHTS}   TensorBoard: tensorboard --logdir {record.folder}",
                soft_wrap=True,
            )


def evaluate(config: RunConfig) -> None:
    """`steering evaluate`: the target (its given weights, else those of the finished run) and the
    reference, if any."""
    with session(config.device, config.train.threads) as device:
        workshop = _workshop(config, device)
        wanted, spec = Ask(config, "evaluate", parents=_parents(config)), config.target
        task = workshop.opened(wanted).task
        if spec.checkpoint is None and spec.pretrained is None:
            record = workshop.store.find(training(config).key)
            if record is None or record.diverged:
                raise SteeringError(
                    f"evaluate: no finished run of this config in {workshop.store.folder}; train it, or set target.checkpoint or "
                    "target.pretrained"
                )
            spec = replace(spec, checkpoint=str(record.folder / WEIGHTS))
        found = {"target": evaluated(task.build(spec), task, device)}
        if config.reference is not None:
            found["reference"] = evaluated(_reference(config, workshop).model, task, device)
        rows = [_evaluated(label, one) for label, one in found.items()]
        meaning: dict[str, Metric] = {}
        for one in found.values():
            meaning |= one.meanings(task.metrics)
        if distributed.rank() == 0:
            print_results(rows, f"{spec.name} {spec.checkpoint or spec.pretrained}", meaning)


def cache(config: RunConfig, estimate: bool = False) -> None:
    """`steering cache`: run the reference once over the training data and keep its outputs.

    Args:
        estimate: only say how many bytes and seconds it will take, from two batches.
    """
    with session(config.device, config.train.threads) as device:
        if config.reference is None:
            raise ConfigError("reference: the config names none, so there is nothing to cache")
        workshop = _workshop(config, device)
        ask = Ask(config, "cache", parents=_parents(config))
        opened = workshop.fitting(ask)
        if estimate:
            frozen = opened.frozen(ask.reference)  # its weights do not matter here
            found = workshop.estimate(ask, frozen, ask.needs.outputs, TRAINING)
            if distributed.rank() == 0:
                CONSOLE.print(
                    f"outputs of {found.examples:,} examples: {in_bytes(found.bytes)} in {workshop.outputs_root(ask)}, "
                    f"about {in_time(found.seconds)} on {device.type} with {distributed.world_size()} process(es)",
                    soft_wrap=True,
                )
            return
        frozen = _reference(config, workshop)
        stored = workshop.outputs(ask, frozen, ask.needs.outputs, TRAINING)
        if distributed.rank() == 0:
            unread = int((~stored.valid).sum())
            missing = f", {unread:,} could not be read" if unread else ""
            CONSOLE.print(
                f"{len(stored) - unread} examples cached in {stored.folder} ({stored.seconds:.1f} s){missing}",
                soft_wrap=True,
            )


def _workshop(config: RunConfig, device: torch.device) -> Workshop:
    return Workshop(Store(study_folder(config)), device)


def _parents(config: RunConfig) -> dict[str, Ask]:
    return {REFERENCE: reference_training(config)} if trains_reference(config) else {}


def _reference(config: RunConfig, workshop: Workshop) -> Frozen:
    """The frozen reference of a config, trained first if the config says how and there are no
    weights yet."""
    assert config.reference is not None
    ask = Ask(config, "reference", parents=_parents(config))
    for parent in ask.parents.values():
        execute(parent, workshop, reference_label(config.reference))
    return workshop.reference(ask)


def _row(method: str, seed: int, record: RunRecord) -> dict[str, Any]:
    cost = record.cost
    return {
        "method": method,
        "seed": seed,
        "metrics": record.metrics,
        "samples": cost.trained,
        "drawn": cost.drawn,
        "scored": cost.scored,
        "reference_samples": cost.reference,
        "seconds": cost.seconds,
    }


def _evaluated(label: str, found: Evaluation) -> Mapping[str, Any]:
    return {
        "method": label,
        "seed": None,
        "metrics": found.values(),
        "samples": None,
        "seconds": None,
    }
