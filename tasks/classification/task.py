"""The classification task: options, data, models, evaluation, tied together for the framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.exhibits import Exhibit, Labels
from steering.task import Evaluation, Metric, Model, ModelSpec, Task, scores_of

from .data import (
    ImageData,
    ImageInputs,
    Labelled,
    split_off,
)
from .derived import derived
from .evaluation import (
    calibration_error,
    confusion_figure,
    group_accuracies,
    losses,
    predict,
    reliability_figure,
)
from .exhibits import exhibit_of, judged
from .images import Source, UnreadableError
from .models import build_classifier
from .options import ClassificationOptions
from .parts import labelled_parts, open_sources
from .recipe import Blurred, cooked
from .risk import ClassificationRisk
from .sources import (
    report_changes,
)


class ClassificationTask(Task):
    """Classification of images or texts; the unit of loss is an example."""

    Options: ClassVar[type] = ClassificationOptions
    may_have_groups: ClassVar[bool] = True
    metrics: ClassVar[Mapping[str, Metric]] = {
        "ECE": Metric(higher_is_better=False),
        "unreadable": Metric(percent=False, higher_is_better=False),
    }

    def __init__(self, options: ClassificationOptions) -> None:
        self.options, self.risk = options, ClassificationRisk(options.loss)
        data = options.data
        self.train, self.test = open_sources(data)
        self.classes = self.train.classes
        whole, self.test_part, self.groups = labelled_parts(data, self.train, self.test)
        self._part, self.reserved = split_off(whole, data.reserved, data.seed)

    @cached_property
    def part(self) -> Labelled:
        """The training examples, after all that the config does to them."""
        data, names = self.options.data, self.groups or self.classes
        part, reserved = self._part, self.reserved
        if data.blur:
            source = Blurred(part.source, data.blur)
            part, reserved = replace(part, source=source), replace(reserved, source=source)
        steps = data.dedup, data.filter, data.duplicate, data.mix
        part = cooked(part, *steps, names, data.seed, reserved)
        return derived(part, data.derive, self, follow=data.groups == "class")

    def network(self, spec: ModelSpec) -> Model:
        kind = self.train.kind
        return build_classifier(spec, _first_shape(self.train), len(self.classes), kind)

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
        """Wrong is what `label_noise`, a file of `labels` or the labels of a run have changed."""
        data, part = self.options.data, self.part
        changed = data.label_noise > 0 or data.labels is not None
        changed = changed or data.derive.labels_from is not None
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
        found = predict(model.module, data, device)
        probability, label, group = found.probability, found.label, found.group
        numbers = self.test_part.numbers
        report_changes(self.test, numbers, len(numbers) - len(label), "the test part of task.data")
        further = {"test/ECE": calibration_error(probability, label)}
        if group is not None:
            further["test/worst_group_accuracy"] = min(
                group_accuracies(probability, label, group).values()
            )
        if left_out := len(numbers) - len(label):
            further["test/unreadable"] = float(left_out)
        each = losses(probability, label, self.options.loss)
        return Evaluation(
            {"test/accuracy": scores_of(probability.argmax(-1) == label)},
            further,
            figures={
                "reliability": reliability_figure(probability, label),
                "confusion": confusion_figure(probability, label, self.classes),
            },
            loss=each.mean().item(),
            judged=judged(self.test_part, found, each.numpy()),
        )


def _first_shape(source: Source) -> tuple[int, int, int]:
    for number in range(min(16, len(source))):
        try:
            height, width, channels = source.image(number).shape
            return height, width, channels
        except UnreadableError:
            continue
    raise SteeringError("task.data: the first 16 images cannot be read")
