"""What a batch of pairs asks of the blocked passes: features, temperatures, and the D of a block of image rows.

    D_ij = (S_ij − α·S^ref_ij)/τ

in bits, not nats: log₂e goes into the product, where it costs nothing, and 2^x is up to three times
as fast as e^x. Nothing here changes once it is made.

Legend: b pairs of this rank, B over all ranks, m rows of a block. Direction 0 = image anchors, 1 =
text anchors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.products import number, product

LOG2E, LN2 = 1 / math.log(2), math.log(2)  # bits in a nat, nats in a bit
# Stands at the positives: as good as −∞, but 0 times it is 0, and less itself it is 0, where −∞
# makes NaN of both. Times log₂e/τ it stays within float32 for every τ above 5e-9.
NOTHING = -1e30
BLOCK_BYTES = 8 << 20  # a block that fits into a processor's cache
# On a GPU a block takes some fifty kernels. Of 8 MB each is over before the next one is launched.
BLOCK_BYTES_GPU = 64 << 20
FEWEST_ROWS = 64  # of a block, however large the batch: products of fewer rows are slow


class Features(NamedTuple):
    """Of one batch, detached: image (b, d) and text (B, d); the reference's, (b, d′) and (B, d′), or
    None. Texts are gathered over the ranks."""

    image: Tensor
    text: Tensor
    guide_image: Tensor | None = None
    guide_text: Tensor | None = None


@dataclass(frozen=True)
class Scales:
    """What makes D of cosines.

    Attributes:
        tau: temperature, (), or one for each image of this rank, (b,); text_tau: the same, or one
            for each text, (B,).
        strength: α.
    """

    tau: Tensor
    text_tau: Tensor
    strength: float | Tensor = 0.0

    @property
    def shared(self) -> bool:
        """Whether all anchors have one τ."""
        return self.tau.ndim == 0

    @cached_property
    def factors(self) -> tuple[float | Tensor, float | Tensor]:
        """Of the target's product and of the reference's. With temperatures of their own rows and
        columns divide the same product by different τ, so τ stays out of it."""
        # Both constants go into the products, which scale for nothing. −α makes the second product,
        # which adds to the first, a subtraction.
        scale: float | Tensor = LOG2E / self.tau if self.shared else 1.0
        return number(scale), number(-self.strength * scale)

    @cached_property
    def rates(self) -> tuple[Tensor, Tensor]:
        """What the product still lacks with temperatures of their own: log₂e/τ, (b,) and (B,)."""
        return LOG2E / self.tau, LOG2E / self.text_tau

    def of_own(self, own: slice) -> Tensor:
        """Temperatures of this rank's anchors, () or (2, b)."""
        return self.tau if self.shared else torch.stack([self.tau, self.text_tau[own]])


@dataclass(frozen=True)
class Problem:
    """One batch: this rank's images against all texts, b rows of B.

    Attributes:
        features: of target and reference.
        scales: temperatures and strength.
        budget: bytes that pass 1 may keep for pass 2.
        with_means: whether the mean of D under E is wanted, for the slope of a learned τ.
        single: whether to try one exponential; never with temperatures of their own.
    """

    features: Features
    scales: Scales
    budget: int = 0
    with_means: bool = False
    single: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        """(b, B)."""
        return len(self.features.image), len(self.features.text)

    @property
    def own(self) -> slice:
        """Where this rank's texts stand among all."""
        b, _ = self.shape
        # Ranks bring equally many pairs, gathered in the order of the ranks.
        first = distributed.rank() * b
        return slice(first, first + b)

    @property
    def others(self) -> int:
        """Negatives of an anchor, B − 1."""
        return self.shape[1] - 1

    @property
    def slices(self) -> list[slice]:
        """The rows of each block: as equal as can be, for a last block of a few rows is a slow one."""
        b, B = self.shape
        row_bytes = B * self.features.image.element_size()
        most = BLOCK_BYTES if self.features.image.device.type == "cpu" else BLOCK_BYTES_GPU
        count = math.ceil(b / max(FEWEST_ROWS, most // row_bytes))
        rows = math.ceil(b / count)
        return [slice(start, min(start + rows, b)) for start in range(0, b, rows)]

    def logits(self, some: slice, out: Tensor) -> Tensor:
        """D of some rows into `out`, (m, B), `NOTHING` at the positives; their D, (m,), come back.
        D·τ with temperatures of their own."""
        image, text, guide_image, guide_text = self.features
        target, reference = self.scales.factors
        # β = 0 does not look at `out`, which may be memory that was never written.
        product(image[some], text, target, out, beta=0)
        if guide_image is not None and guide_text is not None:
            product(guide_image[some], guide_text, reference, out, beta=1)
        first = self.own.start
        # Row r of the block is image some.start + r. Its own text stands among those of all ranks,
        # behind the `first` ones of the ranks before. A view, so it is copied before it is filled.
        diagonal = out[:, first + some.start : first + some.stop].diagonal()
        positives = diagonal.clone()
        # An anchor's own pair is no negative. Filling is cheaper than a mask in every later pass.
        diagonal.fill_(NOTHING)
        return positives


class Scratch:
    """Memory for one block at a time, the same for every block of a pass: pages that are new to the
    process cost more than what is computed in them."""

    def __init__(self, like: Tensor, columns: int) -> None:
        self.like, self.columns = like, columns
        self.memory = [like.new_empty(0) for _ in range(2)]

    def take(self, place: int, m: int) -> Tensor:
        """(m, B), uninitialised; valid until the next one is taken at the same place, 0 or 1."""
        size = m * self.columns
        # The first block is the largest.
        if self.memory[place].numel() < size:
            self.memory[place] = self.like.new_empty(size)
        return self.memory[place][:size].view(m, -1)
