"""Digits with a colour that goes with the label, mostly: a spurious feature, embedded.

The colour of a digit agrees with the half that it is in (0-4 or 5-9) but for a minority. A model
that goes by the colour is right where they agree and wrong where they do not, so the two groups
"agrees" and "disagrees" tell what it has learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.data import uniform
from steering.errors import SteeringError

from .source_options import read_options
from .sources import ArraySource, digits

GROUPS = ("agrees", "disagrees")
LABELS = ("half", "digit")
_COLOURS = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
_MINORITY = 31  # key of the hash


@dataclass(frozen=True)
class ColouredDigits:
    """Options of the source "coloured_digits".

    Raises:
        SteeringError: one out of range.
    """

    label: str = "half"
    """What is to be learnt: "half" (0-4 or 5-9) or "digit"."""
    minority: float = 0.5
    """Probability that the colour disagrees with the half, in training."""
    test_minority: float = 0.5
    """The same in the test part."""
    cue: float = 1.0
    """How colourful the digits are, from 0 (grey) to 1."""
    seed: int = 0
    """Chooses who disagrees."""

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise SteeringError(f"label: expected one of {', '.join(LABELS)}, got {self.label!r}")
        for key in ("minority", "test_minority", "cue"):
            if not 0 <= getattr(self, key) <= 1:
                raise SteeringError(f"{key}: expected a number in [0, 1], got {getattr(self, key)}")


class GroupedSource(ArraySource):
    """Images in memory that know their group.

    Attributes:
        groups: int64, (n,).
        group_names: of each group.
    """

    groups: np.ndarray
    group_names: tuple[str, ...] = GROUPS


def coloured_digits(options: Mapping[str, Any]) -> tuple[GroupedSource, GroupedSource]:
    """The training and the test part of scikit-learn's digits, coloured.

    Raises:
        SteeringError: an unknown option, or one out of range.
    """
    chosen = read_options(ColouredDigits, options)
    train, test = digits()
    parts = [
        _coloured(part, chosen, minority, number)
        for number, (part, minority) in enumerate(
            [(train, chosen.minority), (test, chosen.test_minority)]
        )
    ]
    return parts[0], parts[1]


def _coloured(
    part: ArraySource, chosen: ColouredDigits, minority: float, number: int
) -> GroupedSource:
    half = (part.labels >= 5).astype(np.int64)
    keys = (chosen.seed, _MINORITY, number)
    group = (uniform(*keys, np.arange(len(part))) < minority).astype(np.int64)
    colour = _COLOURS[half ^ group]  # (n, 3)
    tint = 1 - chosen.cue + chosen.cue * colour
    images = (part.images.astype(np.float64) * tint[:, None, None]).round().astype(np.uint8)
    labels = half if chosen.label == "half" else part.labels
    names = ["0-4", "5-9"] if chosen.label == "half" else part.classes
    found = GroupedSource(images, labels, names)
    found.groups = group
    return found
