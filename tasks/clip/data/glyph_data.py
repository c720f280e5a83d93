"""Glyphs as training batches and as retrieval sets: all in memory, prepared whole batches at a
time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from steering import distributed
from steering.data import IndexedData, mix
from steering.exhibits import Exhibit, Labels, thumbnail
from steering.risk import Batch
from steering.storage import sha256

from ...glyphs import Glyphs, load_glyphs, split
from ...transforms import require_share
from ..evaluation import RetrievalSet
from ..models import ClipInputs
from .pairs import noisy_captions, subset, vague_caption

SHIFT = 2  # pixels, up to, in each direction
EVALUATED = 3000  # images of a split at most: recall to ±1 %, in a second


class GlyphData(IndexedData):
    """Training images with their (possibly shuffled) names.

    Args:
        views: prefix -> a model's inputs; "" gives "image" and "text", "reference" gives
            "reference_image", ....
        seed: of the augmentation: shifts by up to two pixels; None for none.
        caption_noise, part, data_seed, vague_captions: which names are shuffled, which images are
            kept, and whose names lose words, chosen by the data's own seed.
    """

    def __init__(
        self,
        views: Mapping[str, ClipInputs],
        seed: int | None,
        caption_noise: float = 0.0,
        part: tuple[float, float] = (0.0, 1.0),
        data_seed: int = 0,
        vague_captions: float = 0.0,
    ) -> None:
        glyphs = load_glyphs()
        train = split(glyphs).train
        rows = train[subset(len(train), part, data_seed)]
        self._images = torch.from_numpy(glyphs.images[rows])
        self._names = glyphs.names
        self._own = glyphs.character[rows]
        self._caption = self._own[noisy_captions(len(rows), caption_noise, data_seed)]
        require_share("vague_captions", vague_captions)
        self._texts, self._text = glyphs.names, self._caption
        if vague_captions:
            shown = [
                vague_caption(glyphs.names[character], number, vague_captions, data_seed)
                for number, character in enumerate(self._caption)
            ]
            self._texts = sorted(set(shown))
            place = {text: number for number, text in enumerate(self._texts)}
            self._text = np.array([place[text] for text in shown])
        self._seed = seed
        self._views = dict(views)
        self._tokens = {
            prefix: inputs.tokenizer(self._texts) for prefix, inputs in views.items()
        }  # (m, context) each

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        images = self._images[torch.from_numpy(index)]
        if self._seed is not None:
            images = shift(images, mix(self._seed, epoch, index))
        batch = {"index": torch.from_numpy(index)}
        for prefix, inputs in self._views.items():
            start = f"{prefix}_" if prefix else ""
            batch[f"{start}image"] = prepare(images, inputs)
            batch[f"{start}text"] = self._tokens[prefix][torch.from_numpy(self._text[index])]
        return batch

    def labels(self) -> Labels:
        """Wrong is a name that another character has brought in."""
        return Labels(wrong=self._caption != self._own)

    def exhibit(self, number: int) -> Exhibit:
        own, shown = self._names[self._own[number]], self._texts[self._text[number]]
        text = shown if shown == own else f"{shown} (own: {own})"
        return Exhibit(text, thumbnail(Image.fromarray(self._images[number].numpy())))

    def fingerprint(self) -> str:
        captions = [self._texts[number] for number in self._text]
        return sha256([self._images.numpy().tobytes(), *captions])


def shift(images: Tensor, random: np.ndarray) -> Tensor:
    """Move each image by up to SHIFT pixels on white paper, as its own uint64 says; uint8 (b, h,
    w)."""
    b, height, width = images.shape
    steps = np.uint64(2 * SHIFT + 1)
    down = torch.from_numpy((random % steps).astype(np.int64))[:, None] + torch.arange(
        height
    )  # (b, h)
    right = torch.from_numpy((random // steps % steps).astype(np.int64))[:, None] + torch.arange(
        width
    )  # (b, w)
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT), value=255)
    return padded[torch.arange(b)[:, None, None], down[:, :, None], right[:, None, :]]


def prepare(images: Tensor, inputs: ClipInputs) -> Tensor:
    """Grey uint8 (b, h, w) -> the model's normalised (b, 3, H, W)."""
    grey = images.float().div(255)[:, None]  # (b, 1, h, w)
    if grey.shape[-2:] != inputs.size:
        grey = F.interpolate(grey, inputs.size, mode="bilinear", antialias=True)
    mean, std = torch.tensor(inputs.mean), torch.tensor(inputs.std)
    return (grey - mean[:, None, None]) / std[:, None, None]


def glyph_retrieval() -> dict[str, RetrievalSet]:
    """The three held-out splits against the names of all characters, at most EVALUATED images
    each."""
    glyphs = load_glyphs()
    parts = split(glyphs)
    named = {"images": parts.images, "characters": parts.characters, "fonts": parts.fonts}
    return {f"heldout_{name}": _retrieval(glyphs, rows) for name, rows in named.items()}


def _retrieval(glyphs: Glyphs, rows: np.ndarray) -> RetrievalSet:
    rows = rows[
        np.argsort(mix(0, rows), kind="stable")[:EVALUATED]
    ]  # mixed, so that the first batch shows of everything

    def images(inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        mine = distributed.share(len(rows))
        for start in range(mine.start, mine.stop, 500):
            numbers = np.arange(start, min(start + 500, mine.stop))
            part = rows[numbers]
            yield (
                prepare(torch.from_numpy(glyphs.images[part]), inputs),
                torch.from_numpy(glyphs.character[part]),
                torch.from_numpy(numbers),
            )

    def picture(number: int) -> bytes:
        return thumbnail(Image.fromarray(glyphs.images[rows[number]]))

    return RetrievalSet(glyphs.names, images, picture=picture)
