"""From the `task.data` section to labelled examples: sources opened, labels changed, parts and groups
chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steering.errors import ConfigError, SteeringError
from steering.reading import report_once

from .data import Labelled, kept_of_classes, noisy_labels, part_of
from .drawn import glyphs
from .images import Source
from .merged import Merged, merged
from .options import ClassificationData
from .photographs import digits_on_photographs
from .shares import in_shares
from .sources import arrays, digits, folders, read_numbers, torchvision_sets
from .spurious import coloured_digits
from .table import table
from .texts import library, texts


def open_sources(data: ClassificationData) -> tuple[Source, Source]:
    """The training and the test part, with classes and groups as `merge` and `group_classes` say."""
    return merged(*_as_they_are(data), data.merge, data.group_classes)


def _as_they_are(data: ClassificationData) -> tuple[Source, Source]:
    path, test_path = str(data.path), str(data.test_path)
    if data.source == "digits":
        return digits()
    if data.source == "coloured_digits":
        return coloured_digits(data.options)
    if data.source == "digits_on_photographs":
        return digits_on_photographs(path, test_path, data.options)
    if data.source == "glyphs":
        return glyphs(data.options)
    if data.source == "table":
        return table(path, data.options)
    if data.source == "stdlib":
        return library(data.options)
    if data.source == "texts":
        return texts(path, test_path, data.options)
    if data.source == "arrays":
        return arrays(path, test_path)
    if data.source == "folder":
        return folders(path, test_path)
    more = data.options, data.train_options, data.test_options
    return torchvision_sets(str(data.dataset), path, data.download, *more)


def labelled_parts(
    data: ClassificationData, train: Source, test: Source
) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Training and test examples, and the names of the groups."""
    classes, labels = len(train.classes), train.labels
    if data.labels is not None:
        labels = _labels_of_file(data.labels, train)
    labels = noisy_labels(labels, classes, data.label_noise, data.seed)
    if unknown := [label for label in data.class_shares if label >= classes]:
        raise ConfigError(f"task.data.class_shares: no class {unknown[0]}; there are {classes}")
    stays = kept_of_classes(labels, data.class_shares, data.seed)
    numbers = part_of(len(train), *data.part, data.seed)
    numbers = numbers[stays[numbers]]
    if not len(numbers):
        raise SteeringError(f"task.data.part: no example is left of {len(train)}")
    _report_empty("class", train.classes, labels[numbers], "training example")
    groups: np.ndarray | None = None
    test_groups: np.ndarray | None = None
    names: tuple[str, ...] = ()
    if data.groups == "class":
        groups, test_groups, names = labels, test.labels, tuple(train.classes)
    elif data.groups == "source":
        groups, test_groups, names = train.groups, test.groups, train.group_names
        if not names:
            raise SteeringError(
                "task.data.groups: the source gives none; name a column in options.group or "
                "options.spurious, or set group_classes"
            )
    elif data.groups is not None:
        key, test_key = "task.data.groups", "task.data.test_groups"
        groups = _aligned(read_numbers(data.groups, key), len(train), key, data.groups)
        test_groups = _aligned(
            read_numbers(str(data.test_groups), test_key), len(test), test_key, data.test_groups
        )
        names = tuple(str(n) for n in range(int(max(groups.max(), test_groups.max())) + 1))
    if groups is not None and data.group_shares:
        numbers = numbers[in_shares(groups[numbers], data.group_shares, numbers, data.seed)]
        if not len(numbers):
            raise SteeringError("task.data.group_shares: no training example is left")
    kept = None if groups is None else groups[numbers]
    if kept is not None and test_groups is not None:
        if data.groups != "class":
            _report_empty("group", names, kept, "training example")
        _report_empty(
            "group", names, test_groups, "test example, so worst_group_accuracy says nothing of it"
        )
    whole = np.arange(len(test))
    return (
        Labelled(train, numbers, labels[numbers], kept),
        Labelled(test, whole, test.labels, test_groups),
        names,
    )


def _labels_of_file(file: str, train: Source) -> np.ndarray:
    """Labels that replace the source's, int64, (n,): numbers of its own classes, merged as they
    are."""
    key = "task.data.labels"
    labels = _aligned(read_numbers(file, key), len(train), key, file)
    place = train.place if isinstance(train, Merged) else np.arange(len(train.classes))
    if labels.min() < 0 or labels.max() >= len(place):
        raise SteeringError(f"{key}: expected numbers in [0, {len(place)}) in {file}")
    return place[labels]


def _report_empty(kind: str, names: Sequence[str], numbers: np.ndarray, what: str) -> None:
    """One line that names the classes or groups without examples, if there are any."""
    empty = [name for number, name in enumerate(names) if not (numbers == number).any()]
    if empty:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        report_once(f"task.data: {kind} {', '.join(empty[:5])}{more} has no {what}")


def _aligned(numbers: np.ndarray, n: int, key: str, file: str | None) -> np.ndarray:
    if len(numbers) != n:
        raise SteeringError(f"{key}: {file} has {len(numbers)} numbers for {n} examples")
    return numbers
