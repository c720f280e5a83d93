"""The files that a config's values point to, and their sizes and times: tells in a moment whether
data may have changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from steering.reading import user_path

MANY = 20_000  # files of one folder or pattern that are looked at


def sources_of(values: Any) -> dict[str, list[int]]:
    """Path -> [bytes, mtime in ns] of every file that a text among nested plain values names.

    A text may be a file, a folder (its files count), a glob, {000..010} or several joined by "::";
    others name no file.
    """
    found: dict[str, list[int]] = {}
    for text in _texts(values):
        for path in _files(text):
            status = path.stat()
            found[str(path)] = [status.st_size, status.st_mtime_ns]
    return found


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        values = values.values()
    if isinstance(values, str):
        yield values
    elif not isinstance(values, str | bytes) and hasattr(values, "__iter__"):
        for value in values:
            yield from _texts(value)


def _files(text: str) -> Iterator[Path]:
    if not text or len(text) > 4096 or "\0" in text or "\n" in text:
        return
    for part in text.split("::"):
        for one in _spelled_out(part):
            try:
                places = (
                    [user_path(name) for name in sorted(glob(str(user_path(one))))[:MANY]]
                    if has_magic(one)
                    else []
                )
                yield from _below(places or [user_path(one)])
            except (OSError, ValueError, RuntimeError):  # a name that no file can have
                continue
    file, colon, _ = text.rpartition(":")  # FILE.npz:KEY, file.py:name
    if colon and Path(file).suffix in (".npz", ".pt", ".py") and user_path(file).is_file():
        yield user_path(file)


def _below(places: list[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_file():
            yield place
        elif place.is_dir() and place != place.parent:
            for number, path in enumerate(sorted(place.rglob("*"))):
                if number >= MANY:
                    break
                if path.is_file():
                    yield path


def _spelled_out(text: str) -> list[str]:
    """x{08..10} as x08, x09, x10; a text without such braces as it is."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if match is None:
        return [text]
    low, high = match[1], match[2]
    numbers = range(int(low), min(int(high), int(low) + MANY) + 1)
    return [
        one
        for n in numbers
        for one in _spelled_out(f"{text[: match.start()]}{n:0{len(low)}d}{text[match.end() :]}")
    ]
