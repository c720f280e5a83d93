"""Labelled texts as rows of bytes: pieces of Python's standard library, a package a class, or of your
own files.

A text is an "image" of one row, uint8, (1, length, 1), with zeros behind its end, so labels, parts,
groups and derived data work as they do for pictures. A mark in front can go with the class but for a
minority: a spurious feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steering.data import uniform
from steering.errors import SteeringError
from steering.storage import sha256

from ..language.corpus import STDLIB, stdlib
from .images import Source
from .merged import places
from .source_options import read_options
from .spurious import GROUPS
from .text_files import Documents, from_files

_MINORITY = 51  # key of the hash


@dataclass(frozen=True)
class TextOptions:
    """Options of the sources "stdlib" and "texts".

    Raises:
        SteeringError: one out of range.
    """

    length: int = 256
    """Bytes of a text in UTF-8; what is longer is cut."""
    pieces: bool = True
    """Cut a document into as many texts as it gives; false: its beginning is the only one."""
    modules: Sequence[str] = field(default_factory=lambda: [*STDLIB])
    """stdlib: packages, each a class."""
    text: str = "text"
    """texts, tables: the column of the texts."""
    label: str = "label"
    """texts, tables: the column of class numbers, or of names."""
    group: str | None = None
    """texts, tables: a column whose values are the groups; null: none."""
    spurious: str | None = None
    """texts, tables: a column that agrees with the label for most: two groups."""
    separator: str | None = None
    """texts, plain files: what stands between two documents; null: a file is one."""
    kinds: Sequence[Sequence[str]] = field(default_factory=list)
    """Two lists of classes, each with a mark of its own in front of its texts; empty: no marks."""
    marks: Sequence[str] = field(default_factory=lambda: ["# <<<<<<<<\n", "# >>>>>>>>\n"])
    """Of the two kinds."""
    minority: float = 0.5
    """Probability that a text has the other kind's mark, in training."""
    test_minority: float = 0.5
    """The same in the test part."""
    seed: int = 0
    """Chooses who has the other mark."""

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or self.length < 1:
            raise SteeringError(f"length: expected a number of bytes, got {self.length!r}")
        for key in ("minority", "test_minority"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise SteeringError(f"{key}: expected a number in [0, 1], got {value!r}")
        if len(self.kinds) not in (0, 2) or len(self.marks) != 2:
            raise SteeringError("kinds, marks: expected two of each, or no kinds")
        if isinstance(self.modules, str) or not self.modules:
            raise SteeringError(f"modules: expected a list of packages, got {self.modules!r}")
        if self.length <= self.front:
            raise SteeringError(
                f"length: expected more bytes than the marks have, {self.front}, got {self.length}"
            )
        if self.kinds and (self.group or self.spurious):
            raise SteeringError("kinds: and a column of groups both make groups; expected one")

    @property
    def front(self) -> int:
        """Bytes that are kept for a mark."""
        return max(len(mark.encode()) for mark in self.marks) if self.kinds else 0


class TextSource(Source):
    """Texts in memory.

    Args:
        rows: their bytes, uint8, (n, length), zeros behind the end.
        labels: class numbers, int64, (n,).
    """

    kind = "text"

    def __init__(self, rows: np.ndarray, labels: np.ndarray, classes: list[str]) -> None:
        self.rows, self.labels, self.classes = rows, labels, classes

    def image(self, number: int) -> np.ndarray:
        return self.rows[number][None, :, None]

    def fingerprint(self) -> str:
        parts = [self.rows.tobytes(), self.labels.tobytes(), self.groups.tobytes()]
        return sha256(["texts", str(self.rows.shape), *parts])


def library(options: Mapping[str, Any]) -> tuple[TextSource, TextSource]:
    """Pieces of the standard library's packages; about a tenth of the files are the test part.

    Raises:
        SteeringError: an unknown option, one out of range, or no such package.
    """
    given = read_options(TextOptions, options)
    parts = stdlib(tuple(given.modules))
    return _sources([Documents.by_class(part) for part in parts], given)


def texts(path: str, test_path: str, options: Mapping[str, Any]) -> tuple[TextSource, TextSource]:
    """Your own texts: tables with a text and a label a row, or files whose place says the class.

    Args:
        path, test_path: .csv, .tsv or .jsonl; or a path with "{class}" in it, such as
            texts/{class}/*.txt.

    Raises:
        SteeringError: nothing there, unreadable, no such column, classes that training has not; an
            unknown option, or one out of range.
    """
    given = read_options(TextOptions, options)
    return _sources(from_files(path, test_path, given), given)


def _sources(parts: Sequence[Documents], given: TextOptions) -> tuple[TextSource, TextSource]:
    shares = (given.minority, given.test_minority)
    train, test = (
        _source(part, given, share, number)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True))
    )
    return train, test


def _source(part: Documents, given: TextOptions, minority: float, number: int) -> TextSource:
    size = given.length - given.front
    cut = [_pieces(text, size, given.pieces) for text in part.texts]
    of = np.repeat(np.arange(len(cut)), [len(some) for some in cut])  # document of each piece
    found = [piece for some in cut for piece in some]
    labels = part.labels[of]
    groups, names = part.groups[of] if len(part.groups) else part.groups, part.group_names
    if given.kinds:
        kind = places(
            {"the first": given.kinds[0], "the second": given.kinds[1]},
            part.classes,
            "task.data.options.kinds",
        )[labels]
        draw = uniform(given.seed, _MINORITY, number, np.arange(len(found)))
        groups, names = (draw < minority).astype(np.int64), GROUPS
        marks = [mark.encode() for mark in given.marks]
        found = [marks[which] + piece for which, piece in zip(kind ^ groups, found, strict=True)]
    rows = np.zeros((len(found), given.length), dtype=np.uint8)
    for row, piece in zip(rows, found, strict=True):
        row[: len(piece)] = np.frombuffer(piece, dtype=np.uint8)
    source = TextSource(rows, labels, part.classes)
    source.groups, source.group_names = groups, names
    return source


def _pieces(text: str, size: int, several: bool) -> list[bytes]:
    """A document's bytes in pieces of `size`; a last one of less than a quarter is left out."""
    data = text.encode("utf-8", "replace").replace(b"\0", b" ")
    if not several or len(data) <= size:
        return [data[:size]]
    found = [data[start : start + size] for start in range(0, len(data), size)]
    return found if len(found[-1]) >= size / 4 else found[:-1]


def text_of(image: np.ndarray) -> str:
    """The text that a row of bytes holds, (1, length, 1); half a character at the end is dropped."""
    return bytes(image.reshape(-1)).rstrip(b"\0").decode("utf-8", "ignore")
