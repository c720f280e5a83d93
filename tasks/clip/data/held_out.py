"""Held-out images for evaluation: batches of those that can be read; the others are left out,
counted and reported."""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steering import distributed
from steering.errors import SteeringError
from steering.exhibits import thumbnail
from steering.reading import in_words, report_once

from ...image_folders import class_images
from ...pictures import CHANGES, changes
from ..evaluation import RetrievalSet, gallery
from ..models import ClipInputs
from .source import ImageTextSource, Unreadable, read_image

BATCH = 256


def source_retrieval(source: ImageTextSource, label: str) -> RetrievalSet:
    """Retrieval among a source's own captions; `label` names the set in messages.

    Pairs that show one image are one image with several right captions, as COCO and Flickr30k have
    them; see `image_numbers`.
    """
    captions, caption_of = gallery(source.captions())
    image_of = image_numbers(source, caption_of)
    first = np.unique(image_of, return_index=True)[
        1
    ]  # (images,): the pair that stands for each image
    answers = None
    if len(first) < len(image_of):
        answers = _padded(list(map(sorted, _different(image_of, caption_of))))

    def image(number: int) -> Image.Image:
        return source.pair(int(first[number]))[0]

    def images(inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        labels = caption_of if answers is None else np.arange(len(first))
        return _readable(image, labels, inputs.plain, label)

    return RetrievalSet(captions, images, answers, len(first), lambda i: thumbnail(image(i)))


def image_numbers(source: ImageTextSource, caption_of: np.ndarray) -> np.ndarray:
    """Number of the image that each pair shows, int64 (n,): 0, 1, ... in order of first appearance.

    Pairs are of one image if they name one place (a path, a member of a shard), or if their images
    are the same bytes and the captions differ. Copies of a whole pair stay images of their own:
    they are no rivals, as they have one right caption.

    Args:
        caption_of: number of each pair's caption, (n,).
    """
    places: dict[Hashable, int] = {}
    place_of = np.array(
        [places.setdefault(source.image_place(i), len(places)) for i in range(len(source))]
    )
    first = np.unique(place_of, return_index=True)[1]
    by_size = defaultdict(list)
    for place, i in enumerate(first.tolist()):
        by_size[source.image_size(i)].append(place)
    groups = defaultdict(list)
    for size, alike in by_size.items():
        for place in (
            alike if size is not None and len(alike) > 1 else ()
        ):  # only these need reading
            with suppress(Unreadable):  # left out where it is read as a picture
                groups[hashlib.sha256(source.image_bytes(int(first[place]))).digest()].append(place)
    image_of_place, captions = np.arange(len(places)), _different(place_of, caption_of)
    for group in groups.values():
        if len(set().union(*(captions[place] for place in group))) > 1:
            image_of_place[group] = group[0]
    return np.unique(image_of_place[place_of], return_inverse=True)[1]


def _different(number_of: np.ndarray, caption_of: np.ndarray) -> list[set[int]]:
    """The different captions of the pairs with each number 0, 1, ...."""
    found: list[set[int]] = [set() for _ in range(int(number_of.max()) + 1)]
    for number, caption in zip(number_of.tolist(), caption_of.tolist(), strict=True):
        found[number].add(caption)
    return found


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of several lengths as one tensor, int64 (n, longest), -1 where a row has ended."""
    found = np.full((len(rows), max(map(len, rows))), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return torch.from_numpy(found)


class ClassFolder:
    """A folder with one sub-folder of images for each class, in alphabetical order; hidden ones are
    no classes.

    Args:
        folder: the folder.
        classes: names of the classes in place of the sub-folders'.
        synsets: whether these are in the order of ImageNet's sub-folders, which are named n01440764
            and so on; others may sort otherwise.

    Raises:
        SteeringError: no such folder, a class without images, another number of names than of
            sub-folders, or a sub-folder that is no synset's.
    """

    def __init__(
        self, folder: Path, classes: Sequence[str] | None, *, synsets: bool = False
    ) -> None:
        found = class_images(folder, "task.zero_shot.path")
        found.tally.report("task.zero_shot.path", "images", str(folder))
        self.classes = list(classes if classes is not None else found.classes)
        if len(self.classes) != len(found.classes):
            raise SteeringError(
                f"task.zero_shot.classes: {len(self.classes)} names for {len(found.classes)} folders in {folder}: "
                f"{textwrap.shorten(', '.join(found.classes), 200, placeholder=' ...')}"
            )
        other = [name for name in found.classes if not re.fullmatch(r"n\d{8}", name)]
        if synsets and other:
            raise SteeringError(
                f"task.zero_shot.classes: imagenet names sub-folders such as n01440764, but {folder} has "
                f"{other[0]!r}; give a list of names in the alphabetical order of the sub-folders"
            )
        self._files, self._labels = found.files, found.labels

    def batches(self, inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images (b, 3, h, w), class numbers (b,), and numbers of the images (b,)."""
        return _readable(self._image, self._labels, inputs.plain, "task.zero_shot.path")

    def _image(self, i: int) -> Image.Image:
        return read_image(self._files[i])


def _readable(
    image: Callable[[int], Image.Image],
    labels: np.ndarray,
    transform: Callable[[Image.Image], Tensor],
    name: str,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of image, label and number of this rank's share, without the images that cannot be
    read.

    Behind the last one it is reported how many these were, and how many images had to be changed.
    """
    broken: list[Unreadable] = []
    changed: Counter[str] = Counter()
    mine = distributed.share(len(labels))
    for start in range(mine.start, mine.stop, BATCH):
        pictures, kept = [], []
        for i in range(start, min(start + BATCH, mine.stop)):
            try:
                picture = image(i)
            except Unreadable as error:
                broken.append(error)
                continue
            pictures.append(transform(picture))
            changed.update(changes(picture))
            kept.append(i)
        if kept:
            yield torch.stack(pictures), torch.from_numpy(labels[kept]), torch.tensor(kept)
    count = distributed.total_count(len(broken))
    if count:
        first = f"; the first one: {broken[0]}" if broken else ""
        report_once(
            f"{name}: {count} of {len(labels)} images cannot be read and are left out{first}"
        )
    for reason in CHANGES:
        changed[reason] = distributed.total_count(changed[reason])
    if +changed:
        report_once(f"{name}: of {len(labels)} images, changed: {in_words(+changed)}")
