"""Rows of a CSV or TSV file with a header, as people write them: with quotes or without, with this
delimiter or another.

No rule here may merge two rows, or lose one without a count. A quote can do that: in a file that is
not quoted, a caption that starts with one runs on to the next quote, over the ends of lines.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from steering.errors import SteeringError

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}

MORE_CELLS = "more cells than columns"


@dataclass
class TableFile:
    """A table that is there, and how it is written.

    Attributes:
        path: of a UTF-8 file.
        columns: those asked for.
        looks_like_image: tells a cell that names an image from others.
        notes: what was found out about the file that its suffix does not say; short phrases for the
            log.
        skipped: rows that no cell can be taken from, by reason.
    """

    path: Path
    columns: Sequence[str]
    looks_like_image: Callable[[str], bool]
    notes: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    def rows(self) -> Iterator[list[str]]:
        """The asked columns of each row; "" for a cell that is missing.

        Raises:
            SteeringError: no such file, another suffix, no such column, not UTF-8, or (unless cells
                are separated by tabs) a row that cannot be parsed.
        """
        if self.path.is_dir():
            raise SteeringError(
                f"{self.path}: is a folder; expected a .tsv or .csv table of images and captions"
            )
        if not self.path.is_file():
            raise SteeringError(
                f"{self.path}: no such file; expected a .tsv or .csv table of images and captions"
            )
        if self.path.suffix.lower() not in DELIMITERS:
            raise SteeringError(
                f"{self.path}: unknown kind of table; expected one of {', '.join(DELIMITERS)}"
            )
        try:
            delimiter, header = self._header()
            places = [header.index(column) for column in self.columns]
            quoted = True
            # Web captions in TSV files are not quoted, those that csv.writer or pandas has written
            # are.
            if delimiter == "\t" and (why := self._objection(len(header), places[0])) is not None:
                quoted = False
                self.notes.append(f"quotes taken as they stand, as {why}")
            for row, _ in self._raw(delimiter, quoted, places[0]):
                if len(row) > len(
                    header
                ):  # an unquoted delimiter: which cell is the caption is anybody's guess
                    self.skipped[MORE_CELLS] += 1
                elif row:
                    yield [row[place] if place < len(row) else "" for place in places]
        except _NotQuoted as error:
            raise SteeringError(f"{self.path}, {error}") from error
        except UnicodeDecodeError as error:
            raise SteeringError(f"{self.path}: not UTF-8: {error}") from error

    def _header(self) -> tuple[str, list[str]]:
        """Delimiter and columns: the suffix's delimiter, or another one under which all that are
        asked are there."""
        with self._open() as stream:
            line = _without_end(next(stream, ""))
        usual = DELIMITERS[self.path.suffix.lower()]
        others = [delimiter for delimiter in _NAMES if delimiter != usual]
        found = {delimiter: _header_cells(line, delimiter) for delimiter in (usual, *others)}
        for delimiter, names in found.items():
            if all(column in names for column in self.columns):
                if delimiter != usual:
                    self.notes.append(
                        f"cells separated by {_NAMES[delimiter]}, as its header shows"
                    )
                return delimiter, names
        best = max(found, key=lambda delimiter: len(found[delimiter]))  # the usual one of several
        missing = next(column for column in self.columns if column not in found[best])
        by = "" if best == usual else f" (separated by {_NAMES[best]})"
        raise SteeringError(
            f"{self.path}: no column {missing!r}; its columns: {', '.join(found[best]) if line else 'none'}{by}; "
            "set task.data.image_column and task.data.caption_column"
        )

    def _objection(self, width: int, place: int) -> str | None:
        """What shows that quotes in this file of tabs are only characters; None if it follows the
        rules of quoting."""
        try:
            for row, lines in self._raw("\t", True, place):
                if len(row) != width and len(lines) == 1 and lines[0].count("\t") == width - 1:
                    return f"{', '.join(row)[:40]!r} would be {len(row)} cells for {width} columns"
        except _NotQuoted as error:
            return str(error)
        return None

    def _raw(
        self, delimiter: str, quoted: bool, place: int
    ) -> Iterator[tuple[list[str], list[str]]]:
        """Cells of each row behind the header, and the lines they stand in.

        Args:
            place: of the image's cell.

        Raises:
            _NotQuoted: a row cannot be parsed, or its quotes take in other rows.
        """
        with self._open() as stream:
            lines = _Lines(stream)
            next(lines, "")
            if not quoted:
                for line in lines:
                    text = _without_end(line)
                    yield text.split(delimiter) if text else [], [line]
                return
            # strict: a stray quote is an error, instead of a caption that swallows the rows below
            # it.
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            while True:
                first, lines.taken = lines.number + 1, []
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    why = str(error).replace("'\t'", "a tab")
                    raise _NotQuoted(f"line {first}: cannot be parsed: {why}") from error
                if (
                    len(lines.taken) > 1
                ):  # a caption of several lines, or several rows between two stray quotes
                    named = [
                        number
                        for number, line in enumerate(lines.taken, first)
                        if self._is_row(line, delimiter, place)
                    ]
                    if len(named) > 1:
                        raise _NotQuoted(
                            f"line {first}: cannot be parsed: its quotes take in the row of line {named[1]}"
                        )
                yield row, lines.taken

    def _is_row(self, line: str, delimiter: str, place: int) -> bool:
        cells = _without_end(line).split(delimiter)
        return len(cells) > max(place, 1) and self.looks_like_image(cells[place].strip('"'))

    def _open(self) -> io.TextIOBase:
        return self.path.open(encoding="utf-8-sig", newline="")


class _NotQuoted(ValueError):  # noqa: N818 (what is known of the file)
    """The file does not follow the rules of quoting."""


class _Lines:
    """Lines of a stream, numbered from 1, and those that the reader has taken since it was last
    asked."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream, self.number, self.taken = stream, 0, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._stream)
        self.number += 1
        self.taken.append(line)
        return line


def _header_cells(line: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        cells = line.split(delimiter)
    return [cell.strip() for cell in cells]


def _without_end(line: str) -> str:
    return line.rstrip("\r\n")
