"""Training examples of an image classifier: a part of a source, with its labels made noisy, as a
model wants to see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from steering.data import IndexedData, mix, uniform
from steering.errors import SteeringError
from steering.extras import require
from steering.reading import report_once
from steering.risk import Batch
from steering.storage import sha256

from .images import Source, UnreadableError

REPLACEMENTS = 16
# Keys of the hash: independent draws from one seed.
_PART, _NOISE, _OTHER, _REPLACEMENT, _RARE, _FLIP, _SHIFT, SHARES, _RESERVED = range(1, 10)


@dataclass(frozen=True)
class ImageInputs:
    """What a model wants to see.

    Attributes:
        size: side in pixels; images are resized (shorter side) and cropped to it; None leaves them
            as they are.
        channels: 1 or 3; grey images are repeated, colour images averaged.
        mean, std: of each channel, in units of the full range.
    """

    size: int | None
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fingerprint(self) -> str:
        return sha256([str((self.size, self.channels, self.mean, self.std))])

    def __call__(self, images: list[np.ndarray]) -> Tensor:
        """uint8 images (h, w, c) as float32, (b, channels, h, w), normalised."""
        shapes = {image.shape for image in images}
        if len(shapes) == 1:
            batch = self._sized(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
        elif self.size is None:
            raise SteeringError(
                f"images have different sizes, {sorted(shapes)[:2]}; set target.options.size, and "
                "reference.options.size if there is a reference"
            )
        else:
            batch = torch.cat(
                [
                    self._sized(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])
                    for image in images
                ]
            )
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (batch.float() / 255 - mean) / std

    def _sized(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1 and self.channels == 3:
            images = images.expand(-1, 3, -1, -1)
        elif images.shape[1] == 3 and self.channels == 1:
            images = _transforms().rgb_to_grayscale(images)
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            F = _transforms()
            images = F.center_crop(
                F.resize(images, [self.size], antialias=True), [self.size, self.size]
            )
        return images


def _transforms() -> ModuleType:
    """torchvision's, imported late: it takes a while, and arrays of one size need none."""
    return require("vision", "torchvision.transforms.v2.functional", "task.data: resizing images")


@dataclass(frozen=True)
class Labelled:
    """A part of a source.

    Attributes:
        source: the images.
        numbers: those kept, int64, (m,).
        labels: as shown to the training, int64, (m,).
        groups: int64, (m,), or None.
    """

    source: Source
    numbers: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None

    def at(self, rows: np.ndarray) -> Labelled:
        """Some of the examples, renumbered."""
        groups = None if self.groups is None else self.groups[rows]
        return Labelled(self.source, self.numbers[rows], self.labels[rows], groups)


def part_of(n: int, low: float, high: float, seed: int) -> np.ndarray:
    """Numbers of 0 .. n−1 whose seeded hash lies in [low, high): the parts [0, x) and [x, 1) are
    disjoint."""
    place = uniform(seed, _PART, np.arange(n))
    return np.flatnonzero((place >= low) & (place < high))


def split_off(part: Labelled, share: float, seed: int) -> tuple[Labelled, Labelled]:
    """The part without a share of its examples, and these; which they are depends on (seed, number)
    alone. SteeringError when nothing is left of one."""
    away = uniform(seed, _RESERVED, part.numbers) < share
    if share > 0 and (away.all() or not away.any()):
        raise SteeringError(
            f"task.data.reserved: {int(away.sum())} of {len(away)} examples are drawn; expected some "
            "and not all"
        )
    return part.at(~away), part.at(away)


def kept_of_classes(labels: np.ndarray, shares: Mapping[int, float], seed: int) -> np.ndarray:
    """Which examples stay, bool, (n,), when only a share of some classes does."""
    share = np.ones(len(labels))
    for label, value in shares.items():
        share[labels == label] = value
    return uniform(seed, _RARE, np.arange(len(labels))) < share


def noisy_labels(labels: np.ndarray, classes: int, noise: float, seed: int) -> np.ndarray:
    """Symmetric label noise: with probability `noise` another class, each as likely, int64 (n,).

    The draw of an example depends on (seed, its position) alone.
    """
    number = np.arange(len(labels))
    wrong = uniform(seed, _NOISE, number) < noise
    shift = 1 + (uniform(seed, _OTHER, number) * (classes - 1)).astype(np.int64)
    return np.where(wrong, (labels + shift) % classes, labels)


class ImageData(IndexedData):
    """Labelled images through the eyes of one or more models.

    Args:
        part: what to show.
        views: prefix -> inputs; "" gives "image", "reference" gives "reference_image".
        seed: of the augmentation.
        augment: "none", "crop" (shifted by up to an eighth of the side), or "flip-crop" (also
            mirrored).
        replace: for training: another example, drawn by a hash, takes the place of one that cannot
            be read. Else, as an evaluation needs it, a batch has fewer rows, and "skipped" counts
            those that are not there.
    """

    def __init__(
        self,
        part: Labelled,
        views: Mapping[str, ImageInputs],
        seed: int,
        augment: str,
        *,
        replace: bool = False,
    ) -> None:
        self.part, self.views, self.seed, self.augment, self.replace = (
            part,
            dict(views),
            seed,
            augment,
            replace,
        )

    def __len__(self) -> int:
        return len(self.part.numbers)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        read = [found for wanted in index.tolist() if (found := self._readable(wanted)) is not None]
        delivered, images = (
            np.array([number for number, _ in read], dtype=np.int64),
            [image for _, image in read],
        )
        unread = int((delivered != index).sum()) if self.replace else len(index) - len(delivered)
        batch = {
            "label": torch.from_numpy(self.part.labels[delivered]),
            "index": torch.from_numpy(delivered),
            "skipped": torch.tensor(unread),
        }
        if self.part.groups is not None:
            batch["group"] = torch.from_numpy(self.part.groups[delivered])
        for prefix, inputs in self.views.items() if images else ():
            batch[f"{prefix}_image" if prefix else "image"] = self._augmented(
                inputs(images), delivered, epoch
            )
        return batch

    def group_counts(self, num_groups: int) -> np.ndarray | None:
        return (
            None
            if self.part.groups is None
            else np.bincount(self.part.groups, minlength=num_groups)
        )

    def fingerprint(self) -> str:
        part = self.part
        groups = b"" if part.groups is None else part.groups.tobytes()
        return sha256(
            [part.source.fingerprint(), part.numbers.tobytes(), part.labels.tobytes(), groups]
        )

    def _augmented(self, images: Tensor, index: np.ndarray, epoch: int) -> Tensor:
        if self.augment == "none":
            return images
        keys = (self.seed, epoch)
        if self.augment == "flip-crop":
            flipped = torch.from_numpy(uniform(*keys, _FLIP, index) < 0.5)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        height, width = images.shape[-2:]
        rows, columns = (
            _shifted(side, uniform(*keys, _SHIFT, axis, index))
            for axis, side in enumerate((height, width))
        )
        moved = images.gather(2, rows[:, None, :, None].expand_as(images))
        return moved.gather(3, columns[:, None, None, :].expand_as(images))

    def _readable(self, wanted: int) -> tuple[int, np.ndarray] | None:
        """The number and the image that are delivered for a wanted number; None if there is none
        and none replaces it."""
        number = wanted
        for attempt in range(REPLACEMENTS + 1):
            if attempt:
                number = int(mix(self.seed, _REPLACEMENT, wanted, attempt)) % len(self)
            place = int(self.part.numbers[number])
            try:
                image = self.part.source.image(place)
                for change in self.part.source.changes(place) if self.replace else ():
                    report_once(
                        f"task.data: some training images are {change}"
                    )  # an evaluation counts its own
                return number, image
            except UnreadableError as error:
                if not self.replace:
                    return None
                report_once(f"{error}; another takes its place")
        raise SteeringError(
            f"task.data: example {wanted} and {REPLACEMENTS} others in its place cannot be read"
        )


def _shifted(side: int, draw: np.ndarray) -> Tensor:
    """Pixel numbers of a row or column moved by up to an eighth of the side, the edge repeated:
    int64, (b, side)."""
    reach = max(1, side // 8)
    offset = torch.from_numpy(np.floor(draw * (2 * reach + 1)).astype(np.int64) - reach)
    return (torch.arange(side) + offset[:, None]).clamp(0, side - 1)
