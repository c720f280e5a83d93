"""Pictures in their files' bytes, all in one array: far smaller than pixels, decoded one by one."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from steering.errors import SteeringError
from steering.storage import sha256

from .images import FORMATS, Source, UnreadableError, eight_bits, pixels


def class_numbers(labels: np.ndarray, n: int) -> np.ndarray:
    """Labels of n images as int64, (n,); SteeringError unless they are class numbers ≥ 0, (n,) or
    (n, 1), and at least one."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or not n or labels.min() < 0:
        hint = "; they look one-hot: save their argmax(1)" if labels.ndim == 2 else ""
        raise SteeringError(
            f"labels must be {n} class numbers ≥ 0 and at least one, got {labels.dtype}, {labels.shape}{hint}"
        )
    return labels.astype(np.int64)


class EncodedSource(Source):
    """Encoded pictures (JPEG, or another format that we read) back to back.

    Args:
        encoded: all bytes, uint8.
        offset: picture i is encoded[offset[i] : offset[i + 1]], integers, (n + 1,).
        labels: class numbers, (n,) or (n, 1).
    """

    def __init__(self, encoded: np.ndarray, offset: np.ndarray, labels: np.ndarray) -> None:
        fits = (
            encoded.dtype == np.uint8
            and encoded.ndim == 1
            and offset.ndim == 1
            and offset.dtype.kind in "iu"
            and len(offset) > 1
            and offset[0] == 0
            and offset[-1] == len(encoded)
            and (np.diff(offset.astype(np.int64)) >= 0).all()
        )
        if not fits:
            raise SteeringError(
                "jpeg must be uint8 bytes, and offset where each picture begins, ascending from 0 to "
                f"their number; got {encoded.dtype}, {encoded.shape} and {offset.dtype}, {offset.shape}"
            )
        self.encoded, self.offset = encoded, offset.astype(np.int64)
        self.labels = class_numbers(labels, len(offset) - 1)
        self.classes = [str(n) for n in range(int(self.labels.max()) + 1)]

    def image(self, number: int) -> np.ndarray:
        data = self.encoded[self.offset[number] : self.offset[number + 1]].tobytes()
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                return pixels(eight_bits(picture)[0])
        except Exception as error:  # decoders meet broken bytes with many types
            raise UnreadableError(f"example {number} cannot be decoded: {error}") from error

    def fingerprint(self) -> str:
        return sha256([self.encoded.tobytes(), self.offset.tobytes(), self.labels.tobytes()])
