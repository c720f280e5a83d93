"""What a source of labelled images is, and how it decodes a picture."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow would hand other formats to outside programs (EPS to Ghostscript); a data set must not choose that.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
CHANGES = "steering changes"  # key of an image's `info`
UPRIGHT, SCALED, WHITE = "turned upright", "scaled to 8 bits", "put on white"


class UnreadableError(Exception):
    """One image cannot be decoded."""


class Source(ABC):
    """n labelled images.

    Attributes:
        labels: class numbers, int64, (n,).
        classes: name of each class.
    """

    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def changes(self, number: int) -> list[str]:  # noqa: ARG002
        """What reading that image changes: short phrases, such as "turned upright"; known once it has been read."""
        return []

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8, (h, w, c); raises UnreadableError."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of images and labels."""


def read_colours(path: str | Path) -> Image.Image:
    """The picture in a file, upright, RGB, 8 bits: torchvision's `loader`. Raises what Pillow raises for a damaged file."""
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
    """A picture as L or RGB, as a person would see it, and what was changed for that.

    Turned upright by its EXIF orientation; what is transparent becomes white. Of 16 bits the upper 8 stay; 32-bit integers and
    floats are stretched from their own smallest and largest value to 0 .. 255.

    Raises:
        UnreadableError: a float is not finite.
    """
    changes = []
    if image.getexif().get(0x0112, 1) not in (0, 1):
        image = ImageOps.exif_transpose(image)
        changes.append(UPRIGHT)
    if image.mode in ("1", "L"):
        found = image.convert("L")
    elif image.mode.startswith("I;16"):
        found = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        changes.append(SCALED)
    elif image.mode in ("I", "F"):
        found = Image.fromarray(_stretched(np.asarray(image).astype(np.float64)))
        changes.append(SCALED)
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        found = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        changes.append(WHITE)
    else:
        found = image.convert("RGB")
    return found, changes


def _stretched(values: np.ndarray) -> np.ndarray:
    """Values from their own range to 0 .. 255; of a single value the nearest of 0 .. 255 stays."""
    if not np.isfinite(values).all():
        raise UnreadableError("holds values that are not finite")
    low, high = values.min(), values.max()
    if low < high:
        values = (values - low) * (255 / (high - low))
    return values.clip(0, 255).round().astype(np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    """uint8, (h, w, 1) or (h, w, 3)."""
    array = np.array(image)
    return array if array.ndim == 3 else array[..., None]
