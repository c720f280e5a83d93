"""Where labelled images come from: embedded digits, arrays in a file, a folder, torchvision's data
sets.

Every source has a training and a test part with the same classes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from steering.data import mix
from steering.errors import SteeringError
from steering.extras import package_folder, require
from steering.reading import Tally, report_once, user_path
from steering.storage import sha256

from ..image_folders import is_hidden_folder
from ..numbers import read_numbers
from .encoded import EncodedSource, class_numbers
from .image_files import FileSource
from .images import SUFFIXES, Source, UnreadableError
from .torchvision_sets import DatasetSource, torchvision_sets

__all__ = [
    "ArraySource",
    "DatasetSource",
    "FolderSource",
    "Source",
    "UnreadableError",
    "arrays",
    "digits",
    "folders",
    "read_numbers",
    "torchvision_sets",
]

HIDDEN, OTHER = "hidden", "with another suffix"
_JUNK_FILES = ("Thumbs.db", "desktop.ini")  # what file managers leave, beside dot files


class ArraySource(Source):
    """Images in memory, uint8, (n, h, w) or (n, h, w, c), and labels, integers (n,) or (n, 1)."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None
    ) -> None:
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            raise SteeringError(
                f"images must be uint8, (n, h, w) or (n, h, w, 1 or 3), got {images.dtype}, {images.shape}{_advice(images)}"
            )
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = class_numbers(labels, len(images))
        self.classes = (
            [str(n) for n in range(int(self.labels.max()) + 1)] if classes is None else [*classes]
        )

    def image(self, number: int) -> np.ndarray:
        return self.images[number]

    def fingerprint(self) -> str:
        return sha256(
            [
                str(self.images.shape),
                np.ascontiguousarray(self.images).tobytes(),
                self.labels.tobytes(),
            ]
        )


def _advice(images: np.ndarray) -> str:
    """How to save such images as uint8: a guess of ours would be wrong for somebody."""
    if images.dtype != np.uint8:
        if images.dtype.kind not in "iuf" or not images.size or not np.isfinite(images).all():
            return ""
        if images.min() < 0:
            return "; some values are negative: undo the normalisation"
        if images.max() <= 1:
            return "; the values lie in [0, 1]: save (255 * image).round().astype('uint8')"
        return (
            "; save image.round().astype('uint8')"
            if images.max() <= 255
            else "; save (image >> 8).astype('uint8')"
        )
    if images.ndim == 4 and images.shape[1] in (1, 3):
        return "; move the channels to the end: image.transpose(0, 2, 3, 1)"
    return (
        "; drop the transparency: image[..., :3]"
        if images.ndim == 4 and images.shape[3] == 4
        else ""
    )


class FolderSource(FileSource):
    """A folder with a sub-folder of images for each class, in alphabetical order; every image is
    RGB.

    Hidden files and folders and what unpackers leave behind are no data. They and files with
    another suffix are counted.

    Args:
        folder: where the classes' folders lie.
        key: the config key that named it, for messages.

    Raises:
        SteeringError: no such folder, no classes, or a class without images.
    """

    def __init__(self, folder: str, key: str) -> None:
        root, self.read = user_path(folder), Tally()
        try:
            entries = sorted(os.scandir(root), key=lambda entry: entry.name)
            names = [entry.name for entry in entries if entry.is_dir()]
            self.read.left_out.update(HIDDEN for name in names if _hidden(name))
            classes = [name for name in names if not _hidden(name)]
            found = [self._images(root / name) for name in classes]
        except OSError as error:
            raise SteeringError(
                f"{key}: {folder} has no folders of images, one per class: {error}"
            ) from error
        if not classes:
            beside = [
                entry.name for entry in entries if Path(entry.name).suffix.lower() in SUFFIXES
            ]
            hint = f"; {len(beside)} images lie in it directly" if beside else ""
            raise SteeringError(f"{key}: {folder} has no folders of images, one per class{hint}")
        if empty := [name for name, files in zip(classes, found, strict=True) if not files]:
            raise SteeringError(
                f"{key}: {folder} has no image for class {', '.join(empty)}; looked for {', '.join(SUFFIXES)}"
            )
        labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
        super().__init__(root, [path for files in found for path in files], labels, classes)
        self.read.read = len(self.files)
        self.read.report(f"task.data.{key}", "images", str(folder))

    def _images(self, folder: Path) -> list[Path]:
        kept: list[Path] = []
        for where, folders, files in sorted(_walked(folder)):
            self.read.left_out.update(HIDDEN for name in folders if _hidden(name))
            for name in sorted(files):
                if _hidden(name):
                    self.read.left_out[HIDDEN] += 1
                elif Path(name).suffix.lower() in SUFFIXES:
                    kept.append(Path(where, name))
                else:
                    self.read.left_out[OTHER] += 1
        return kept


def _hidden(name: str) -> bool:
    return is_hidden_folder(name) or name in _JUNK_FILES


def _walked(folder: Path) -> list[tuple[str, list[str], list[str]]]:
    """Folder, names of its folders, names of its files, for it and all below that are not hidden;
    links are followed."""
    found = []
    for where, folders, files in os.walk(folder, followlinks=True):
        found.append((where, [*folders], files))
        folders[:] = [
            name for name in folders if not _hidden(name)
        ]  # os.walk looks into those that are left
    return found


def digits() -> tuple[ArraySource, ArraySource]:
    """scikit-learn's 1,797 handwritten digits, 8×8; a third is the test part, by a fixed hash."""
    grey, labels = _scikit_digits()
    images = (grey * (255 / 16)).round().astype(np.uint8)
    test = mix(20, np.arange(len(images))) % np.uint64(3) == 0
    return (
        ArraySource(images[~test], labels[~test], [str(n) for n in range(10)]),
        ArraySource(images[test], labels[test], [str(n) for n in range(10)]),
    )


def _scikit_digits() -> tuple[np.ndarray, np.ndarray]:
    """Images, (1797, 8, 8), 0 to 16, and labels, (1797,).

    scikit-learn takes a second to import, with SciPy and pandas, so its file is read without it.
    """
    by = "task.data.source: digits"
    file = package_folder("vision", "sklearn", by) / "datasets/data/digits.csv.gz"
    if not file.is_file():  # a version that keeps it elsewhere
        found = require("vision", "sklearn.datasets", by).load_digits()
        return found.images, found.target
    table = np.loadtxt(file, delimiter=",")  # (1797, 65): the pixels, then the label
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def arrays(path: str, test_path: str) -> tuple[Source, Source]:
    """Two `.npz` files with "label", integers (n,) or (n, 1), and "image", uint8 (n, h, w[, c]), or
    "jpeg" and "offset" (`EncodedSource`)."""
    train, test = _array_source("path", path), _array_source("test_path", test_path)
    names = max(train.classes, test.classes, key=len)
    train.classes = test.classes = names
    return train, test


def _array_source(key: str, file: str) -> ArraySource | EncodedSource:
    try:
        with user_path(file).open("rb") as stream:  # NumPy leaves a damaged one open
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                raise ValueError("it holds a single array")
            encoded = "image" not in found.files and "jpeg" in found.files
            needed = ("jpeg", "offset", "label") if encoded else ("image", "label")
            if missing := [name for name in needed if name not in found.files]:
                raise KeyError(
                    f"no {' and '.join(map(repr, missing))}; it has {', '.join(found.files) or 'nothing'}"
                )
            parts = [found[name] for name in needed]
    except Exception as error:  # a damaged zip file fails in as many ways as a damaged picture
        why = error.args[0] if isinstance(error, KeyError) else error
        raise SteeringError(f"{key}: {file} is no .npz with 'image' and 'label': {why}") from error
    try:
        return EncodedSource(*parts) if encoded else ArraySource(*parts)
    except SteeringError as error:
        raise SteeringError(f"{key}: {file}: {error}") from error


def folders(path: str, test_path: str) -> tuple[Source, Source]:
    """Two folders with a sub-folder of images for each class."""
    train, test = FolderSource(path, "path"), FolderSource(test_path, "test_path")
    if train.classes != test.classes:
        wrong = sorted({*train.classes} ^ {*test.classes})
        here = [name for name in wrong if name in train.classes] or ["none"]
        raise SteeringError(
            f"test_path: {test_path} and {path} have other classes: {', '.join(wrong)}; only in {path}: {', '.join(here)}"
        )
    return train, test


def report_changes(source: Source, numbers: np.ndarray, left_out: int, place: str) -> None:
    """One line behind a pass over a part: how many images it read, left out and changed; silent if
    all were as they stand."""
    tally = Tally(len(numbers) - left_out, Counter({"unreadable": left_out} if left_out else {}))
    for number in numbers.tolist():
        tally.changed.update(source.changes(number))
    if tally.left_out or tally.changed:
        report_once(tally.line("images", place))
