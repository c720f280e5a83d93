"""Image–text sources: numbered pairs of a picture and its caption, before any model's
preprocessing.

The contract, and below it what the sources share: reading bytes at random, decoding, digests.
"""

from __future__ import annotations

import os
import resource
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from steering.errors import SteeringError
from steering.storage import sha256

from ...pictures import FORMATS, decode

NO_CAPTION = "no caption"
NO_IMAGE = "no image"

_LIMIT = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
_MAX_OPEN = (
    4096 if _LIMIT == resource.RLIM_INFINITY else min(4096, _LIMIT // 2)
)  # half is left for everybody else


class Unreadable(SteeringError):  # noqa: N818 (an adjective, as in `except Unreadable`)
    """One example that cannot be read; training replaces it, evaluation may stop.

    Attributes:
        where: file and key of the example.
        why: what went wrong.
    """

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class ImageTextSource(ABC):
    """n pairs of an image and a caption, numbered 0 .. n−1 in an order that does not change;
    picklable."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pair(self, i: int) -> tuple[Image.Image, str]:
        """Image i in RGB and its caption. Raises Unreadable if either cannot be had, IndexError
        outside [0, n)."""

    @abstractmethod
    def caption(self, i: int) -> str:
        """Caption i without its image, as `clean_caption` leaves it; never blank. Raises as
        `pair`."""

    @abstractmethod
    def captions(self) -> list[str]:
        """All n captions in order; for evaluation, as a training set may not want them all in
        memory."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex sha256 of keys, image sizes and captions in order; the same wherever the files
        lie."""

    @property
    @abstractmethod
    def skipped(self) -> dict[str, int]:
        """Entries left out while indexing: reason -> count; they have no number."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log: what, how many, what was skipped."""

    def image_place(self, i: int) -> Hashable:
        """Where image i lies: two pairs of one place show one image."""
        return i

    def image_size(self, i: int) -> int | None:  # noqa: ARG002 (for those who know it)
        """Bytes of image i as encoded; None if that is not known, and with it `image_bytes` is not
        to be had."""
        return None

    def image_bytes(self, i: int) -> bytes:
        """Image i as encoded. Raises Unreadable."""
        raise NotImplementedError


@dataclass(frozen=True)
class File:
    """A file at the moment it was indexed."""

    path: str
    size: int
    mtime_ns: int


def read_at(file: File, offset: int, size: int, where: str) -> bytes:
    """`size` bytes of an indexed file, from `offset` on; keeps the file open for the next call, in
    each process.

    Raises:
        Unreadable: the disk gives no or too few bytes; the message starts with `where`.
        SteeringError: the file is gone, or not the one that was indexed.
    """
    handle = _open(file)
    try:
        data = os.pread(handle.descriptor, size, offset)
    except OSError as error:
        raise Unreadable(where, f"cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise Unreadable(where, f"only {len(data)} of {size} bytes could be read")
    return data


class _Handle:
    """Owns a file descriptor; a reader that holds it keeps it open after the cache below has
    dropped it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


# pread has no file position, so forked workers may share what the parent opened.
@lru_cache(maxsize=_MAX_OPEN)
def _open(file: File) -> _Handle:
    try:
        handle = _Handle(os.open(file.path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise SteeringError(f"{file.path}: cannot be opened any more: {error.strerror}") from error
    stat = os.fstat(handle.descriptor)
    if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
        raise SteeringError(f"{file.path}: has changed since it was indexed; start again")
    return handle


def decode_image(data: bytes, where: str) -> Image.Image:
    """The picture in an encoded file as 8-bit RGB, upright, fully decoded; what is transparent
    becomes white.

    Raises:
        Unreadable: `data` is not a whole picture in a raster format; the message starts with
            `where`.
    """
    try:
        return decode(data)
    except UnidentifiedImageError:  # Pillow's own words hold the address of a buffer
        raise Unreadable(where, f"cannot decode the image (none of {', '.join(FORMATS)})") from None
    # decoders meet broken bytes with many types: OSError, SyntaxError, struct.error, ...
    except Exception as error:
        raise Unreadable(
            where, f"cannot decode the image ({type(error).__name__}: {error})"
        ) from error


def clean_caption(text: str) -> str:
    """A caption as written but for line ends around it, which files add; "" if nothing but white
    space is left."""
    return text.strip("\r\n") if text.strip() else ""


def read_image(path: Path) -> Image.Image:
    """The picture in a file of its own; see `decode_image`. Raises Unreadable if there is none to
    be had."""
    return decode_image(read_file(path), str(path))


def read_file(path: Path) -> bytes:
    """All of a file. Raises Unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(str(path), f"cannot be read: {error.strerror}") from error


def pair_digest(key: bytes, image_size: int, caption: str) -> bytes:
    """16 bytes that identify one pair, as a step to the fingerprint of them all."""
    return bytes.fromhex(sha256((key, str(image_size), caption)))[:16]
