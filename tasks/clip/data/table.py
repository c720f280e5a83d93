"""A folder of images with a table of captions: one row per pair, in a TSV or CSV file with a
header."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from steering.errors import SteeringError
from steering.reading import in_words, user_path

from ...pictures import SUFFIXES
from .source import (
    NO_CAPTION,
    NO_IMAGE,
    ImageTextSource,
    clean_caption,
    pair_digest,
    read_file,
    read_image,
)
from .table_file import TableFile


class TableSource(ImageTextSource):
    """Pairs in a table, numbered in the order of its usable rows.

    Args:
        table: UTF-8 file, `.csv` (commas) or `.tsv` (tabs); row one names columns. If they are
            there under another delimiter only, that one is taken. Quoted as csv.writer and pandas
            do; one with tabs may also be not quoted at all.
        root: folder that the image paths start from.
        image_column: column of image paths.
        caption_column: column of captions.

    Raises:
        SteeringError: a missing file, folder or column, a table that cannot be parsed, or one
            without a usable row.
    """

    def __init__(
        self,
        table: Path | str,
        root: Path | str,
        image_column: str = "image",
        caption_column: str = "caption",
    ) -> None:
        self._table, self._root = user_path(table), user_path(root)
        if not self._root.is_dir():
            what = (
                "is a file; expected the folder with"
                if self._root.is_file()
                else "no such folder; expected"
            )
            raise SteeringError(f"{self._root}: {what} the images of {self._table}")
        images, captions, sizes, digest = [], [], [], hashlib.sha256()
        file = TableFile(self._table, (image_column, caption_column), self._names_image)
        for cell, caption in file.rows():
            image, size = self._image(cell)
            text = clean_caption(caption)
            if size is None or not text:
                file.skipped[NO_IMAGE if size is None else NO_CAPTION] += 1
                continue
            images.append(image)
            captions.append(text)
            sizes.append(size)
            digest.update(pair_digest(os.fsencode(self._key(image)), size, text))
        self._skipped, self._notes = file.skipped, file.notes
        if not images:
            raise SteeringError(
                f"{self._table}: none of its rows can be used; skipped: {in_words(self._skipped)}; "
                f"images are looked up in {self._root}"
            )
        self._images, self._captions = _Strings(images), _Strings(captions)
        self._sizes = np.array(sizes, dtype=np.int64)
        self._fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def pair(self, i: int) -> tuple[Image.Image, str]:
        return read_image(self._root / self._images[i]), self._captions[i]

    def caption(self, i: int) -> str:
        return self._captions[i]

    def captions(self) -> list[str]:
        return [self._captions[i] for i in range(len(self))]

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self._skipped)

    def describe(self) -> str:
        notes = f" ({'; '.join(self._notes)})" if self._notes else ""
        return f"{len(self):,} pairs in {self._table}{notes}; skipped: {in_words(self._skipped)}"

    def image_place(self, i: int) -> Hashable:
        return self._key(self._images[i])

    def image_size(self, i: int) -> int:
        return int(self._sizes[i])

    def image_bytes(self, i: int) -> bytes:
        return read_file(self._root / self._images[i])

    def _image(self, cell: str) -> tuple[str, int | None]:
        """The path that a cell names, and the size of the file; None if there is no such file."""
        size = _file_size(self._root / cell) if cell else None
        if size is None and cell.startswith("~"):
            cell = str(user_path(cell))
            size = _file_size(self._root / cell)
        return cell, size

    def _names_image(self, cell: str) -> bool:
        """Whether a cell may be an image's path, though perhaps of one that is not there."""
        named = Path(cell).suffix[1:].lower() in SUFFIXES and not any(map(str.isspace, cell))
        return named or self._image(cell)[1] is not None

    def _key(self, image: str) -> str:
        """One spelling of a path, also of an absolute one."""
        return os.path.relpath(self._root / image, self._root)


class _Strings:
    """Strings in two arrays: without an object each, forked loader workers go on sharing the
    memory."""

    def __init__(self, strings: Sequence[str]) -> None:
        encoded = [string.encode() for string in strings]
        self._ends = np.cumsum([len(piece) for piece in encoded], dtype=np.int64)  # (n,)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        start = self._ends[i - 1] if i else 0
        return self._bytes[start : self._ends[i]].tobytes().decode()


def _file_size(path: Path) -> int | None:
    """Bytes of a regular file, None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
