"""The global contrastive risk at the speed of its matrix products, in memory linear in the batch.

`naive.py` is the truth; this computes the same numbers in blocks of image rows, twice over. With d
the feature width,

    D_ij = (S_ij − α·S^ref_ij)/τ,   E = exp(D − c)                    one exponential for both directions
    row sums of E, column sums of E                                   pass 1, in forward: log û of every anchor
    ∂L/∂S_ij = E_ij·(a_i + b_j),   a, b from the duals                pass 2, in backward: into ∂L/∂image and ∂L/∂text

so that a block costs one product in pass 1 (two with a reference), two in pass 2, and one (two)
more if it was not kept. A budget in bytes decides how many blocks are. Where one constant c cannot
serve a whole block in floating point, and where every anchor has a τ of its own, two exponentials
with a shift per row and per column do. Derivation: docs/fast-contrastive.md.

In here D, its sums' logarithms and whatever is added to them are in bits, not nats: log₂e goes into
the product, where it costs nothing, and 2^x is up to three times as fast as e^x.

Legend: b pairs of this rank, B over all ranks, m rows of a block. Direction 0 = image anchors, 1 =
text anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.products import affine, product
from steering.contrastive.products import number as number_of

LOG2E, LN2 = 1 / math.log(2), math.log(2)  # bits in a nat, nats in a bit
# E ≤ 2^58: sums of many stay finite, and items down to 2^-184 of the largest are normal float32
# numbers
HEADROOM = 58.0
# an anchor's own sum may lie this many bits below the largest item before one exponential is not
# enough
DEPTH = 144.0
NOTHING = -1e30  # stands at the positives: as good as −∞, but 0 times it is 0
SAMPLE = 64  # rows that are looked at for a log
BLOCK_BYTES = 8 << 20
DEFAULT_BUDGET = 512 << 20
FEATURES = ("image", "text", "guide_image", "guide_text")


@dataclass
class Blocks:
    """One batch: this rank's images against all texts, and what pass 1 leaves for pass 2.

    Attributes:
        image, text: (b, d) and (B, d), detached; text is gathered over the ranks.
        guide_image, guide_text: the reference's, (b, d′) and (B, d′), or None.
        tau: temperature, (), or one for each image of this rank, (b,); text_tau: the same, or one
            for each text, (B,).
        strength: α.
        budget: bytes for kept blocks.
        with_means: whether the mean of D under E is wanted, for the slope of a learned τ.
        single: whether to try one exponential; never with temperatures of their own.
    """

    image: Tensor
    text: Tensor
    guide_image: Tensor | None
    guide_text: Tensor | None
    tau: Tensor
    text_tau: Tensor
    strength: float | Tensor
    budget: int
    with_means: bool = False
    kept: dict[int, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    single: bool = True

    def __post_init__(self) -> None:
        b, B = len(self.image), len(self.text)
        self.shared = self.tau.ndim == 0
        self.single &= self.shared
        scale: float | Tensor = LOG2E / self.tau if self.shared else 1.0
        self.factors = [
            number_of(scale),
            number_of(-self.strength * scale),
        ]  # of the target's product and the reference's
        self.rates = (LOG2E / self.tau, LOG2E / self.text_tau)
        count = math.ceil(b / max(64, BLOCK_BYTES // (B * self.image.element_size())))
        rows = math.ceil(b / count)
        self.slices = [slice(start, min(start + rows, b)) for start in range(0, b, rows)]
        self.first = distributed.rank() * b
        self.own = slice(self.first, self.first + b)
        # Temperatures of this rank's anchors, () or (2, b).
        self.taus = self.tau if self.shared else torch.stack([self.tau, self.text_tau[self.own]])
        self.scratch = [self.image.new_empty(0) for _ in range(2)]
        self.diagonal = self.image.new_empty(b)
        self.sample = self.image.new_empty(min(SAMPLE, b), B)  # the first rows of `logits`

    def buffer(self, number: int, m: int) -> Tensor:
        """Uninitialised (m, B), the same memory for every block."""
        size = m * len(self.text)
        if self.scratch[number].numel() < size:
            self.scratch[number] = self.image.new_empty(size)
        return self.scratch[number][:size].view(m, -1)

    def room(self, m: int) -> tuple[Tensor, bool]:
        """Where the next block goes, (m, B), and whether it can be kept."""
        keep = (
            sum(x.numel() for x in self.kept.values()) + m * len(self.text)
        ) * self.image.element_size() <= self.budget
        return (self.image.new_empty(m, len(self.text)) if keep else self.buffer(0, m)), keep

    @property
    def positives(self) -> Tensor:
        """D of this rank's positives as either anchor sees them, bits, (b,), or (2, b) with
        temperatures of their own."""
        return self.diagonal if self.shared else self.diagonal * (LOG2E / self.taus)

    def sampled(self) -> tuple[Tensor, Tensor]:
        """D of the sampled image anchors, `NOTHING` or less at the positives, (m, B), and of their
        positives, (m, 1), in nats."""
        some = slice(0, len(self.sample))
        scale = LN2 if self.shared else 1 / self.tau[some, None]
        return self.sample * scale, self.diagonal[some, None] * scale

    def logits(self, some: slice, out: Tensor) -> Tensor:
        """D of some rows, (m, B), `NOTHING` at the positives, whose D go to `diagonal`; D·τ with
        temperatures of their own."""
        product(self.image[some], self.text, self.factors[0], out, beta=0)
        if self.guide_image is not None and self.guide_text is not None:
            product(self.guide_image[some], self.guide_text, self.factors[1], out, beta=1)
        own = out[:, self.first + some.start : self.first + some.stop].diagonal()
        self.diagonal[some] = own
        own.fill_(NOTHING)
        sampled = self.sample[some]
        sampled.copy_(out[: len(sampled)])
        return out

    def log_means(self) -> tuple[Tensor, Tensor]:
        """Pass 1: log of the mean over the negatives of exp(h/τ), and the mean of h/τ under these
        weights, (2, b), in nats."""
        sums = self._sums() if self.single else None
        if sums is None:
            self.single = False
            self.kept.clear()
            sums = self._exact_sums()
        rows, columns, row_means, column_means = sums
        positives = self.positives
        if distributed.active():  # every rank is told what the others have summed up in its columns
            sent = torch.stack([columns, column_means], -1) if self.with_means else columns[:, None]
            parts = distributed.swap(sent).view(-1, *sent[self.own].shape).unbind(-1)  # (K, b) each
            top = parts[0].amax(0)
            columns = (parts[0] - top).exp2().sum(0).log2() + top
            column_means = (
                ((parts[0] - columns).exp2() * parts[-1]).sum(0) if self.with_means else row_means
            )
        found = torch.stack([rows, columns]) - positives - math.log2(len(self.text) - 1)
        return LN2 * found, LN2 * (torch.stack([row_means, column_means]) - positives)

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """log Σ_j 2^D_ij and log Σ_i 2^D_ij by one exponential, and E-weighted means of D; None if
        digits would be lost."""
        columns, tops = self.image.new_zeros(2, len(self.text)), self.image.new_full((), -math.inf)
        rows, means = torch.empty_like(self.diagonal), torch.zeros_like(self.diagonal)
        for number, some in enumerate(self.slices):
            m = some.stop - some.start
            out, keep = self.room(m)
            e = self.logits(some, out)
            shift = e.amax() - HEADROOM
            if self.with_means:
                weighted = torch.sub(e, shift, out=self.buffer(1, m))
                weighted.mul_(torch.exp2(weighted, out=e))  # E·(D − c)
            else:
                e.sub_(shift).exp2_()
            top = torch.maximum(tops, shift)
            now, then = (shift - top).exp2(), (tops - top).exp2()
            total, down = e.sum(1), e.sum(0)
            rows[some] = total.log2() + shift
            if self.with_means:
                means[some] = weighted.sum(1) / total + shift
                columns[1].mul_(then).add_(weighted.sum(0).add_(shift * down).mul_(now))
            columns[0].mul_(then).add_(down.mul_(now))
            tops, self.shifts[number] = top, shift
            if keep:
                self.kept[number] = e
        down = columns[0].log2() + tops
        lowest = torch.minimum(rows.amin(), down.amin())
        if not bool(lowest > tops + HEADROOM - DEPTH):
            return None
        return rows, down, means, columns[1] / columns[0]

    def _exact_sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same with a shift for each row and each column."""
        columns = self.image.new_full((len(self.text),), -math.inf)
        column_means = torch.zeros_like(columns)
        rows, means = torch.empty_like(self.diagonal), torch.zeros_like(self.diagonal)
        for number, some in enumerate(self.slices):
            out, keep = self.room(some.stop - some.start)
            logits = self.logits(some, out)
            rows[some], means[some] = self._softmax(
                logits, 1, None if self.shared else self.rates[0][some, None]
            )
            down, here = self._softmax(logits, 0, None if self.shared else self.rates[1])
            merged = torch.logaddexp2(columns, down)
            column_means = (columns - merged).exp2() * column_means + (down - merged).exp2() * here
            columns = merged
            if keep:
                self.kept[number] = logits
        return rows, columns, means, column_means

    def _softmax(self, logits: Tensor, dim: int, rate: Tensor | None) -> tuple[Tensor, Tensor]:
        """log Σ 2^(rate·logits) along an axis, and the mean of rate·logits under these weights
        (zero unless it is wanted)."""
        top, e = logits.amax(dim, keepdim=True), self.buffer(1, len(logits))
        if rate is None:
            torch.sub(logits, top, out=e)
        else:
            top *= rate
            affine(logits, rate, -top, e)
        total = e.exp2_().sum(dim)
        found = total.log2() + top.squeeze(dim)
        if not self.with_means:
            return found, torch.zeros_like(found)
        mean = e.mul_(logits).sum(dim) / total
        return found, mean if rate is None else mean * rate.view(-1)

    def gradients(
        self,
        log_entries: tuple[Tensor, Tensor],
        signs: tuple[Tensor, Tensor] | None,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pass 2: ∂L/∂image, (b, d), and ∂L/∂text of all texts from this rank's images, (B, d);
        positives excluded.

        The entry ∂L/∂S_ij is ±2^(D_ij + log a_i) ± 2^(D_ij + log b_j), a of this rank's images, b
        of all texts; signs None means plus throughout. What is not wanted (a tower is frozen) is
        None, and its product is saved.
        """
        grad_image = torch.empty_like(self.image) if wanted[0] else None
        grad_text = torch.empty_like(self.text) if wanted[1] else None
        for number, some in enumerate(self.slices):
            here = None if signs is None else (signs[0][some, None], signs[1])
            g = self._entries(number, some, log_entries[0][some, None], log_entries[1], here)
            if grad_image is not None:
                torch.mm(g, self.text, out=grad_image[some])
            if grad_text is not None:
                grad_text.addmm_(g.T, self.image[some], beta=min(number, 1))
            self.kept.pop(number, None)
        self.scratch = [x.new_empty(0) for x in self.scratch]
        return grad_image, grad_text

    def put_away(self) -> list[Tensor | None]:
        """The features, which these blocks then hold no more: autograd does between the passes, and
        knows when to let go."""
        return [vars(self).pop(name) for name in FEATURES]

    def take_up(self, features: Sequence[Tensor | None]) -> None:
        vars(self).update(zip(FEATURES, features, strict=True))

    def _entries(
        self,
        number: int,
        some: slice,
        log_a: Tensor,
        log_b: Tensor,
        signs: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        m, kept = some.stop - some.start, self.kept.get(number)
        if self.single:
            shift = self.shifts[number]
            e = self.logits(some, self.buffer(0, m)).sub_(shift).exp2_() if kept is None else kept
            a, b = (log_a + shift).exp2(), (log_b + shift).exp2()
            if signs is not None:
                a, b = a * signs[0], b * signs[1]
            return e.mul_(torch.add(a, b, out=self.buffer(1, m)))
        across, along = (
            self.logits(some, self.buffer(0, m)) if kept is None else kept,
            self.buffer(1, m),
        )
        if self.shared:
            torch.add(across, log_b, out=along)
            across.add_(log_a)
        else:
            affine(across, self.rates[1], log_b, along)
            across.mul_(self.rates[0][some, None]).add_(log_a)
        across.exp2_()
        along.exp2_()
        return (
            across.add_(along)
            if signs is None
            else across.mul_(signs[0]).add_(along.mul_(signs[1]))
        )
