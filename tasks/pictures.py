"""Image files as every task reads them: 8-bit RGB, the right way up, with a note of what had to be
changed for that.

Pillow alone gives other pixels without a word: it cuts 16-bit grey off at 255, and leaves a turned
photo lying on its side.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

# Pillow would hand other formats to outside programs (EPS to Ghostscript); web data must not choose
# that.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = (
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bmp",
    "gif",
    "tif",
    "tiff",
    "ppm",
    "pgm",
    "pbm",
    "pnm",
    "jpe",
    "jfif",
)
"""Of files in these formats, without the dot, in lower case."""

SCALED = "scaled to 8 bits"
TURNED = "turned upright"
CHANGES = (SCALED, TURNED)

_ORIENTATION = 0x0112  # an EXIF tag, and a TIFF one
_BITS = 258  # a TIFF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes) -> Image.Image:
    """The picture in an encoded file, see `rgb`. Raises what Pillow raises: decoders meet broken
    bytes with many types."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return rgb(image)
    except (
        UserWarning
    ):  # of broken EXIF, where warnings are errors; the pixels are none the worse for it
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return decode(data)


def rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, fully decoded and upright; what is transparent becomes white. See
    also `changes`."""
    image, changed = normal(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    found = image.convert("RGB")  # a copy, whatever the mode
    found.info.clear()
    found.info["changed"] = changed
    return found


def changes(image: Image.Image) -> tuple[str, ...]:
    """How an image of `rgb` differs from what stands in its file: some of SCALED and TURNED."""
    return image.info.get("changed", ())


def normal(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture upright and with 8 bits a channel, otherwise in its own mode; and what was
    changed."""
    tags: Any = getattr(image, "tag_v2", {})
    before = tags.get(_ORIENTATION, 1)  # Pillow turns a TIFF itself, as it loads
    bits = tags.get(_BITS, (16,))[0]
    image.load()
    orientation = _orientation(image)
    turned = orientation in _TURNS or before in _TURNS
    image, scaled = _eight_bits(image, bits)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
        for block in [
            key for key in image.info if key != "transparency"
        ]:  # EXIF would turn it a second time
            del image.info[block]
    return image, (SCALED,) * scaled + (TURNED,) * turned


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 for none; a broken EXIF block says nothing about the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # struct.error, SyntaxError, ValueError, ...: it depends on the breakage
        return 1


def _eight_bits(image: Image.Image, bits: int) -> tuple[Image.Image, bool]:
    """Grey of more than 8 bits as 8-bit grey; and whether its values changed. Raises ValueError if
    none is finite.

    Args:
        bits: of a pixel in a 16-bit mode.
    """
    if not (image.mode in ("I", "F") or image.mode.startswith("I;16")):
        return image, False
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey, scaled = values >> max(bits - 8, 0), True
    elif image.mode == "I" and image.format in ("PPM", "PNG"):  # which Pillow scales to 16 bits
        grey, scaled = values >> 8, True
    else:
        grey, scaled = _by_range(values.astype(np.float64), sixteen=image.mode == "I")
    found = Image.fromarray(grey.astype(np.uint8))
    if isinstance(
        hidden := image.info.get("transparency"), int
    ):  # one grey value that stands for "nothing here"
        found.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return found, scaled


def _by_range(values: np.ndarray, sixteen: bool) -> tuple[np.ndarray, bool]:
    """Values in [0, 255] of numbers that have no range of their own; and whether they changed.

    Shares (in [0, 1]) and, with `sixteen`, 16-bit whole numbers are scaled as such, 8-bit whole
    numbers stay, others are stretched from their least to their greatest. What is not finite
    becomes the nearest end, NaN the lower one.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError("no pixel is a finite number")
    low, high = finite.min(), finite.max()
    values = np.clip(np.where(np.isnan(values), low, values), low, high)
    whole = bool((values == np.floor(values)).all())
    if low >= 0 and high <= 1:
        return np.rint(values * 255), True
    if low >= 0 and high <= 255 and whole:
        return values, False
    if sixteen and low >= 0 and high <= 65535 and whole:
        return np.floor(values / 256), True
    if low == high:  # one value has no range
        return np.clip(np.rint(values), 0, 255), True
    return np.rint((values - low) / max(high - low, np.finfo(float).tiny) * 255), True
