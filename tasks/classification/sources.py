"""Where labelled images come from: embedded digits, arrays in a file, a folder, torchvision's data sets.

A source has n images, uint8 arrays (h, w, c) with 1 or 3 channels, and n class numbers. Every source has a training and a
test part with the same classes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from PIL import Image
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader

from steering.data import mix
from steering.errors import SteeringError
from steering.storage import sha256
from tasks.pictures import decode, normal, rgb


class UnreadableError(Exception):
    """One image cannot be decoded."""


class Source(ABC):
    """n labelled images.

    Attributes:
        labels: class numbers, int64, (n,).
        classes: name of each class.
    """

    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8, (h, w, c); raises UnreadableError."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of images and labels."""


class ArraySource(Source):
    """Images in memory, uint8, (n, h, w) or (n, h, w, c)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None = None) -> None:
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            raise SteeringError(
                f"images must be uint8, (n, h, w) or (n, h, w, 1 or 3), got {images.dtype}, {images.shape}"
            )
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
            raise SteeringError(
                f"labels must be {len(images)} class numbers ≥ 0 and at least one, got {labels.dtype}, {labels.shape}"
            )
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = labels.astype(np.int64)
        self.classes = [str(n) for n in range(int(labels.max()) + 1)] if classes is None else [*classes]

    def image(self, number: int) -> np.ndarray:
        return self.images[number]

    def fingerprint(self) -> str:
        return sha256([str(self.images.shape), np.ascontiguousarray(self.images).tobytes(), self.labels.tobytes()])


class DatasetSource(Source):
    """A torchvision data set of (PIL image, class number)."""

    def __init__(self, dataset: Any, labels: Sequence[int], classes: Sequence[str], name: str) -> None:
        self.dataset, self.classes, self.name = dataset, [*classes], name
        self.labels = np.asarray(labels, dtype=np.int64)

    def image(self, number: int) -> np.ndarray:
        try:
            # torchvision's own reader of folders would cut 16-bit grey off at 255, and leave photos lying on their side.
            if isinstance(self.dataset, DatasetFolder) and self.dataset.loader is default_loader:
                return _pixels(decode(Path(self.dataset.samples[number][0]).read_bytes()))
            return _pixels(self.dataset[number][0])
        except SteeringError:
            raise
        except (
            Exception
        ) as error:  # decoders meet broken bytes with many types: OSError, SyntaxError, struct.error, ...
            raise UnreadableError(f"{self.name}, example {number}: {error}") from error

    def fingerprint(self) -> str:
        files = [Path(path) for path, _ in getattr(self.dataset, "samples", [])]
        parts = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files]
        raw = getattr(self.dataset, "data", None)
        if not parts and raw is not None:
            parts = [sha256([np.asarray(raw).tobytes()])]
        return sha256([self.name, self.labels.tobytes(), *parts])


def digits() -> tuple[Source, Source]:
    """scikit-learn's 1,797 handwritten digits, 8×8; a third is the test part, by a fixed hash."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)
    test = mix(20, np.arange(len(images))) % np.uint64(3) == 0
    return (
        ArraySource(images[~test], found.target[~test], [str(n) for n in range(10)]),
        ArraySource(images[test], found.target[test], [str(n) for n in range(10)]),
    )


def arrays(path: str, test_path: str) -> tuple[Source, Source]:
    """Two `.npz` files with "image", uint8 (n, h, w[, c]), and "label", integers (n,)."""
    parts = []
    for key, file in (("path", path), ("test_path", test_path)):
        try:
            with np.load(file, allow_pickle=False) as found:
                parts.append((found["image"], found["label"]))
        except (OSError, ValueError, KeyError) as error:
            raise SteeringError(f"{key}: {file} is no .npz with 'image' and 'label': {error}") from error
    count = int(max(labels.max(initial=-1) for _, labels in parts)) + 1
    names = [str(n) for n in range(count)]
    return ArraySource(*parts[0], names), ArraySource(*parts[1], names)


def folders(path: str, test_path: str) -> tuple[Source, Source]:
    """Two folders with a sub-folder of images for each class."""
    parts = []
    for key, folder in (("path", path), ("test_path", test_path)):
        try:
            found = ImageFolder(folder)
        except (OSError, RuntimeError) as error:
            raise SteeringError(f"{key}: {folder} has no folders of images, one per class: {error}") from error
        parts.append(DatasetSource(found, found.targets, found.classes, f"folder {folder}"))
    if parts[0].classes != parts[1].classes:
        wrong = sorted({*parts[0].classes} ^ {*parts[1].classes})
        raise SteeringError(f"test_path: {test_path} and {path} have other classes: {', '.join(wrong)}")
    return parts[0], parts[1]


def torchvision_sets(name: str, path: str, download: bool) -> tuple[Source, Source]:
    """The training and the test part of a data set of torchvision, such as "CIFAR10" or "MNIST"."""
    cls: Any = getattr(torchvision.datasets, name, None)
    if not isinstance(cls, type):
        raise SteeringError(f"dataset: torchvision.datasets has no {name!r}")
    options = inspect.signature(cls).parameters
    if "train" not in options and "split" not in options:
        raise SteeringError(f"dataset: torchvision.datasets.{name} has no training and test parts")
    parts = []
    for train in (True, False):
        chosen: dict[str, Any] = {"train": train} if "train" in options else {"split": "train" if train else "test"}
        if "download" in options:
            chosen["download"] = download
        try:
            found: Any = cls(path, **chosen)
        except (OSError, RuntimeError, ValueError) as error:
            raise SteeringError(f"path: cannot read torchvision's {name} in {path}: {error}") from error
        parts.append(
            DatasetSource(
                found, _targets(found, name), _class_names(found, name), f"{name} {'train' if train else 'test'}"
            )
        )
    return parts[0], parts[1]


def read_numbers(file: str, key: str) -> np.ndarray:
    """Integers, (n,), of "FILE.npy", "FILE.npz:KEY", "FILE.pt:KEY" (as CIFAR-10N is published) or a text file of one a line.

    Raises:
        SteeringError: cannot be read; the message starts with `key`.
    """
    path, _, entry = file.partition(":")
    try:
        if path.endswith(".pt"):
            found = np.asarray(_torch_arrays(path)[entry])
        elif path.endswith((".npy", ".npz")):
            loaded = np.load(path, allow_pickle=False)
            found = loaded[entry] if path.endswith(".npz") else loaded
        else:
            found = np.loadtxt(path, dtype=np.int64, ndmin=1)
    except (OSError, ValueError, KeyError) as error:
        raise SteeringError(f"{key}: cannot read numbers from {file}: {error}") from error
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise SteeringError(f"{key}: expected one integer per example in {file}, got {found.dtype}, {found.shape}")
    return found.astype(np.int64)


def _torch_arrays(path: str) -> dict[str, Any]:
    """A dict of NumPy arrays saved by torch, read without running code from it."""
    import pickle

    import torch

    dtypes = [type(np.dtype(kind)) for kind in ("int64", "int32", "uint8", "float64", "float32")]
    rebuild = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    old_name = "numpy.core.multiarray._reconstruct"
    allowed: list[Any] = [np.ndarray, np.dtype, *dtypes, rebuild, (rebuild, old_name)]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(path, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"holds more than arrays: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ValueError("holds no dict of arrays")
    return found


def _pixels(image: Any) -> np.ndarray:
    if not isinstance(image, Image.Image):
        raise SteeringError(f"dataset: expected PIL images, got {type(image).__name__}")
    image, _ = normal(image)
    if image.mode in ("1", "L") and not image.has_transparency_data:
        return np.asarray(image.convert("L"))[..., None]
    return np.asarray(rgb(image))


def _targets(dataset: Any, name: str) -> Sequence[int]:
    for attribute in ("targets", "labels", "_labels", "y"):
        found = getattr(dataset, attribute, None)
        if found is not None:
            return np.asarray(found).tolist()
    raise SteeringError(f"dataset: torchvision.datasets.{name} does not list its labels; save it as arrays or a folder")


def _class_names(dataset: Any, name: str) -> list[str]:
    found = getattr(dataset, "classes", None)
    return [str(c) for c in found] if found else [str(n) for n in range(int(max(_targets(dataset, name))) + 1)]
