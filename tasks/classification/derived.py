"""Training images or texts with the answers of a run as labels, or those of them that it is surest of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from steering.data import IndexedData
from steering.derived import DeriveLabels, answers, scores
from steering.task import Model, Task

from ..transforms import kept_by_scores, say_labels
from .data import ImageData, ImageInputs, Labelled


def derived(part: Labelled, given: DeriveLabels, task: Task, *, follow: bool) -> Labelled:
    """A part of the training images as a `derive` section wants it.

    Args:
        follow: groups are the classes as labelled, and stay so.
    """

    def data(model: Model | None) -> IndexedData:
        views: Mapping[str, ImageInputs] = {} if model is None else {"": model.inputs}
        return ImageData(part, views, 0, "none", replace=True)

    rows = np.arange(len(part.numbers))
    if given.scored_by is not None and given.keep.share < 1:
        found = scores(given.scored_by, given.keep.score, task, data)
        what = f"{part.source.kind}s"
        rows = kept_by_scores(found, given.keep.share, not given.keep.highest, what)
    if given.labels_from is not None:
        told = answers(given.labels_from, task, data)
        labels = np.where(told < 0, part.labels, told)
        say_labels(labels[rows] != part.labels[rows], given.labels_from)
        part = replace(part, labels=labels, groups=labels if follow else part.groups)
    return part.at(rows) if len(rows) < len(part.numbers) else part
