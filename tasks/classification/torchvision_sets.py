"""torchvision's data sets: which arguments give the training and the test part, and where each
keeps its labels."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from steering.errors import SteeringError
from steering.extras import require
from steering.reading import user_path
from steering.storage import sha256

from .images import (
    CHANGES,
    Source,
    UnreadableError,
    eight_bits,
    pixels,
    read_colours,
)

_TRAIN, _TEST = ("train", "trainval", "train-standard"), ("test", "val", "valid", "validation")
_SPLITS = {
    "Places365": ("train-standard", "val"),
    "CLEVRClassification": ("train", "val"),
}  # their "test" has no labels
_OURS = ("root", "download", "transform", "target_transform", "transforms", "loader")
_NOT_A_SPLIT = "?"  # asking for it makes the class list those that it has


class DatasetSource(Source):
    """A torchvision data set of (PIL image, class number)."""

    def __init__(
        self, dataset: Any, labels: Sequence[int], classes: Sequence[str], name: str
    ) -> None:
        self.dataset, self.classes, self.name = dataset, [*classes], name
        self.labels = np.asarray(labels, dtype=np.int64)
        self._changed: dict[int, list[str]] = {}

    def image(self, number: int) -> np.ndarray:
        try:
            image = self.dataset[number][0]
            if isinstance(image, Image.Image):
                before = image.info.get(CHANGES, [])  # by our own loader
                found, changes = eight_bits(image)
                self._changed[number] = [*before, *changes]
                return pixels(found)
        # decoders meet broken bytes with many types: OSError, SyntaxError, struct.error, ...
        except Exception as error:
            raise UnreadableError(f"{self.name}, example {number}: {error}") from error
        raise SteeringError(f"dataset: expected PIL images, got {type(image).__name__}")

    def changes(self, number: int) -> list[str]:
        return self._changed.get(number, [])

    def fingerprint(self) -> str:
        files = [Path(path) for path, _ in getattr(self.dataset, "samples", [])]
        parts = [f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files]
        raw = getattr(self.dataset, "data", None)
        if not parts and raw is not None:
            parts = [sha256([np.asarray(raw).tobytes()])]
        return sha256([self.name, self.labels.tobytes(), *parts])


def torchvision_sets(
    name: str,
    path: str,
    download: bool,
    options: Mapping[str, Any] | None = None,
    train_options: Mapping[str, Any] | None = None,
    test_options: Mapping[str, Any] | None = None,
) -> tuple[Source, Source]:
    """The training and the test part of a data set of torchvision, such as "CIFAR10" or "MNIST".

    Args:
        name: the class in torchvision.datasets.
        path: its `root`.
        options: further arguments of the class for both parts, such as {"split": "letters"} of
            EMNIST.
        train_options, test_options: for one part; they win over `options`, and over the part's own
            `train` or `split`.

    Raises:
        SteeringError: no such class, no way to choose the parts, an argument that it does not take,
            or no data in `path`.
    """
    # Here, as it takes seconds, and most data come from elsewhere.
    datasets = require("vision", "torchvision.datasets", "task.data.source: torchvision")
    cls: Any = getattr(datasets, name, None)
    if not isinstance(cls, type):
        raise SteeringError(f"dataset: torchvision.datasets has no {name!r}")
    arguments, root = _arguments(cls), str(user_path(path))
    given: dict[str, Mapping[str, Any]] = {"options": options or {}}
    given |= {"train_options": train_options or {}, "test_options": test_options or {}}
    for where, values in given.items():
        for key in values:
            if key in _OURS or (key not in arguments and "**" not in arguments):
                known = ", ".join(key for key in arguments if key not in (*_OURS, "**")) or "none"
                raise SteeringError(
                    f"{where}.{key}: no option of torchvision's {name}; it has {known}"
                )
    own = [{**given["options"], **given[where]} for where in ("train_options", "test_options")]
    found = []
    for part, chosen in zip(
        ("train", "test"), _choices(cls, name, arguments, root, own), strict=True
    ):
        more: dict[str, Any] = {"download": download} if "download" in arguments else {}
        if "loader" in arguments:
            more["loader"] = read_colours
        dataset = _opened(cls, name, root, {**chosen, **more}, chosen, given, part)
        if isinstance(dataset, datasets.DatasetFolder):
            dataset.loader = read_colours
        found.append((dataset, _targets(dataset, name), f"{name} {part}"))
    names = next((_class_names(dataset) for dataset, _, _ in found if _class_names(dataset)), [])
    names += [str(n) for n in range(len(names), max(max(labels) for _, labels, _ in found) + 1)]
    train, test = (DatasetSource(dataset, labels, names, title) for dataset, labels, title in found)
    return train, test


def _arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """What the class takes: its own parameters and, while it passes **kwargs on, those of its
    bases; "**" for any."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = [*inspect.signature(base.__init__).parameters.values()][1:]
        for parameter in parameters:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters):
            return found
    return found | {"**": inspect.Parameter("any", inspect.Parameter.VAR_KEYWORD)}


def _choices(
    cls: Any,
    name: str,
    arguments: Mapping[str, inspect.Parameter],
    root: str,
    own: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The arguments of the training and of the test part: train=True and False, else two splits,
    else what the user gave."""
    required = [
        key
        for key, parameter in arguments.items()
        if parameter.default is parameter.empty
        and key not in ("root", "train", "**", *own[0], *own[1])
    ]
    if "train" in arguments:
        if required:
            valid = _valid_splits(lambda: cls(root, **dict.fromkeys(required, _NOT_A_SPLIT)))
            which = f", one of {', '.join(valid)}" if valid else ""
            raise SteeringError(f"dataset: torchvision's {name} needs options.{required[0]}{which}")
        return [{"train": True, **own[0]}, {"train": False, **own[1]}]
    if "split" in arguments:
        valid = _valid_splits(lambda: cls(root, **{**own[0], "split": _NOT_A_SPLIT}))
        parts = [
            next((split for split in best if split in valid), None) for best in (_TRAIN, _TEST)
        ]
        parts = [*_SPLITS.get(name, parts if valid else ("train", "test"))]
        chosen = [{"split": split, **values} for split, values in zip(parts, own, strict=True)]
        if any(values["split"] is None for values in chosen) or chosen[0] == chosen[1]:
            raise SteeringError(
                f"dataset: the splits of torchvision's {name} are {', '.join(valid) or 'unknown'}; "
                "name one in train_options.split and another in test_options.split"
            )
        return chosen
    if own[0] != own[1]:  # such as Omniglot's background
        return [dict(values) for values in own]
    raise SteeringError(
        f"dataset: torchvision.datasets.{name} has no training and test parts; save it as two folders or two .npz files"
    )


def _valid_splits(probe: Callable[[], object]) -> list[str]:
    """The splits that a class lists when it is asked for one that is none; empty if it does not
    say."""
    try:
        probe()
    except ValueError as error:
        return [word for word in re.findall(r"'([^']+)'", str(error)) if word != _NOT_A_SPLIT]
    except (
        Exception
    ):  # it does not look at the split first; the real attempt will say what is wrong
        return []
    return []


def _opened(
    cls: Any,
    name: str,
    root: str,
    arguments: Mapping[str, Any],
    chosen: Mapping[str, Any],
    given: Mapping[str, Mapping[str, Any]],
    part: str,
) -> Any:
    try:
        return cls(root, **arguments)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        argument = re.search(r"(?:argument|parameter) '?(\w+)", reason)
        if isinstance(error, ValueError | TypeError) and argument and argument[1] in chosen:
            key = argument[1]
            where = next((w for w in (f"{part}_options", "options") if key in given[w]), None)
            place = f"{where}.{key}" if where else f"dataset: {name}, {key}"
            raise SteeringError(f"{place}: {reason}") from error
        asked = ", ".join(f"{key}={value}" for key, value in chosen.items())
        raise SteeringError(
            f"dataset, path: cannot read torchvision's {name} in {root} with {asked or 'its defaults'}: {reason}"
        ) from error


def _targets(dataset: Any, name: str) -> list[int]:
    """Class numbers ≥ 0, wherever this data set keeps them."""
    for attribute in ("targets", "labels", "_labels", "y", "_samples", "samples"):
        found = getattr(dataset, attribute, None)
        if found is None:
            continue
        labels = np.asarray(
            [label for _, label in found] if attribute.endswith("samples") else found
        )
        if labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) and labels.min() >= 0:
            return labels.tolist()
        raise SteeringError(
            f"dataset: torchvision.datasets.{name} has no class number for each image: its {attribute} are {labels.dtype}, "
            f"{labels.shape}{', some negative' if labels.dtype.kind in 'iu' and labels.size else ''}"
        )
    raise SteeringError(
        f"dataset: torchvision.datasets.{name} does not list its labels; save it as arrays or a folder"
    )


def _class_names(dataset: Any) -> list[str]:
    """Names of the classes; several names of one are joined. Empty if the data set has none."""
    found = getattr(dataset, "classes", None)
    return (
        [", ".join(c) if isinstance(c, tuple) else str(c) for c in found]
        if found is not None
        else []
    )
