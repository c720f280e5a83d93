"""Labelled texts in files: a table with a text and a label a row, or plain files whose place says the
class."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from steering.errors import SteeringError
from steering.reading import Tally, user_path

from ..language.corpus import read_domains
from ..language.files import find
from .table import TableOptions, groups_of, numbered, rows_of

CLASS = "{class}"
_NONE = np.zeros(0, dtype=np.int64)


class Given(Protocol):
    """What is asked of the files: some of `TextOptions`."""

    @property
    def text(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str | None: ...
    @property
    def spurious(self) -> str | None: ...
    @property
    def separator(self) -> str | None: ...


@dataclass(frozen=True)
class Documents:
    """Labelled documents.

    Attributes:
        texts: (n,).
        labels: class numbers, int64, (n,).
        classes: their names.
        groups: group numbers, int64, (n,), or empty.
        group_names: of each group.
    """

    texts: list[str]
    labels: np.ndarray
    classes: list[str]
    groups: np.ndarray
    group_names: tuple[str, ...]

    @staticmethod
    def by_class(found: Mapping[str, Sequence[str]]) -> Documents:
        """From the documents of each class."""
        texts = [text for some in found.values() for text in some]
        labels = np.repeat(np.arange(len(found)), [len(some) for some in found.values()])
        return Documents(texts, labels, [*found], _NONE, ())


def from_files(path: str, test_path: str, given: Given) -> tuple[Documents, Documents]:
    """The training and the test part; see `texts.texts`."""
    if (CLASS in path) != (CLASS in test_path):
        raise SteeringError(f"test_path: expected {CLASS} in path and test_path, or in neither")
    if CLASS in path:
        return _from_places(path, test_path, given)
    return _from_tables(path, test_path, given)


def _from_places(path: str, test_path: str, given: Given) -> tuple[Documents, Documents]:
    if given.group or given.spurious:
        raise SteeringError("options: group and spurious are columns; plain files have none")
    train, test = _by_class(path, "path"), _by_class(test_path, "test_path")
    if train.keys() != test.keys():
        wrong = sorted({*train} ^ {*test})
        raise SteeringError(
            f"test_path: {test_path} and {path} have other classes: {', '.join(wrong)}"
        )
    read = [
        read_domains(found, given.text, given.separator, f"task.data.{key}")
        for key, found in (("path", train), ("test_path", test))
    ]
    return Documents.by_class(read[0]), Documents.by_class(read[1])


def _by_class(path: str, key: str) -> dict[str, str]:
    """Class → its path, by what stands in the place of "{class}"; in alphabetical order."""
    before, _, after = path.partition(CLASS)
    if CLASS in after:
        raise SteeringError(f"{key}: expected {CLASS} once, got {path}")
    try:
        files = find(f"{before}*{after}", Tally())
    except OSError as error:
        raise SteeringError(f"{key}: {path}: {error}") from error
    # The name is what the star has matched: no separator, up to what is written behind it.
    end = re.split(r"[*?\[]", after, maxsplit=1)[0]
    pattern = re.compile(re.escape(str(user_path(before + "x"))[:-1]) + "([^/]+?)" + re.escape(end))
    names = {match[1] for file in files if (match := pattern.match(str(file)))}
    if not names:
        raise SteeringError(f"{key}: {path} names no class")
    return {name: f"{before}{name}{after}" for name in sorted(names)}


def _from_tables(path: str, test_path: str, given: Given) -> tuple[Documents, Documents]:
    both = [_rows(path, "path", given), _rows(test_path, "test_path", given)]
    rows = [row for some in both for row in some]
    labels, classes = numbered([row[given.label] for row in rows])
    size = len(both[0])
    if strange := sorted({*labels[size:]} - {*labels[:size]}):
        raise SteeringError(
            f"test_path: {test_path} has the class {classes[strange[0]]}, which {path} has not"
        )
    columns = TableOptions(label=given.label, group=given.group, spurious=given.spurious)
    groups, names = groups_of(columns, rows, labels, classes)
    parts = [
        Documents([row[given.text] for row in some], labels[at], classes, groups[at], names)
        for some, at in zip(both, (slice(0, size), slice(size, None)), strict=True)
    ]
    return parts[0], parts[1]


def _rows(path: str, key: str, given: Given) -> list[dict[str, str]]:
    """Rows with all the columns that are asked for, and a text."""
    place, tally = user_path(path), Tally()
    if place.suffix in (".csv", ".tsv"):
        rows = rows_of(place, key)
    elif place.suffix == ".jsonl":
        rows = _lines(place, key)
    else:
        raise SteeringError(
            f"{key}: expected .csv, .tsv or .jsonl, or a path with {CLASS} in it, got {path}"
        )
    wanted = [one for one in (given.text, given.label, given.group, given.spurious) if one]
    found = []
    for number, row in enumerate(rows, 1):
        if missing := [one for one in wanted if row.get(one) is None]:
            have = ", ".join(str(one) for one in row if one)
            raise SteeringError(
                f"{key}: row {number} of {path} has no {', '.join(missing)}; it has {have}"
            )
        if row[given.text].strip():
            found.append(row)
        else:
            tally.left_out["empty"] += 1
    if not found:
        raise SteeringError(f"{key}: {path} has no rows with a text")
    tally.read = len(found)
    tally.report(f"task.data.{key}", "texts", path)
    return found


def _lines(place: Path, key: str) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in place.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise SteeringError(f"{key}: cannot read {place}: {error}") from error
    if wrong := [n for n, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise SteeringError(f"{key}: {place}: object {wrong[0]} is none; expected an object a line")
    return [{name: str(v) for name, v in row.items() if v is not None} for row in rows]
