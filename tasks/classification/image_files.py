"""Images that are files of their own, read one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from steering.storage import sha256

from .images import Source, UnreadableError, pixels, read_picture


class FileSource(Source):
    """RGB images in files, their labels in memory.

    Args:
        root: the folder that the files are named from.
    """

    def __init__(
        self, root: Path, files: list[Path], labels: np.ndarray, classes: list[str]
    ) -> None:
        self.root, self.files, self.labels, self.classes = root, files, labels, classes
        self._changed: dict[int, list[str]] = {}

    def image(self, number: int) -> np.ndarray:
        path = self.files[number]
        try:
            picture, self._changed[number] = read_picture(path)
        # decoders meet broken bytes with many types: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            why = (
                str(error)
                if isinstance(error, UnreadableError)
                else f"cannot be read ({type(error).__name__}: {error})"
            )
            raise UnreadableError(
                f"folder {self.root}, example {number}, {path.name}: {why}"
            ) from error
        return pixels(picture)

    def changes(self, number: int) -> list[str]:
        return self._changed.get(number, [])

    def fingerprint(self) -> str:
        parts = []
        for path in self.files:
            name = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            size = path.stat().st_size if path.is_file() else -1
            parts.append(f"{name.as_posix()} {size}")
        return sha256(["folder", self.labels.tobytes(), *parts])
