"""The classification task: options, data, models, evaluation, tied together for the framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from steering.data import IndexedData
from steering.errors import ConfigError, SteeringError
from steering.exhibits import Exhibit, Labels
from steering.reading import report_once
from steering.task import Evaluation, Metric, Model, ModelSpec, Task, scores_of

from .data import (
    ImageData,
    ImageInputs,
    Labelled,
    in_shares,
    kept_of_classes,
    noisy_labels,
    part_of,
    require_shares,
    split_off,
)
from .evaluation import (
    calibration_error,
    confusion_figure,
    group_accuracies,
    predict,
    reliability_figure,
)
from .exhibits import exhibit_of
from .images import Source, UnreadableError
from .models import build_classifier
from .risk import ClassificationRisk
from .sources import (
    arrays,
    digits,
    folders,
    read_numbers,
    report_changes,
    torchvision_sets,
)
from .spurious import coloured_digits

SOURCES = ("digits", "coloured_digits", "arrays", "folder", "torchvision")
AUGMENTATIONS = ("none", "crop", "flip-crop")


@dataclass
class ClassificationData:
    """Labelled images."""

    source: str = "digits"
    """"digits" and "coloured_digits" (embedded), "arrays" (.npz files), "folder" (a sub-folder per
    class) or "torchvision"."""
    path: str | None = None
    """arrays: the training .npz with "image" and "label"; folder: the training folder; torchvision:
    where the data lie."""
    test_path: str | None = None
    """arrays and folder: the same for the test part."""
    dataset: str | None = None
    """torchvision: the data set's class, such as CIFAR10."""
    download: bool = False
    """torchvision: fetch the data if they are not there."""
    options: dict[str, Any] = field(default_factory=dict)
    """torchvision: further arguments of the class for both parts, such as {split: letters} of
    EMNIST; coloured_digits: label, minority, test_minority, cue, seed."""
    train_options: dict[str, Any] = field(default_factory=dict)
    """torchvision: arguments for the training part, such as {split: trainval}; absent: by the usual
    names."""
    test_options: dict[str, Any] = field(default_factory=dict)
    """torchvision: arguments for the test part, such as {split: val}; absent: by the usual
    names."""
    part: tuple[float, float] = (0.0, 1.0)
    """The training examples whose seeded hash lies in [low, high): [0, 0.2] for a reference, [0.2,
    1] for its target."""
    reserved: float = 0.0
    """Share of the training examples that are kept from training, drawn at random: the part
    "reserved", on which weights of models are fitted."""
    class_shares: dict[int, float] = field(default_factory=dict)
    """Class number -> share of its training examples to keep: makes a class rare."""
    label_noise: float = 0.0
    """Probability that a training label is replaced by another class, each as likely."""
    labels: str | None = None
    """A file of training labels that replace the source's: FILE.npy, FILE.npz:KEY, FILE.pt:KEY, or
    text with one a line."""
    groups: str | None = None
    """"class": a group for each class as labelled in training; "source": those that the source
    knows (coloured_digits); or a file of group numbers, as `labels`; null: no groups."""
    test_groups: str | None = None
    """The same for the test part, when `groups` is a file."""
    group_shares: dict[int, float] = field(default_factory=dict)
    """Group number -> share that it shall have among the training examples; what is too many of the
    others is left out."""
    augment: str = "none"
    """"none", "crop" (moved by up to an eighth) or "flip-crop" (also mirrored)."""
    seed: int = 0
    """Chooses part and noise; independent of the run's seed."""

    def __post_init__(self) -> None:
        needs = {
            "digits": (),
            "coloured_digits": (),
            "arrays": ("path", "test_path"),
            "folder": ("path", "test_path"),
        }
        if self.source not in SOURCES:
            raise SteeringError(
                f"source: expected one of {', '.join(SOURCES)}, got {self.source!r}"
            )
        for key in needs.get(self.source, ("path", "dataset")):
            if not getattr(self, key):
                raise SteeringError(f"{key}: needed for source {self.source!r}")
        for key in ("options", "train_options", "test_options"):
            own = key == "options" and self.source == "coloured_digits"
            if getattr(self, key) and self.source != "torchvision" and not own:
                raise SteeringError(
                    f"{key}: for source 'torchvision' alone, got source {self.source!r}"
                )
        if self.augment not in AUGMENTATIONS:
            raise SteeringError(
                f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {self.augment!r}"
            )
        low, high = self.part
        if not 0 <= low < high <= 1:
            raise SteeringError(
                f"part: expected [low, high] with 0 <= low < high <= 1, got {[low, high]}"
            )
        if not 0 <= self.reserved < 1:
            raise SteeringError(f"reserved: expected a number in [0, 1), got {self.reserved}")
        if not 0 <= self.label_noise <= 1:
            raise SteeringError(f"label_noise: expected a number in [0, 1], got {self.label_noise}")
        for label, share in self.class_shares.items():
            if label < 0 or not 0 < share <= 1:
                raise SteeringError(
                    f"class_shares: expected class number -> share in (0, 1], got {label}: {share}"
                )
        if self.groups == "source" and self.source != "coloured_digits":
            raise SteeringError(f"groups: source {self.source!r} knows of none; give a file")
        if self.group_shares and self.groups is None:
            raise SteeringError("group_shares: there are no groups; set groups")
        require_shares(self.group_shares)
        if self.groups not in (None, "class", "source") and not self.test_groups:
            raise SteeringError("test_groups: needed when groups is a file")


@dataclass
class ClassificationOptions:
    """The `task:` section of a classification config."""

    name: str = "classification"
    """Says which task this is."""
    data: ClassificationData = field(default_factory=ClassificationData)
    """Labelled images."""


class ClassificationTask(Task):
    """Image classification; the unit of loss is an example."""

    Options: ClassVar[type] = ClassificationOptions
    may_have_groups: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "ECE": Metric(higher_is_better=False),
        "unreadable": Metric(percent=False, higher_is_better=False),
    }

    def __init__(self, options: ClassificationOptions) -> None:
        self.options, self.risk = options, ClassificationRisk()
        data = options.data
        self.train, self.test = _open(data)
        self.classes = self.train.classes
        whole, self.test_part, self.groups = _parts(data, self.train, self.test)
        self.part, self.reserved = split_off(whole, data.reserved, data.seed)

    def network(self, spec: ModelSpec) -> Model:
        return build_classifier(spec, _first_shape(self.train), len(self.classes))

    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:
        views: dict[str, ImageInputs] = {"": target.inputs}
        if reference is not None and reference.inputs_fingerprint != target.inputs_fingerprint:
            views["reference"] = reference.inputs
        return ImageData(self.part, views, seed, self.options.data.augment, replace=True)

    def plain_data(self, model: Model) -> IndexedData:
        return ImageData(
            self.part, {"": model.inputs}, self.options.data.seed, "none", replace=True
        )

    def held_out_data(self, model: Model) -> Mapping[str, IndexedData]:
        parts = {"test": self.test_part}
        if self.options.data.reserved:
            parts["reserved"] = self.reserved
        return {
            name: ImageData(part, {"": model.inputs}, 0, "none", replace=True)
            for name, part in parts.items()
        }

    def labels(self) -> Labels:
        """Wrong is what `label_noise` or a file of `labels` has changed."""
        data, part = self.options.data, self.part
        changed = data.label_noise > 0 or data.labels is not None
        wrong = part.labels != self.train.labels[part.numbers] if changed else None
        return Labels(tuple(self.classes), part.labels, wrong)

    def exhibits(self, numbers: Sequence[int]) -> list[Exhibit]:
        return [exhibit_of(self.part, number) for number in numbers]

    def evaluate(self, model: Model, device: torch.device) -> Evaluation:
        """ "test/accuracy", "test/ECE" (15 bins); with groups "test/worst_group_accuracy", over the
        groups of the test part.

        An image that cannot be read is left out of them all; "test/unreadable" says how many were,
        if any.
        """
        data = ImageData(self.test_part, {"": model.inputs}, 0, "none")
        probability, label, group = predict(model.module, data, device)
        numbers = self.test_part.numbers
        report_changes(self.test, numbers, len(numbers) - len(label), "the test part of task.data")
        further = {"test/ECE": calibration_error(probability, label)}
        if group is not None:
            further["test/worst_group_accuracy"] = min(
                group_accuracies(probability, label, group).values()
            )
        if left_out := len(numbers) - len(label):
            further["test/unreadable"] = float(left_out)
        return Evaluation(
            {"test/accuracy": scores_of(probability.argmax(-1) == label)},
            further,
            figures={
                "reliability": reliability_figure(probability, label),
                "confusion": confusion_figure(probability, label, self.classes),
            },
        )


def _open(data: ClassificationData) -> tuple[Source, Source]:
    path, test_path = str(data.path), str(data.test_path)
    if data.source == "digits":
        return digits()
    if data.source == "coloured_digits":
        return coloured_digits(data.options)
    if data.source == "arrays":
        return arrays(path, test_path)
    if data.source == "folder":
        return folders(path, test_path)
    more = data.options, data.train_options, data.test_options
    return torchvision_sets(str(data.dataset), path, data.download, *more)


def _parts(
    data: ClassificationData, train: Source, test: Source
) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """Training and test examples, and the names of the groups."""
    classes, labels = len(train.classes), train.labels
    if data.labels is not None:
        labels = _aligned(
            read_numbers(data.labels, "task.data.labels"),
            len(train),
            "task.data.labels",
            data.labels,
        )
        if labels.min() < 0 or labels.max() >= classes:
            raise SteeringError(
                f"task.data.labels: expected numbers in [0, {classes}) in {data.labels}"
            )
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


def _first_shape(source: Source) -> tuple[int, int, int]:
    for number in range(min(16, len(source))):
        try:
            height, width, channels = source.image(number).shape
            return height, width, channels
        except UnreadableError:
            continue
    raise SteeringError("task.data: the first 16 images cannot be read")
