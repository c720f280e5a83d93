"""Folders of images with a sub-folder for each class, and the names that no user gave: those of
hidden files and folders."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from steering.errors import SteeringError
from steering.extras import require
from steering.reading import Tally, user_path

from .pictures import SUFFIXES

# What macOS, Windows, Synology, Python and ext4 put beside the data.
_JUNK = {
    "__MACOSX",
    "__pycache__",
    "$RECYCLE.BIN",
    "System Volume Information",
    "@eaDir",
    "lost+found",
}


def is_hidden_file(name: str) -> bool:
    """A file name that starts with a dot, such as macOS's `._0.png`, which has the suffix of an
    image and is none."""
    return name.startswith(".")


def is_junk_folder(name: str) -> bool:
    """A folder of a program's own. Not every name with a dot: the path to the data may well lead
    through one."""
    return name in _JUNK or name == ".ipynb_checkpoints"


def is_hidden_folder(name: str) -> bool:
    """A folder that is no class: hidden, or a program's own."""
    return name.startswith(".") or is_junk_folder(name)


def _is_image(name: str) -> bool:
    return not is_hidden_file(name) and Path(name).suffix[1:].lower() in SUFFIXES


@dataclass(frozen=True)
class ClassImages:
    """What a folder holds.

    Attributes:
        classes: names of the sub-folders, in alphabetical order.
        files: n images, class by class, in alphabetical order.
        labels: class number of each, int64 (n,).
        tally: how many images, and what was left out.
    """

    classes: list[str]
    files: list[Path]
    labels: np.ndarray
    tally: Tally


def class_images(folder: Path | str, key: str) -> ClassImages:
    """List the images of a folder with a sub-folder for each class; none is opened.

    Args:
        key: of the config, at the start of messages.

    Raises:
        SteeringError: no such folder, no class in it, or a class without images.
    """
    # Here, as it takes seconds, and a name can be judged without.
    library = require("vision", "torchvision.datasets.folder", key)
    root = user_path(folder)
    left_out: Counter[str] = Counter()
    if root.is_file():
        raise SteeringError(
            f"{key}: {root} is a file; expected a folder with one sub-folder of images for each class"
        )

    class Listing(library.DatasetFolder):  # type: ignore[name-defined]
        """torchvision's, without the hidden."""

        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            entries = list(os.scandir(directory))
            names = sorted(entry.name for entry in entries if entry.is_dir())
            loose = sum(entry.is_file() and _is_image(entry.name) for entry in entries)
            left_out.update({"image outside the class folders": loose} if loose else {})
            classes = [name for name in names if not is_hidden_folder(name)]
            left_out.update(f"hidden folder ({name})" for name in names if is_hidden_folder(name))
            if not classes:
                raise FileNotFoundError(f"found no class folder in {directory}")
            return classes, {name: number for number, name in enumerate(classes)}

    def takes(path: str) -> bool:
        *folders, name = Path(path).relative_to(root).parts
        why = None
        if is_hidden_file(name) or any(map(is_hidden_folder, folders)):
            why = "hidden file"
        elif not _is_image(name):
            why = "no image by its suffix"
        left_out.update([why] if why else [])
        return why is None

    try:
        found = Listing(str(root), library.default_loader, is_valid_file=takes)
    except OSError as error:
        raise SteeringError(f"{key}: {error}; images are known by {', '.join(SUFFIXES)}") from error
    labels = np.array([label for _, label in found.samples], dtype=np.int64)
    files = [Path(path) for path, _ in found.samples]
    return ClassImages(found.classes, files, labels, Tally(len(files), left_out))
