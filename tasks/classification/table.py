"""Images listed in a table with their label, split and group: the layout of Waterbirds (metadata.csv
with img_filename, y, split, place) and of WILDS' data sets."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steering.errors import SteeringError
from steering.reading import Tally, user_path

from .image_files import FileSource
from .source_options import read_options
from .spurious import GROUPS


@dataclass(frozen=True)
class TableOptions:
    """Options of the source "table"; the defaults are Waterbirds'."""

    image: str = "img_filename"
    """The column of file names; with {COLUMN} in it a template, as WILDS' camelyon17 needs one."""
    label: str = "y"
    """The column of class numbers, or of names."""
    split: str = "split"
    """The column that says which part a row is in."""
    train: Sequence[str] = field(default_factory=lambda: ("0", "train"))
    """Its values of the training part."""
    test: Sequence[str] = field(default_factory=lambda: ("2", "test"))
    """Its values of the test part."""
    group: str | None = None
    """A column whose values are the groups; null: none."""
    spurious: str | None = None
    """A column that agrees with the label for most: two groups, "agrees" and "disagrees"."""
    goes_with: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Value of the spurious column -> labels that it goes with; empty: it is the label itself."""
    root: str | None = None
    """Where the files' names begin; null: the table's folder."""


class TableSource(FileSource):
    """The rows of one part of a table."""

    def __init__(
        self,
        root: Path,
        files: list[Path],
        labels: np.ndarray,
        classes: list[str],
        groups: np.ndarray,
        names: tuple[str, ...],
    ) -> None:
        super().__init__(root, files, labels, classes)
        self.groups, self.group_names = groups, names


def table(path: str, options: Mapping[str, Any]) -> tuple[TableSource, TableSource]:
    """The training and the test part of a CSV or .tsv with a head line.

    Raises:
        SteeringError: no such file or column, an empty part, or labels and spurious values that
            cannot be compared.
    """
    given = _options(options)
    place = user_path(path)
    rows = rows_of(place, "path")
    _require(given, rows)
    root = place.parent if given.root is None else user_path(given.root)
    labels, classes = numbered([row[given.label] for row in rows])
    groups, names = groups_of(given, rows, labels, classes)
    found, tally = [], Tally()
    for part in (given.train, given.test):
        wanted = {str(value) for value in part}
        chosen = [n for n, row in enumerate(rows) if row[given.split] in wanted]
        if not chosen:
            have = ", ".join(sorted({row[given.split] for row in rows})[:10])
            raise SteeringError(
                f"path: {path} has no row whose {given.split} is {' or '.join(sorted(wanted))}; it has {have}"
            )
        files = [root / _name(given.image, rows[n]) for n in chosen]
        mine = groups[chosen] if len(groups) else groups
        found.append(TableSource(root, files, labels[chosen], classes, mine, names))
        tally.read += len(chosen)
    if others := len(rows) - tally.read:
        tally.left_out = Counter({"in other parts": others})
    tally.report("task.data.path", "images", path)
    return found[0], found[1]


def _options(options: Mapping[str, Any]) -> TableOptions:
    lists = {
        key: [value] if isinstance(value, str | int) else value
        for key, value in options.items()
        if key in ("train", "test")
    }
    given = read_options(TableOptions, {**options, **lists})
    if given.group is not None and given.spurious is not None:
        raise SteeringError("options: group and spurious both make groups; expected one of them")
    return given


def rows_of(place: Path, key: str) -> list[dict[str, str]]:
    """Rows of a CSV with a head line, or of a .tsv: tabs, and quotes that mean nothing.

    Args:
        key: the config's, for messages.
    """
    try:
        with place.open(newline="", encoding="utf-8-sig") as file:
            if place.suffix == ".tsv":
                rows = [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
            else:
                rows = [*csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SteeringError(f"{key}: cannot read the table {place}: {error}") from error
    if not rows:
        raise SteeringError(f"{key}: {place} has no rows below its head")
    return rows


def _require(given: TableOptions, rows: Sequence[Mapping[str, str]]) -> None:
    row = rows[0]
    columns = {given.label, given.split, *_columns(given.image)}
    columns |= {one for one in (given.group, given.spurious) if one is not None}
    if missing := sorted(column for column in columns if row.get(column) is None):
        have = ", ".join(str(one) for one in row if one)
        raise SteeringError(f"path: the table has no column {', '.join(missing)}; it has {have}")
    for number, one in enumerate(rows[1:], 3):  # the head is line 1
        if missing := sorted(column for column in columns if one.get(column) is None):
            raise SteeringError(f"path: row {number} of the table has no {', '.join(missing)}")


def _columns(image: str) -> list[str]:
    if "{" not in image:
        return [image]
    return [part.partition("}")[0] for part in image.split("{")[1:]]


def _name(image: str, row: Mapping[str, str]) -> str:
    return image.format_map(row) if "{" in image else row[image]


def numbered(values: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Class numbers, int64, and names; numbers stay as they are."""
    if all(value.isascii() and value.isdigit() for value in values):
        numbers = np.array([int(value) for value in values])
        return numbers, [str(n) for n in range(int(numbers.max()) + 1)]
    names = sorted({*values})
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[value] for value in values]), names


def groups_of(
    given: TableOptions, rows: Sequence[Mapping[str, str]], labels: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, tuple[str, ...]]:
    if given.group is not None:
        groups, names = numbered([row[str(given.group)] for row in rows])
        return groups, tuple(names)
    if given.spurious is not None:
        told = [row[given.spurious] for row in rows]
        goes = _goes_with(given, {*told}, classes)
        agrees = [classes[label] in goes[one] for one, label in zip(told, labels, strict=True)]
        return 1 - np.array(agrees, dtype=np.int64), GROUPS
    return np.zeros(0, dtype=np.int64), ()


def _goes_with(
    given: TableOptions, told: Collection[str], classes: Sequence[str]
) -> dict[str, set[str]]:
    """Value of the spurious column → the labels that it agrees with."""
    goes = {value: {*labels} for value, labels in given.goes_with.items()}
    goes = goes or {name: {name} for name in classes}
    if unknown := {*told} - {*goes}:
        why = "goes_with does not name" if given.goes_with else "is no label"
        raise SteeringError(
            f"options.spurious: {given.spurious} has the value {min(unknown)}, which {why}; "
            f"expected {', '.join([*goes][:10])}"
        )
    if unknown := {label for labels in goes.values() for label in labels} - {*classes}:
        raise SteeringError(
            f"options.goes_with: no label {min(unknown)}; labels are {', '.join(classes[:10])}"
        )
    return goes
