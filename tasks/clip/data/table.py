"""A folder of images with a table of captions: one row per pair, in a TSV or CSV file with a header."""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from steering.errors import SteeringError
from steering.reading import in_words
from tasks.clip.data.source import (
    NO_CAPTION,
    NO_IMAGE,
    ImageTextSource,
    clean_caption,
    pair_digest,
    read_image,
)

_DIALECTS = {".csv": "excel", ".tsv": "excel-tab", ".tab": "excel-tab"}


class TableSource(ImageTextSource):
    """Pairs in a table, numbered in the order of its usable rows.

    Args:
        table: UTF-8 file, `.csv` (commas) or `.tsv` (tabs), quoted as csv.writer and pandas do; row one names columns.
        root: folder that the image paths start from.
        image_column: column of image paths.
        caption_column: column of captions.

    Raises:
        SteeringError: a missing file, folder or column, a table that cannot be parsed, or one without a usable row.
    """

    def __init__(
        self, table: Path | str, root: Path | str, image_column: str = "image", caption_column: str = "caption"
    ) -> None:
        self._table, self._root = Path(table), Path(root)
        if not self._root.is_dir():
            raise SteeringError(f"{self._root}: no such folder; expected the images of {self._table}")
        self._skipped: Counter[str] = Counter()
        images, captions, digest = [], [], hashlib.sha256()
        for image, caption in _rows(self._table, (image_column, caption_column), self._skipped):
            size, text = _file_size(self._root / image) if image else None, clean_caption(caption)
            if size is None or not text:
                self._skipped[NO_IMAGE if size is None else NO_CAPTION] += 1
                continue
            images.append(image)
            captions.append(text)
            key = os.path.relpath(self._root / image, self._root)  # one spelling, also of an absolute path
            digest.update(pair_digest(os.fsencode(key), size, text))
        if not images:
            raise SteeringError(
                f"{self._table}: none of its rows can be used; skipped: {in_words(self._skipped)}; "
                f"images are looked up in {self._root}"
            )
        self._images, self._captions = _Strings(images), _Strings(captions)
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
        return f"{len(self):,} pairs in {self._table}; skipped: {in_words(self._skipped)}"


class _Strings:
    """Strings in two arrays: without an object each, forked loader workers go on sharing the memory."""

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


def _rows(table: Path, columns: Sequence[str], skipped: Counter[str]) -> Iterator[list[str]]:
    """The asked columns of each row; "" for a cell that is missing. Raises SteeringError on a bad table."""
    if not table.is_file():
        raise SteeringError(f"{table}: no such file; expected a .tsv or .csv table of images and captions")
    if table.suffix.lower() not in _DIALECTS:
        raise SteeringError(f"{table}: unknown kind of table; expected one of {', '.join(_DIALECTS)}")
    with table.open(encoding="utf-8-sig", newline="") as stream:
        # strict: a stray quote is an error with a line number, instead of a caption that swallows the rows below it.
        reader = csv.reader(stream, _DIALECTS[table.suffix.lower()], strict=True)
        try:
            header = next(reader, [])
            missing = [column for column in columns if column not in header]
            if missing:
                raise SteeringError(f"{table}: no column {missing[0]!r}; its columns: {', '.join(header) or 'none'}")
            places = [header.index(column) for column in columns]
            for row in reader:
                if len(row) > len(header):  # an unquoted delimiter: which cell is the caption is anybody's guess
                    skipped["more cells than columns"] += 1
                elif row:
                    yield [row[place] if place < len(row) else "" for place in places]
        except csv.Error as error:
            raise SteeringError(f"{table}, line {reader.line_num}: cannot be parsed: {error}") from error
        except UnicodeDecodeError as error:
            raise SteeringError(f"{table}: not UTF-8: {error}") from error


def _file_size(path: Path) -> int | None:
    """Bytes of a regular file, None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
