"""Held-out images for evaluation: batches of those that can be read; the others are left out, counted and reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from steering.errors import SteeringError
from steering.reading import report_once
from tasks.clip.data.source import ImageTextSource, Unreadable, read_image
from tasks.clip.evaluation import RetrievalSet, gallery
from tasks.clip.models import ClipInputs

BATCH = 256


def source_retrieval(source: ImageTextSource, label: str) -> RetrievalSet:
    """Retrieval among a source's own captions; `label` names the set in messages."""
    captions, number = gallery(source.captions())

    def images(inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor]]:
        return _readable(lambda i: source.pair(i)[0], number, inputs.plain, label)

    return RetrievalSet(captions, images)


class ClassFolder:
    """A folder with one sub-folder of images for each class, in alphabetical order.

    Args:
        folder: the folder.
        classes: names of the classes in place of the sub-folders'.

    Raises:
        SteeringError: no such folder, a class without images, or another number of names than of sub-folders.
    """

    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        try:
            found = ImageFolder(str(folder))
        except OSError as error:  # torchvision says which class is empty, and which suffixes it looks for
            raise SteeringError(f"task.zero_shot.path: {error}") from error
        self.classes = list(classes if classes is not None else found.classes)
        if len(self.classes) != len(found.classes):
            raise SteeringError(
                f"task.zero_shot.classes: {len(self.classes)} names for {len(found.classes)} folders in {folder}"
            )
        self._files = [Path(path) for path, _ in found.samples]
        self._labels = np.array([label for _, label in found.samples], dtype=np.int64)

    def batches(self, inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, h, w) and class numbers (b,)."""
        return _readable(self._image, self._labels, inputs.plain, "task.zero_shot.path")

    def _image(self, i: int) -> Image.Image:
        return read_image(self._files[i])


def _readable(
    image: Callable[[int], Image.Image], labels: np.ndarray, transform: Callable[[Image.Image], Tensor], name: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of image and label, without the images that cannot be read; their number is reported behind the last one."""
    broken: list[Unreadable] = []
    for start in range(0, len(labels), BATCH):
        pictures, kept = [], []
        for i in range(start, min(start + BATCH, len(labels))):
            try:
                pictures.append(transform(image(i)))
            except Unreadable as error:
                broken.append(error)
                continue
            kept.append(i)
        if kept:
            yield torch.stack(pictures), torch.from_numpy(labels[kept])
    if broken:
        report_once(
            f"{name}: {len(broken)} of {len(labels)} images cannot be read and are left out; the first one: {broken[0]}"
        )
