"""How a study asks for runs: train, evaluate, store outputs, or call a function of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steering.config import RunConfig, with_overrides
from steering.methods import Needs, check_options
from steering.outputs.kinds import require_kind
from steering.reading import user_path
from steering.runs.wanted import (
    MODEL,
    REFERENCE,
    START,
    Ask,
    model_of,
    needs_of,
    start_file,
)
from steering.schema import ConfigError, ReferenceConfig, optimizer_content
from steering.typed import plain

__all__ = [
    "MODEL",
    "REFERENCE",
    "START",
    "Ask",
    "Needs",
    "evaluation",
    "model_outputs",
    "needs_of",
    "reference_label",
    "reference_target",
    "reference_training",
    "renamed",
    "start_file",
    "study_folder",
    "training",
    "trains_reference",
    "with_parents_first",
]
_REFERENCES: dict[str, Ask] = {}


def training(
    config: RunConfig,
    label: str | None = None,
    axes: Mapping[str, Any] | None = None,
    **parents: Ask,
) -> Ask:
    """Train the target of a config; the run that trains its reference becomes a parent.

    Args:
        label: of the folder; None: the method's name and the seed.
        parents: further ones, such as start= (begin with the weights of that run's target) or
            reference= (steer by them).

    Raises:
        ConfigError: the method needs a reference and there is none, or an option is out of range.
    """
    check_options(config.method.name, config.method.options)
    found = dict(parents)
    name = config.method.name.rpartition(":")[2]  # "file.py:name" is a method from outside
    if needs_of(config).reference and REFERENCE not in found:
        if config.reference is None:
            raise ConfigError(
                f"method.name: {config.method.name} needs a reference; add a reference: section"
            )
        if trains_reference(config):
            found[REFERENCE] = reference_training(config)
    return Ask(config, label or f"{name}-seed{config.seed}", axes or {}, found)


def evaluation(
    config: RunConfig, label: str, axes: Mapping[str, Any] | None = None, **parents: Ask
) -> Ask:
    """Evaluate the target of a config (its given weights), or with model= the target of that run,
    on the config's task."""
    return Ask(config, label, axes or {}, parents, "evaluate")


def model_outputs(
    config: RunConfig,
    kind: str,
    part: str = "train",
    label: str | None = None,
    axes: Mapping[str, Any] | None = None,
    **parents: Ask,
) -> Ask:
    """Store outputs of the target of a config, or with model= of that run's target.

    Args:
        kind: see `steering.outputs.kinds`.
        part: "train", or a part of the task's held-out data.
    """
    require_kind(kind)
    return Ask(
        config,
        label or f"outputs-{kind}",
        axes or {},
        parents,
        "outputs",
        {"kind": kind, "part": part},
    )


def trains_reference(config: RunConfig) -> bool:
    return (
        config.reference is not None
        and config.reference.train is not None
        and config.reference.checkpoint is None
    )


def reference_training(config: RunConfig) -> Ask:
    """The run that trains the reference itself: plain training of its architecture, with the
    changes of `reference.train`."""
    # The runs of a study ask for the same one again and again, and a config takes a while to check.
    about = [
        config.reference,
        config.task,
        optimizer_content(config.optimizer),
        config.train,
        config.name,
        config.output,
        config.device,
    ]
    place = json.dumps([plain(one) for one in about], sort_keys=True, default=str)
    if place not in _REFERENCES:
        _REFERENCES[place] = _reference_training(config)
    return _REFERENCES[place]


def _reference_training(config: RunConfig) -> Ask:
    assert config.reference is not None
    changed = with_overrides(
        reference_target(config, seed=0), config.reference.train or {}, "reference.train"
    )
    return training(changed, reference_label(config.reference))


def reference_label(reference: ReferenceConfig) -> str:
    return "reference" if reference.label in (None, "reference") else f"reference-{reference.label}"


def reference_target(config: RunConfig, **changes: Any) -> RunConfig:
    """The same config with its reference as the target: what its training, evaluation or outputs
    are asked of.

    Args:
        changes: of other keys at the top of the config.
    """
    assert config.reference is not None
    as_target: dict[str, Any] = {
        "target": model_of(config.reference),
        "reference": None,
        "method": {"name": "erm"},
        "start": None,
        "restart": {},
        # They look on the target: the reference stays the same run.
        "train.observers": [],
    }
    return with_overrides(config, as_target | changes)


def study_folder(config: RunConfig) -> Path:
    """Where everything of a config goes: output/name, or output/name-smoke, so that a trial never
    stands in a real run's way."""
    return user_path(config.output) / (f"{config.name}-smoke" if config.smoke else config.name)


def renamed(ask: Ask, label: str, axes: Mapping[str, Any]) -> Ask:
    """The same run under another name in a study."""
    return replace(ask, label=label, axes=dict(axes))


def with_parents_first(asks: Sequence[Ask]) -> list[Ask]:
    """These asks and all that they are built on, each key once, parents before their children."""
    found: dict[str, Ask] = {}

    def add(ask: Ask) -> None:
        # A run whose start and whose reference are one run would else double the way at each link.
        if ask.key in found:
            return
        for parent in ask.parents.values():
            add(parent)
        found[ask.key] = ask

    for ask in asks:
        add(ask)
    return list(found.values())
