"""Documents by domain: Python's own standard library, plain text, JSON, Parquet, Hugging Face data
sets on disk."""

from __future__ import annotations

import lzma
import sysconfig
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from steering.data import mix
from steering.errors import SteeringError
from steering.reading import Tally, in_words, report_once
from steering.storage import sha256

from .decoding import decoded, universal
from .files import data_set, find, folder_hint, of_file, taken

STDLIB = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
"""Packages of the standard library that every distribution of Python brings, of some 10 to 30 files
each."""

Domains = Mapping[str, list[str]]

# What the readers of the formats raise, of the standard library, pyarrow and datasets.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, ImportError, NotImplementedError),
    *(zlib.error, lzma.LZMAError),
)


def stdlib(modules: tuple[str, ...] = STDLIB) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Source files of the standard library's packages, training and validation documents by
    package.

    Every file is a document; about a tenth, chosen by a hash of the name, and at least one is for
    validation. Which Python it is decides the text, so runs on other versions of Python are other
    runs.

    Raises:
        SteeringError: a package is not there, or has no text.
    """
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for name in modules:
        folder = Path(sysconfig.get_paths()["stdlib"]) / name
        files = sorted(
            path for path in folder.rglob("*.py") if "test" not in path.relative_to(folder).parts
        )
        if len(files) < 2:
            raise SteeringError(
                f"task.data.modules: the standard library has no package {name!r} with two files"
            )
        places = [int(sha256([str(path.relative_to(folder))])[:8], 16) % 10 for path in files]
        held_out = {number for number, place in enumerate(places) if place == 0} or {
            len(files) // 2
        }
        tally = Tally()
        try:
            texts = [taken(universal(decoded(path)), tally) for path in files]
        except _UNREADABLE as error:
            raise SteeringError(
                f"task.data.modules: cannot read the sources of {name}: {_line(error)}"
            ) from error
        train[name] = [text for number, text in enumerate(texts) if number not in held_out and text]
        validation[name] = [
            text for number, text in enumerate(texts) if number in held_out and text
        ]
        if not train[name] or not validation[name]:
            raise SteeringError(
                f"task.data.modules: {name} has no text for {'validation' if train[name] else 'training'}"
            )
        tally.report("task.data.modules", "documents", f"the standard library's {name}")
    return train, validation


def read_domains(
    paths: Mapping[str, str], column: str, separator: str | None, key: str
) -> dict[str, list[str]]:
    """Documents of each domain; a line in the log for each says what was read, left out and
    changed.

    A null and an empty text are left out. Half of a surrogate pair and undecodable bytes of plain
    text become U+FFFD.

    Args:
        paths: domain -> file, glob, or folder of a Hugging Face data set (`save_to_disk`). By
            suffix: .jsonl (.ndjson, .jsonlines; one object a line), .json (a list of objects or
            texts), .parquet, all others plain text; all but Parquet also with .gz, .bz2, .xz or
            .zst behind it.
        column: of JSON, Parquet and data sets.
        separator: between the documents of a text file; None: a file is one.
        key: the config's, for messages.

    Raises:
        SteeringError: nothing there, unreadable, no text, something else than texts in the column,
            or no documents.
    """
    found = {}
    for domain, path in paths.items():
        tally, files = Tally(), 0
        documents: list[str] = []
        try:
            for file in _found(path, tally):
                path_now, files = file, files + 1
                read = (
                    data_set(file, column, tally)
                    if file.is_dir()
                    else of_file(file, column, separator, tally)
                )
                documents += read
        except _UNREADABLE as error:
            place = path_now if files else path
            raise SteeringError(f"{key}.{domain}: cannot read {place}: {_line(error)}") from error
        place = path if files < 2 else f"{path} ({files:,} files)"
        if not documents:
            raise SteeringError(
                f"{key}.{domain}: no documents in {place}; skipped: {in_words(tally.left_out)}"
            )
        tally.report(f"{key}.{domain}", "documents", place)
        found[domain] = documents
    say_shared({f"{key}.{domain}": path for domain, path in paths.items()})
    return found


def _found(path: str, tally: Tally) -> list[Path]:
    """Files and data sets under a path; other folders that a glob matches are counted as left
    out."""
    found = find(path, tally)
    folders = {file for file in found if file.is_dir() and not _is_data_set(file)}
    for folder in folders:
        if len(folders) == len(found) or (folder / "dataset_dict.json").is_file():
            raise IsADirectoryError(folder_hint(folder))
    if folders and "**" not in path:  # which goes into them
        tally.left_out["folder(s)"] += len(folders)
    return [file for file in found if file not in folders]


def _is_data_set(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() or (folder / "state.json").is_file()


def _line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def say_shared(places: Mapping[str, str]) -> None:
    """Warn of files that two keys name, such as two domains, or training and validation."""
    seen: dict[Path, str] = {}
    shared: dict[tuple[str, str], list[Path]] = {}
    for key, path in places.items():
        for file in find(path, Tally()):
            first = seen.setdefault(file.resolve(), key)
            if first != key:
                shared.setdefault((first, key), []).append(file)
    for (first, key), files in shared.items():
        more = f" and {len(files) - 1:,} more files" if len(files) > 1 else ""
        report_once(f"{first} and {key} both read {files[0]}{more}")


def held_out(domains: Domains, share: float) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split documents into training and validation by a fixed hash of their number; both parts get
    at least one.

    Raises:
        SteeringError: a domain has a single document.
    """
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for name, texts in domains.items():
        if len(texts) < 2:
            raise SteeringError(
                f"task.data.validation: domain {name} has one document; name its validation text"
            )
        order = np.argsort(mix(30, np.arange(len(texts))), kind="stable")
        count = min(max(1, round(share * len(texts))), len(texts) - 1)
        chosen = {*order[:count].tolist()}
        train[name] = [text for number, text in enumerate(texts) if number not in chosen]
        validation[name] = [text for number, text in enumerate(texts) if number in chosen]
    return train, validation


def split_documents(
    domains: Domains, share: float, seed: int, key: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """A share of each domain's documents, drawn at random by the seed, and the others in their
    order; both parts get at least one.

    Args:
        key: the config's, for messages.

    Raises:
        SteeringError: a domain has a single document.
    """
    drawn: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for number, (name, texts) in enumerate(domains.items()):
        if len(texts) < 2:
            raise SteeringError(f"{key}: domain {name} has one document, which cannot be split")
        order = np.argsort(mix(31, seed, number, np.arange(len(texts))), kind="stable")
        count = min(max(1, round(share * len(texts))), len(texts) - 1)
        chosen = {*order[:count].tolist()}
        drawn[name] = [text for place, text in enumerate(texts) if place in chosen]
        others[name] = [text for place, text in enumerate(texts) if place not in chosen]
    return drawn, others
