"""The references of a study's configs as contestants of their own: what they score, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask


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
