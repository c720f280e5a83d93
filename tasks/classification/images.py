"""What a source of labelled images is, and how it decodes a picture."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..pictures import FORMATS, SCALED, TURNED, normal
from ..pictures import SUFFIXES as NAMES

SUFFIXES = tuple(f".{name}" for name in NAMES)
CHANGES = "steering changes"  # key of an image's `info`
UPRIGHT, WHITE = TURNED, "put on white"
__all__ = [
    "CHANGES",
    "FORMATS",
    "SCALED",
    "SUFFIXES",
    "UPRIGHT",
    "WHITE",
    "Source",
    "UnreadableError",
]


class UnreadableError(Exception):
    """One image cannot be decoded."""


class Source(ABC):
    """n labelled images, or texts.

    Attributes:
        labels: class numbers, int64, (n,).
        classes: name of each class.
        groups: group numbers, int64, (n,), of a source that knows them; else empty.
        group_names: of each group.
        kind: "image", or "text": rows of bytes, (1, length, 1), with zeros behind the end.
    """

    kind: str = "image"
    labels: np.ndarray
    classes: list[str]
    groups: np.ndarray = np.zeros(0, dtype=np.int64)
    group_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def changes(self, number: int) -> list[str]:  # noqa: ARG002
        """What reading that image changes: short phrases, such as "turned upright"; known once it
        has been read."""
        return []

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8, (h, w, c); raises UnreadableError."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of images and labels."""


def read_colours(path: str | Path) -> Image.Image:
    """The picture in a file, upright, RGB, 8 bits: torchvision's `loader`. Raises what Pillow
    raises for a damaged file."""
    image, changes = read_picture(path)
    image.info[CHANGES] = changes
    return image


def read_picture(path: str | Path) -> tuple[Image.Image, list[str]]:
    """The same, and what was changed: some of `UPRIGHT`, `SCALED`, `WHITE`."""
    try:
        with Image.open(io.BytesIO(Path(path).read_bytes()), formats=FORMATS) as image:
            found, changes = eight_bits(image)
            return found.convert("RGB"), changes
    except UnidentifiedImageError:  # Pillow's own words hold the address of a buffer
        raise UnreadableError(f"cannot decode the image (none of {', '.join(FORMATS)})") from None


def eight_bits(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """A picture as L or RGB, as a person would see it, and what was changed for that; see
    `tasks.pictures`.

    Raises:
        UnreadableError: no pixel is a finite number.
    """
    try:
        upright, changed = normal(image)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    changes = [*changed]
    if upright.mode in ("1", "L") and not upright.has_transparency_data:
        return upright.convert("L"), changes
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB"), [
            *changes,
            WHITE,
        ]
    return upright.convert("RGB"), changes


def pixels(image: Image.Image) -> np.ndarray:
    """uint8, (h, w, 1) or (h, w, 3)."""
    array = np.array(image)
    return array if array.ndim == 3 else array[..., None]
