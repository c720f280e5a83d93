"""Documents by domain: Python's own standard library, plain text, JSONL, Parquet, Hugging Face data sets on disk."""

from __future__ import annotations

import glob
import json
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from steering.data import mix
from steering.errors import SteeringError
from steering.storage import sha256

STDLIB = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")
"""Packages of the standard library that every distribution of Python brings, of some 10 to 30 files each."""

Domains = Mapping[str, list[str]]


def stdlib(modules: tuple[str, ...] = STDLIB) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Source files of the standard library's packages, training and validation documents by package.

    Every file is a document; about a tenth, chosen by a hash of the name, and at least one is for validation. Which Python
    it is decides the text, so runs on other versions of Python are other runs.

    Raises:
        SteeringError: a package is not there.
    """
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for name in modules:
        folder = Path(sysconfig.get_paths()["stdlib"]) / name
        files = sorted(path for path in folder.rglob("*.py") if "test" not in path.relative_to(folder).parts)
        if len(files) < 2:
            raise SteeringError(f"task.data.domains: the standard library has no package {name!r} with two files")
        places = [int(sha256([str(path.relative_to(folder))])[:8], 16) % 10 for path in files]
        held_out = {number for number, place in enumerate(places) if place == 0} or {len(files) // 2}
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
        train[name] = [text for number, text in enumerate(texts) if number not in held_out and text]
        validation[name] = [text for number, text in enumerate(texts) if number in held_out and text]
    return train, validation


def read_domains(paths: Mapping[str, str], column: str, separator: str | None, key: str) -> dict[str, list[str]]:
    """Documents of each domain.

    Args:
        paths: domain -> file, glob, or folder of a Hugging Face data set (`save_to_disk`). By suffix: .jsonl (one object a
            line), .parquet, all others plain text.
        column: of JSONL, Parquet and data sets.
        separator: between the documents of a text file; None: a file is one.
        key: the config's, for messages.

    Raises:
        SteeringError: nothing there, unreadable, or no documents.
    """
    found = {}
    for domain, path in paths.items():
        try:
            documents = [text for text in _documents(path, column, separator) if text]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SteeringError(f"{key}.{domain}: cannot read {path}: {error}") from error
        if not documents:
            raise SteeringError(f"{key}.{domain}: no documents in {path}")
        found[domain] = documents
    return found


def _documents(path: str, column: str, separator: str | None) -> Iterator[str]:
    if (Path(path) / "dataset_info.json").is_file() or (Path(path) / "state.json").is_file():
        yield from _column(_datasets().load_from_disk(path), column)
        return
    files = [Path(file) for file in sorted(glob.glob(path))]
    if not files:
        raise FileNotFoundError("no such file")
    for file in files:
        if file.suffix == ".jsonl":
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                if line.strip():
                    yield _entry(json.loads(line), column, f"{file}, line {number}")
        elif file.suffix == ".parquet":
            yield from _column(_datasets().Dataset.from_parquet(str(file)), column)
        else:
            text = file.read_text(encoding="utf-8", errors="replace")
            yield from [text] if separator is None else text.split(separator)


def _entry(row: object, column: str, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get(column), str):
        raise ValueError(f"{where} has no text {column!r}")
    return row[column]


def _column(dataset: object, column: str) -> list[str]:
    names = dataset.column_names  # type: ignore[attr-defined]
    if column not in names:
        raise ValueError(f"no column {column!r}; there are {', '.join(map(str, names))}")
    return [str(text) for text in dataset[column]]  # type: ignore[index]


def _datasets():  # type: ignore[no-untyped-def]
    try:
        import datasets
    except ImportError as error:
        raise SteeringError(
            "Parquet and data sets on disk need datasets: pip install 'model-steering[data]'"
        ) from error
    return datasets


def held_out(domains: Domains, share: float) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Split documents into training and validation by a fixed hash of their number; both parts get at least one.

    Raises:
        SteeringError: a domain has a single document.
    """
    train: dict[str, list[str]] = {}
    validation: dict[str, list[str]] = {}
    for name, texts in domains.items():
        if len(texts) < 2:
            raise SteeringError(f"task.data.validation: domain {name} has one document; name its validation text")
        order = np.argsort(mix(30, np.arange(len(texts))), kind="stable")
        count = min(max(1, round(share * len(texts))), len(texts) - 1)
        chosen = {*order[:count].tolist()}
        train[name] = [text for number, text in enumerate(texts) if number not in chosen]
        validation[name] = [text for number, text in enumerate(texts) if number in chosen]
    return train, validation
