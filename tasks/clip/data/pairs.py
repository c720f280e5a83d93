"""Training batches of image–text pairs: a source, seen through the preprocessing of one or more
models.

Caption noise and subsets are drawn here by stateless hashing, so that they depend on nothing but
their arguments.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from steering.data import IndexedData, mix, seeded, uniform
from steering.errors import SteeringError
from steering.exhibits import Exhibit, Labels, thumbnail
from steering.risk import Batch

from ...pictures import changes
from ...transforms import require_part, require_share
from .source import ImageTextSource, Unreadable

REPLACEMENTS = (
    16  # with a tenth of the data unreadable, one batch row in 10^17 finds no replacement
)

# Keys of the hash: the draws from one seed are independent.
_NOISE, _SUBSET, _REPLACEMENT, _VAGUE, _WORD = 1, 2, 3, 4, 5
_log = logging.getLogger("steering")


@dataclass(frozen=True)
class View:
    """How one model wants to see a pair.

    Attributes:
        transform: RGB image -> float tensor of one shape; may draw from Python's and torch's global
            generators only.
        tokenizer: b captions -> int64 (b, context).
    """

    transform: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]


class PairData(IndexedData):
    """Pairs of a source under the numbers 0 .. m−1, as tensors for every view.

    Args:
        source: where the pairs come from.
        views: prefix -> view; "" gives "image" and "text", "reference" gives "reference_image" and
            "reference_text".
        seed: of the augmentation.
        augment: True redraws the transforms' randomness each epoch, False fixes it for good.
        caption_noise: fraction of the pairs whose captions are shuffled among them; see
            `noisy_captions`.
        part: [low, high] of the source to keep, as shares; see `subset`. Noise is drawn among the
            pairs kept.
        vague_captions: share of the pairs that show half of their caption's words; see
            `vague_caption`.
        data_seed: of noise, subset, lost words and replacements; None takes `seed`. Give it to hold the data
            still between seeds.

    Raises:
        SteeringError: caption_noise, vague_captions or part out of range.
    """

    def __init__(
        self,
        source: ImageTextSource,
        views: Mapping[str, View],
        seed: int,
        augment: bool,
        caption_noise: float = 0.0,
        part: tuple[float, float] = (0.0, 1.0),
        data_seed: int | None = None,
        vague_captions: float = 0.0,
    ) -> None:
        if not views:
            raise ValueError("views: expected at least one, under the prefix ''")
        self._source, self._views, self._seed, self._augment = source, dict(views), seed, augment
        self._data_seed = seed if data_seed is None else data_seed
        kept = subset(len(source), part, self._data_seed)
        shown = noisy_captions(len(kept), caption_noise, self._data_seed)
        require_share("vague_captions", vague_captions)
        self._vague = vague_captions
        self._size = len(kept)
        # None says "as they are" and saves a large clean set two arrays in every worker.
        self._kept = kept if len(kept) < len(source) else None  # (m,)
        self._shown = shown if (shown != np.arange(len(kept))).any() else None  # (m,)
        self._warned: set[str] = set()  # what this process has told of this data set

    def __len__(self) -> int:
        return self._size

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        """The pairs `index` (b ≥ 1) through every view; see `IndexedData.batch`.

        Returns:
            For each view its images (b, ...) and tokens (b, context), and "index" (b,) and
            "skipped" ().

        Raises:
            SteeringError: an example and all its replacements are unreadable.
            IndexError: a number outside [0, m).
        """
        images: dict[str, list[Tensor]] = {prefix: [] for prefix in self._views}
        captions, delivered = [], []
        for wanted in index.tolist():
            number, image, caption = self._readable(wanted)
            for prefix, view in self._views.items():
                # Seeded anew for each view: where two crop in the same way, they crop the same
                # part.
                with (
                    seeded(self._seed, epoch, number)
                    if self._augment
                    else seeded(self._seed, number)
                ):
                    images[prefix].append(view.transform(image))
            captions.append(caption)
            delivered.append(number)
        batch = {
            "index": torch.tensor(delivered, dtype=torch.int64),
            "skipped": torch.tensor(int((np.asarray(delivered) != index).sum()), dtype=torch.int64),
        }
        for prefix, view in self._views.items():
            key = f"{prefix}_" if prefix else ""
            batch[f"{key}image"] = torch.stack(images[prefix])  # (b, ...)
            batch[f"{key}text"] = view.tokenizer(captions)  # (b, context)
        return batch

    def fingerprint(self) -> str:
        """Hex sha256 of the source, and of what subset and noise make of it: without them the seed
        has no part."""
        digest = hashlib.sha256(self._source.fingerprint().encode())
        for name, numbers in (("subset", self._kept), ("noise", self._shown)):
            if numbers is not None:
                digest.update(name.encode() + numbers.astype("<i8").tobytes())
        if self._vague:
            digest.update(f"vague {self._vague} {self._data_seed}".encode())
        return digest.hexdigest()

    def labels(self) -> Labels:
        """Wrong is a caption that another pair has brought in; it may still say the same."""
        shown = self._shown
        moved = np.zeros(len(self), dtype=bool) if shown is None else shown != np.arange(len(self))
        return Labels(wrong=moved)

    def exhibit(self, number: int) -> Exhibit:
        """A pair as it stands, and the image's own caption if it shows another one."""
        try:
            image, caption = self._pair(number)
            own = self._source.caption(self._in_source(number))
        except Unreadable as error:
            return Exhibit(str(error))
        return Exhibit(caption if caption == own else f"{caption} (own: {own})", thumbnail(image))

    def _readable(self, wanted: int) -> tuple[int, Image.Image, str]:
        """Pair `wanted`, or the first readable one of its replacements: number, image, caption."""
        for attempt in range(REPLACEMENTS + 1):
            number = wanted
            if attempt:
                number = int(mix(self._data_seed, _REPLACEMENT, wanted, attempt)) % len(self)
            try:
                image, caption = self._pair(number)
            except Unreadable as error:
                self._warn_once(
                    "",
                    f"{error}; it is replaced by another example, as others will be without a word",
                )
                last = error
                continue
            for change in changes(image):
                self._warn_once(
                    change,
                    f"example {number}: the image is {change}, as others will be without a word",
                )
            return number, image, caption
        raise SteeringError(
            f"example {wanted} and {REPLACEMENTS} others drawn to replace it are all unreadable; the last one: {last}"
        ) from last

    def _pair(self, number: int) -> tuple[Image.Image, str]:
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} of {len(self)}")
        image, caption = self._source.pair(self._in_source(number))
        if self._shown is not None and self._shown[number] != number:
            caption = self._source.caption(self._in_source(int(self._shown[number])))
        return image, vague_caption(caption, number, self._vague, self._data_seed)

    def _in_source(self, number: int) -> int:
        return number if self._kept is None else int(self._kept[number])

    def _warn_once(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning(message)


def subset(n: int, part: tuple[float, float], seed: int) -> np.ndarray:
    """Those of the numbers 0 .. n−1 that stand between ⌊low·n⌉ and ⌊high·n⌉ in a random order,
    sorted int64 (m,).

    Parts that do not overlap share no number, and a part within another one keeps within it.

    Raises:
        SteeringError: not 0 ≤ low < high ≤ 1, or the part keeps none.
    """
    require_part(part)
    low, high = part
    kept = _shuffled(n, seed, _SUBSET)[round(low * n) : round(high * n)]
    if not len(kept):
        raise SteeringError(f"part, fraction: {high - low:g} of {n} examples is none")
    return np.sort(kept)


def noisy_captions(n: int, p: float, seed: int) -> np.ndarray:
    """Which pair's caption each pair shows, int64 (n,): its own, but for a random ⌊p·n⌉ that swap
    theirs in a ring.

    None in the ring keeps its own (though another pair may have the same words), no caption is
    lost, and a smaller p's noisy pairs are among a larger's. One pair alone makes no ring, and
    keeps its caption.

    Raises:
        SteeringError: p is not in [0, 1].
    """
    require_share("caption_noise", p)
    size = round(p * n)
    shown = np.arange(n, dtype=np.int64)
    if size > 1:
        ring = _shuffled(n, seed, _NOISE)[
            :size
        ]  # in random order, so that the next one round is a random other
        shown[ring] = np.roll(ring, 1)
    return shown


def vague_caption(caption: str, number: int, p: float, seed: int) -> str:
    """The caption that pair `number` shows: its own, but for a random share p of the pairs, whose
    captions lose each word with probability one half.

    One word stays at least. A smaller p's vague captions are among a larger's, with the same words.
    """
    words = caption.split()
    if len(words) < 2 or uniform(seed, _VAGUE, number) >= p:
        return caption
    drawn = mix(seed, _WORD, number, np.arange(len(words) + 1))
    stays = drawn[:-1] % 2 == 1
    stays[int(drawn[-1]) % len(words)] |= not stays.any()
    return " ".join(word for word, one in zip(words, stays, strict=True) if one)


def _shuffled(n: int, seed: int, key: int) -> np.ndarray:
    """0 .. n−1 in random order, int64 (n,): sorted by hash, so the same with any version of
    numpy."""
    return np.argsort(mix(seed, key, np.arange(n)), kind="stable").astype(np.int64)
