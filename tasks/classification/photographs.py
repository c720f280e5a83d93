"""Digits on photographs of two kinds: a spurious feature in real pictures, as Waterbirds has it.

The kind of the background (sky and water, or land) agrees with the half of the digit (0-4 or 5-9)
but for a minority.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steering.data import mix, uniform
from steering.errors import SteeringError
from steering.storage import sha256

from .idx import mnist
from .images import Source
from .source_options import read_options
from .sources import arrays, digits
from .spurious import GROUPS, LABELS

_WHO, _WHICH, _ORDER = 41, 42, 43  # keys of the hash


@dataclass(frozen=True)
class OnPhotographs:
    """Options of the source "digits_on_photographs".

    Raises:
        SteeringError: one out of range.
    """

    digits: str | None = None
    """Folder with the idx files of MNIST, packed or not; null: scikit-learn's digits."""
    kinds: Sequence[Sequence[int]] = field(default_factory=lambda: ((0, 8), (4, 6)))
    """Class numbers of the photographs that go with 0-4, and of those with 5-9; of CIFAR-10
    airplane and ship, deer and frog."""
    opacity: float = 0.7
    """Of the ink: 1 hides what is behind it."""
    label: str = "half"
    """What is to be learnt: "half" (0-4 or 5-9) or "digit"."""
    minority: float = 0.5
    """Probability that the background disagrees with the half, in training."""
    test_minority: float = 0.5
    """The same in the test part."""
    count: int | None = None
    """How many training examples, drawn by the seed; null: one for each digit."""
    test_count: int | None = None
    """The same of the test part."""
    seed: int = 0
    """Chooses digits, photographs, and who disagrees."""

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise SteeringError(f"label: expected one of {', '.join(LABELS)}, got {self.label!r}")
        for key in ("minority", "test_minority", "opacity"):
            if not 0 <= getattr(self, key) <= 1:
                raise SteeringError(f"{key}: expected a number in [0, 1], got {getattr(self, key)}")
        if len(self.kinds) != 2 or not all(self.kinds):
            raise SteeringError(f"kinds: expected two lists of class numbers, got {self.kinds}")


class DigitsOnPhotographs(Source):
    """Drawn when it is read.

    Args:
        number: of the part, so that parts draw differently.
    """

    def __init__(
        self,
        ink: Source,
        photographs: Source,
        given: OnPhotographs,
        minority: float,
        count: int | None,
        number: int,
    ) -> None:
        self.ink, self.photographs, self.opacity = ink, photographs, given.opacity
        keys = (given.seed, number)
        order = np.argsort(uniform(*keys, _ORDER, np.arange(len(ink))), kind="stable")
        self.rows = np.sort(order[: len(ink) if count is None else count])
        digit = ink.labels[self.rows]
        half = (digit >= 5).astype(np.int64)
        self.groups = (uniform(*keys, _WHO, self.rows) < minority).astype(np.int64)
        self.group_names = GROUPS
        self.behind = np.zeros(len(self.rows), dtype=np.int64)
        for kind, classes in enumerate(given.kinds):
            mine = np.flatnonzero((half ^ self.groups) == kind)
            pool = np.flatnonzero(np.isin(photographs.labels, classes))
            if not len(pool):
                raise SteeringError(f"options.kinds: no photograph of the classes {[*classes]}")
            draw = mix(*keys, _WHICH, self.rows[mine]) % np.uint64(len(pool))
            self.behind[mine] = pool[draw.astype(np.int64)]
        self.labels = half if given.label == "half" else digit
        self.classes = ["0-4", "5-9"] if given.label == "half" else [str(n) for n in range(10)]
        self._about = f"digits on photographs {given}"

    def image(self, number: int) -> np.ndarray:
        photograph = self.photographs.image(int(self.behind[number])).astype(np.float64)
        height, width = photograph.shape[:2]
        grey = self.ink.image(int(self.rows[number])).astype(np.float64).mean(-1) / 255
        share = np.zeros((height, width))
        times = max(1, min(height // grey.shape[0], width // grey.shape[1]))
        grey = np.kron(grey, np.ones((times, times)))[:height, :width]  # whole pixels, enlarged
        top, left = (height - grey.shape[0]) // 2, (width - grey.shape[1]) // 2
        share[top : top + grey.shape[0], left : left + grey.shape[1]] = self.opacity * grey
        found = photograph * (1 - share[..., None]) + 255 * share[..., None]
        return found.round().astype(np.uint8)

    def fingerprint(self) -> str:
        parts = [array.tobytes() for array in (self.rows, self.behind, self.labels, self.groups)]
        return sha256([self._about, self.ink.fingerprint(), self.photographs.fingerprint(), *parts])


def digits_on_photographs(
    path: str, test_path: str, options: Mapping[str, Any]
) -> tuple[DigitsOnPhotographs, DigitsOnPhotographs]:
    """The training and the test part.

    Args:
        path, test_path: photographs, two .npz files as of the source "arrays".

    Raises:
        SteeringError: an unknown option, or one out of range; no photographs or digits.
    """
    given = read_options(OnPhotographs, options)
    inks = digits() if given.digits is None else mnist(given.digits, "task.data.options.digits")
    behind = arrays(path, test_path)
    parts = [
        DigitsOnPhotographs(ink, photographs, given, minority, count, number)
        for number, (ink, photographs, minority, count) in enumerate(
            zip(
                inks,
                behind,
                (given.minority, given.test_minority),
                (given.count, given.test_count),
                strict=True,
            )
        )
    ]
    return parts[0], parts[1]
