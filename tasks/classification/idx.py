"""MNIST and its relatives as they are published: idx files, packed (.gz) or not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from steering.errors import SteeringError
from steering.reading import user_path

from .sources import ArraySource

_BYTES = 0x08  # the code of unsigned bytes in an idx file's head


def mnist(folder: str, key: str) -> tuple[ArraySource, ArraySource]:
    """The training and the test part of a folder that has train-images-idx3-ubyte and the others
    somewhere below it.

    Raises:
        SteeringError: one is missing or is no such file; the message starts with `key`.
    """
    root = user_path(folder)
    train, test = (
        ArraySource(
            _array(root, f"{part}-images-idx3-ubyte", key),
            _array(root, f"{part}-labels-idx1-ubyte", key),
            [str(n) for n in range(10)],
        )
        for part in ("train", "t10k")
    )
    return train, test


def _array(root: Path, name: str, key: str) -> np.ndarray:
    """An idx file: two zeros, the type, the number of axes, the length of each (big-endian), the
    values."""
    places = sorted(path for path in root.rglob(f"{name}*") if path.name in (name, f"{name}.gz"))
    if not places:
        raise SteeringError(f"{key}: no {name} or {name}.gz below {root}")
    path = places[0]
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, axes = data[2], data[3]
        shape = np.frombuffer(data, ">u4", count=axes, offset=4)
        if data[:2] != b"\0\0" or kind != _BYTES:
            raise ValueError("it is no idx file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise SteeringError(f"{key}: cannot read {path}: {error}") from error
