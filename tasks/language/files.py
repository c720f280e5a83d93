"""One file of documents: found by the path that people write, unpacked, decoded, and refused when
it is no text."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from steering.extras import require
from steering.reading import Tally, in_words, user_path

from .decoding import MARK, PACKED, decoded, universal
from .tokens import whole

_LINES = (".jsonl", ".ndjson", ".jsonlines")
_OTHERS = {
    **dict.fromkeys((".csv", ".tsv"), "is a table; write it as .jsonl or .parquet"),
    **dict.fromkeys(
        (".arrow", ".feather"),
        "is an Arrow file; name the folder of `save_to_disk`, or write it as .parquet",
    ),
}
_KNOWN = {*PACKED, *_LINES, *_OTHERS, ".json", ".parquet"}
_PLAIN = (".txt", ".text", ".md", ".rst")
_HALF = re.compile("[\ud800-\udfff]")


def find(path: str, tally: Tally) -> list[Path]:
    """What a path names: itself if it exists, else what its glob matches, each file once, in the
    order of the names.

    The leading folders that exist are taken as they stand, so brackets in their names are no glob.
    `**` stands for any number of folders. Hidden files that match and files that are there under
    two names are counted as left out.

    Raises:
        OSError: nothing there.
    """
    named = user_path(path)
    if os.path.lexists(named):
        return [named]
    literal, rest = Path(), [*named.parts]
    while rest and os.path.lexists(literal / rest[0]):
        literal /= rest.pop(0)
    pattern = os.path.join(glob.escape(str(literal)), *rest)
    matched = sorted(glob.glob(pattern, recursive=True))
    hidden = {*glob.glob(pattern, recursive=True, include_hidden=True)} - {*matched}
    _count(tally, "hidden file(s)", sum(os.path.isfile(file) for file in hidden))
    found = {os.path.realpath(file): Path(file) for file in reversed(matched)}
    _count(tally, "file(s) under a second name", len(matched) - len(found))
    if not found:
        raise FileNotFoundError(
            "no such file" + (f"; hidden: {in_words(tally.left_out)}" if tally.left_out else "")
        )
    return sorted(found.values(), key=str)


def _count(tally: Tally, reason: str, number: int) -> None:
    if number:
        tally.left_out[reason] += number


def of_file(file: Path, column: str, separator: str | None, tally: Tally) -> Iterator[str]:
    """The documents of a file, by its suffix; what is left out and changed is counted.

    Raises:
        ValueError, OSError, ...: it is not what its suffix says, or holds something else than
            texts.
    """
    kind, packed = _kind(file)
    if kind == ".parquet":
        yield from _column(_parquet(file, column), column, tally)
        return
    text = decoded(file, packed)
    if kind in _LINES:
        yield from _lines(text, column, tally)
    elif kind == ".json":
        yield from _json(text, column, tally)
    else:
        text = universal(text)
        parts = [text] if separator is None else text.split(separator)
        if len(parts) > 1 and not parts[-1]:
            parts.pop()  # the separator behind the last document
        yield from (kept for part in parts if (kept := taken(part, tally)) is not None)


def _kind(file: Path) -> tuple[str, str]:
    """Suffix that says what the content is, and the suffix of a compression or ""."""
    suffixes = [suffix.lower() for suffix in file.suffixes] or [""]
    packed = suffixes.pop() if suffixes[-1] in PACKED else ""
    kind = suffixes[-1] if suffixes else ""
    if kind in _OTHERS:
        raise ValueError(_OTHERS[kind])
    if kind == ".parquet" and packed:
        raise ValueError("is Parquet inside another compression; unpack it")
    behind = next((suffix for suffix in suffixes[:-1] if suffix in _KNOWN), None)
    if behind and kind not in (*_KNOWN, *_PLAIN):
        raise ValueError(f"ends in {kind} behind {behind}; rename it by what it is")
    return kind, packed


def taken(value: object, tally: Tally, where: str = "") -> str | None:
    """A document, counted; None for a null or an empty text, counted as left out.

    Raises:
        ValueError: no text.
    """
    if value is None or value == "":
        tally.left_out["null" if value is None else "empty"] += 1
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where} is of type {type(value).__name__}, expected a text")
    tally.read += 1
    if _HALF.search(value):
        tally.changed[
            "with undecodable bytes" if MARK in value and not where else "with half surrogates"
        ] += 1
    return whole(value)


def _lines(text: str, column: str, tally: Tally) -> Iterator[str]:
    """JSON lines. A line ends at \\n alone: other separators of lines may stand inside a JSON
    string."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r\ufeff")  # a byte order mark where files were joined
        if not line:
            continue
        if MARK in line:
            raise ValueError(f"line {number} is not UTF-8")
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {number} is no JSON: {error.msg}, column {error.colno}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        yield from _entry(row, column, f"line {number}", tally)


def _json(text: str, column: str, tally: Tally) -> Iterator[str]:
    """A list of objects or texts, one object, or JSON lines under another suffix (C4's
    .json.gz)."""
    if not text.strip():
        return
    if MARK in text:
        raise ValueError(f"line {text[: text.index(MARK)].count(chr(10)) + 1} is not UTF-8")
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise ValueError(f"is no JSON: {error}") from error
        yield from _lines(text, column, tally)
        return
    except RecursionError as error:
        raise ValueError(f"is no JSON: {error}") from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield from _entry(row, column, f"entry {number}", tally)


def _entry(row: object, column: str, where: str, tally: Tally) -> Iterator[str]:
    """The text of an object under `column`, or a text or null that stands for itself."""
    if isinstance(row, dict):
        if column not in row:
            keys = ", ".join(map(repr, [*row][:8])) or "none"
            raise ValueError(f"{where} has no text {column!r}; its keys: {keys}")
        row, where = row[column], f"{where}: {column!r}"
    elif not (row is None or isinstance(row, str)):
        raise ValueError(
            f"{where} is of type {type(row).__name__}, expected an object with a text {column!r}"
        )
    if (kept := taken(row, tally, where)) is not None:
        yield kept


def _column(rows: Iterator[object], column: str, tally: Tally) -> Iterator[str]:
    for number, value in enumerate(rows, 1):
        if (kept := taken(value, tally, f"row {number}: {column!r}")) is not None:
            yield kept


def _parquet(file: Path, column: str) -> Iterator[object]:
    table = needed("pyarrow.parquet").ParquetFile(file)
    _require(column, table.schema_arrow.names)
    for batch in table.iter_batches(columns=[column]):
        yield from batch.column(0).to_pylist()


def data_set(folder: Path, column: str, tally: Tally) -> Iterator[str]:
    """The documents of a folder of `Dataset.save_to_disk`; the format that was set when it was
    saved plays no part."""
    dataset = needed("datasets").load_from_disk(str(folder)).with_format(None)
    _require(column, dataset.column_names)
    yield from _column(iter(dataset[column]), column, tally)


def _require(column: str, names: list[str]) -> None:
    if column not in names:
        raise ValueError(f"no column {column!r}; there are {', '.join(map(str, names))}")


def needed(module: str) -> ModuleType:
    """A module of the extra `data`."""
    return require("data", module, "task.data.paths: Parquet, or a data set on disk,")


def folder_hint(folder: Path) -> str:
    """What to write for a folder that is neither a file nor a data set."""
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return f"a data set with the splits {', '.join(splits)}; name one, such as {folder / splits[0]}"
    files = [
        file
        for file in (*folder.glob("*"), *folder.glob("*/*"))
        if file.is_file() and file.name[0] != "."
    ]
    for kind in (".parquet", *_LINES, ".json", *_PLAIN):
        for file in sorted(files, key=lambda file: (len(file.parts), str(file))):
            known = [suffix for suffix in file.suffixes if suffix.lower() in {*_KNOWN, *_PLAIN}]
            if known and known[0].lower() == kind and file.stem not in ("README", "dataset_infos"):
                split = re.match(r"[a-zA-Z_]+-(?=\d{5}-of-\d{5}\.)", file.name)
                name = f"{split[0] if split else ''}*{''.join(known)}"
                return f"is a folder; write {file.parent / name}, or name another file or glob"
    return "is a folder; expected a file, a glob, or a folder of a data set (`save_to_disk`)"
