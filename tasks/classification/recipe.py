"""The recipe of the training images: blurred, without duplicates, filtered, repeated, mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from steering.errors import SteeringError
from steering.storage import sha256

from ..transforms import (
    Duplicate,
    Filter,
    duplicated,
    filtered,
    find_filter,
    first_ones,
    mixed_rows,
)
from .data import Labelled
from .images import Source, UnreadableError, pixels

_SIDE = 8  # of the grid of a near duplicate's differences


@dataclass
class ImagesFilter(Filter):
    """Which training images stay. A function is called with the image, uint8, (h, w, c), or the
    bytes of the text, (1, length, 1), and the label."""

    side: int = 0
    """Least pixels of the shorter side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 0:
            raise SteeringError(f"side: expected a number of pixels >= 0, got {self.side}")


class Blurred(Source):
    """The images of a source through a Gaussian blur.

    Args:
        sigma: its standard deviation in pixels.
    """

    def __init__(self, source: Source, sigma: float) -> None:
        self.source, self.sigma, self.kind = source, sigma, source.kind
        self.labels, self.classes = source.labels, source.classes
        self.groups, self.group_names = source.groups, source.group_names

    def image(self, number: int) -> np.ndarray:
        image = self.source.image(number)
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        return pixels(picture.filter(ImageFilter.GaussianBlur(self.sigma)))

    def changes(self, number: int) -> list[str]:
        return self.source.changes(number)

    def fingerprint(self) -> str:
        return sha256([self.source.fingerprint(), f"blurred by {self.sigma}"])


def cooked(
    part: Labelled,
    dedup: str,
    given: ImagesFilter,
    repeat: Duplicate,
    mix: Mapping[int, float],
    names: Sequence[str],
    seed: int,
    reserved: Labelled | None = None,
) -> Labelled:
    """A part of the training images after the steps of its recipe, in this order, renumbered.

    Args:
        mix: group number, or class number where there are no groups → weight; empty: as they come.
        names: of the groups or the classes.
        reserved: examples kept from training: no copy of them is left either.
    """
    what = f"{part.source.kind}s"
    if dedup != "none":
        key = _content if dedup == "exact" else _difference_hash
        kept, away = (
            [_read(one, row, key) for row in range(len(one.numbers))] if one is not None else []
            for one in (part, reserved)
        )
        part = part.at(first_ones(kept, what, away))
    if given != ImagesFilter():
        own = given.function is not None or given.side > 0
        passes = _judge(part, given)
        part = part.at(filtered(given, len(part.numbers), passes, what, own=own))
    if repeat.share > 0 and repeat.times > 1:
        part = part.at(duplicated(repeat, len(part.numbers), seed, what))
    if mix:
        if unknown := [number for number in mix if not 0 <= number < len(names)]:
            raise SteeringError(
                f"task.data.mix: no number {unknown[0]}; expected below {len(names)}: "
                f"{', '.join(names[:10])}"
            )
        kind = part.labels if part.groups is None else part.groups
        weights = np.array([mix.get(number, 0.0) for number in range(len(names))])
        part = part.at(mixed_rows(kind, weights, seed, names, what))
    return part


def _read(part: Labelled, row: int, key: Callable[[np.ndarray], str]) -> str | None:
    try:
        return key(part.source.image(int(part.numbers[row])))
    except UnreadableError:  # it is counted where it is used
        return None


def _content(image: np.ndarray) -> str:
    return sha256([str(image.shape), np.ascontiguousarray(image).tobytes()])


def _difference_hash(image: np.ndarray) -> str:
    """64 bits: in a grey version of 8×9 pixels, is each brighter than its right neighbour?"""
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
    small = np.asarray(picture.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)).astype(np.int64)
    return np.packbits(small[:, :-1] > small[:, 1:]).tobytes().hex()


def _judge(part: Labelled, given: ImagesFilter) -> Callable[[int], str | None]:
    function = None if given.function is None else find_filter(given.function)

    def passes(row: int) -> str | None:
        try:
            image = part.source.image(int(part.numbers[row]))
        except UnreadableError:
            return None
        if min(image.shape[:2]) < given.side:
            return f"smaller than {given.side} pixels"
        if function is not None and not function(image, int(part.labels[row])):
            return f"by {given.function}"
        return None

    return passes
