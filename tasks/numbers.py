"""Files of numbers, one for each example: labels, groups, scores."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from steering.errors import SteeringError
from steering.reading import user_path

_TORCH = (".pt", ".pth")
_ARRAYS = (".npz", ".npy", *_TORCH)


def read_numbers(file: str, key: str) -> np.ndarray:
    """Integers ≥ 0, int64, (n,), of "FILE.npy", "FILE.npz:KEY", "FILE.pt:KEY" (as CIFAR-10N is
    published), or text of one a line.

    A KEY is needed where there are several entries. Only a colon behind .npz, .pt, .pth or .npy
    starts one: folders with a time of day and drive letters stay whole.

    Raises:
        SteeringError: cannot be read, or something in it is no number ≥ 0; the message starts with
            `key`.
    """
    found = _read(file, key, _whole)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "iu":
        hint = "; it looks one-hot: save its argmax(1)" if found.ndim == 2 else ""
        raise SteeringError(
            f"{key}: expected one integer per example in {file}, got {found.dtype}, {found.shape}{hint}"
        )
    if (found < 0).any():
        place = int((found < 0).argmax())
        raise SteeringError(
            f"{key}: expected numbers >= 0 in {file}, got {found[place]} for example {place}"
        )
    return found.astype(np.int64)


def read_scores(file: str, key: str) -> np.ndarray:
    """Finite numbers, float64, (n,), from the same kinds of file.

    Raises:
        SteeringError: as `read_numbers`, or one is not finite.
    """
    found = _read(file, key, _score)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "iuf":
        raise SteeringError(
            f"{key}: expected one number per example in {file}, got {found.dtype}, {found.shape}"
        )
    if not np.isfinite(found).all():
        place = int((~np.isfinite(found)).argmax())
        raise SteeringError(
            f"{key}: expected finite numbers in {file}, got {found[place]} for example {place}"
        )
    return found.astype(np.float64)


def _read(file: str, key: str, number: Callable[[str], float]) -> np.ndarray:
    """The array of a file; `number` reads one of a line of text, or raises ValueError."""
    path, entry = _split(file)
    try:
        if not path.name.lower().endswith(_ARRAYS):
            return _lines(path, number)
        return _entry(_opened(path), entry, path)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else str(error).partition("\n")[0]
        )
        raise SteeringError(f"{key}: cannot read numbers from {file}: {reason}") from error


def _split(file: str) -> tuple[Path, str | None]:
    """Path and KEY of "PATH:KEY"; a file of the whole name comes first, then the longest path that
    is there."""
    whole = user_path(file)
    if whole.is_file():
        return whole, None
    colons = [place for place in range(len(file) - 1, 0, -1) if file[place] == ":"]
    choices = [(user_path(file[:place]), file[place + 1 :]) for place in colons]
    choices = [
        (path, entry) for path, entry in choices if entry and path.name.lower().endswith(_ARRAYS)
    ]
    return next(
        ((path, entry) for path, entry in choices if path.is_file()),
        choices[0] if choices else (whole, None),
    )


def _whole(text: str) -> int:
    if not re.fullmatch(r"\+?[0-9]{1,18}", text):
        raise ValueError(f"expected an integer >= 0, got {text[:40]!r}")
    return int(text)


def _score(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text[:40]!r}") from None


def _lines(path: Path, number: Callable[[str], float]) -> np.ndarray:
    """One number a line; blank lines may stand at the end alone, as anything else would shift the
    numbers behind it."""
    lines = path.read_bytes().decode("utf-8-sig").rstrip().split("\n")
    if lines == [""]:
        raise ValueError("it is empty")
    found = []
    for place, line in enumerate(lines, 1):
        try:
            found.append(number(line.strip()))
        except ValueError as error:
            raise ValueError(f"line {place}: {error}") from None
    return np.array(found)


def _opened(path: Path) -> Any:
    """An array, or a mapping of arrays; no code in the file is run."""
    if path.name.lower().endswith(_TORCH):
        return _torch_load(path)
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged one open
            loaded = np.load(file, allow_pickle=False)
            return (
                loaded
                if isinstance(loaded, np.ndarray)
                else {name: loaded[name] for name in loaded.files}
            )
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                "it is a pickle, which could run code; save the array alone, or as .npz or .pt"
            ) from error
        raise


def _entry(found: Any, entry: str | None, path: Path) -> np.ndarray:
    if not isinstance(found, dict):
        if entry is not None:
            raise ValueError(f"it holds one array and no entries; leave out :{entry}")
        return np.asarray(found)
    names = ", ".join(map(str, found)) or "none"
    if entry is None and len(found) != 1:
        raise ValueError(f"name one of its entries, as {path.name}:KEY; it has {names}")
    if entry is not None and entry not in found:
        raise ValueError(f"it has no entry {entry!r}; it has {names}")
    return np.asarray(found[entry] if entry is not None else next(iter(found.values())))


def _torch_load(path: Path) -> Any:
    """What torch saved: an array or a dict of NumPy arrays, read without running code from it."""
    import torch

    dtypes = [
        type(np.dtype(kind))
        for kind in ("int64", "int32", "int16", "int8", "uint8", "float64", "float32")
    ]
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    old_name = "numpy.core.multiarray._reconstruct"
    allowed: list[Any] = [np.ndarray, np.dtype, *dtypes, rebuild, (rebuild, old_name)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(f"holds more than arrays: {str(error).splitlines()[0]}") from error
