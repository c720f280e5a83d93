"""The references of a study's configs as contestants of their own: what they score, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

_INHERITED = ("optimizer", "train")  # sections that the reference's own training has from the run


def references_of(configs: Sequence[RunConfig], axis: str, more: Mapping[str, Any]) -> list[Ask]:
    """Each reference once: the run that trains it, or an evaluation of given weights.

    Args:
        axis: the axis that says the reference's label.
        more: further axes.
    """
    from steering.runs.ask import (
        evaluation,
        reference_label,
        reference_target,
        reference_training,
        renamed,
        trains_reference,
    )

    found: dict[str, Ask] = {}
    for config in configs:
        if config.reference is None:
            continue
        label = reference_label(config.reference)
        axes = {axis: label, **more}
        if trains_reference(config):
            ask = renamed(reference_training(config), label, axes)
        else:
            ask = evaluation(reference_target(config), label, axes)
        found.setdefault(ask.key, ask)
    return list(found.values())


def with_reference_of(config: RunConfig, base: RunConfig, changed: Iterable[str]) -> RunConfig:
    """A config whose reference is trained as that of another one: what a study varies in the
    target's training is no part of the reference's.

    Args:
        base: the config before the changes.
        changed: their dotted keys.
    """
    from steering.config import with_overrides
    from steering.runs.ask import trains_reference
    from steering.typed import plain

    keys = [key for key in changed if key.partition(".")[0] in _INHERITED]
    if config.reference is None or not trains_reference(config) or not keys:
        return config
    values = plain(base)
    kept = {key: reduce(lambda tree, part: tree[part], key.split("."), values) for key in keys}
    # What reference.train says itself comes behind, and goes first.
    return with_overrides(config, {"reference.train": kept | (config.reference.train or {})})
