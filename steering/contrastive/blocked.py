"""The global contrastive risk at the speed of its matrix products, in memory linear in the batch.

`naive.py` is the truth; this computes the same numbers in blocks of image rows, twice over. With d the feature width,

    D_ij = (S_ij − α·S^ref_ij)/τ,   E = exp(D − c)                    one exponential for both directions
    row sums of E, column sums of E                                   pass 1, in forward: log û of every anchor
    ∂L/∂S_ij = E_ij·(a_i + b_j),   a, b from the duals                pass 2, in backward: into ∂L/∂image and ∂L/∂text

so that a block costs one product in pass 1 (two with a reference), two in pass 2, and one (two) more if it was not kept. A
budget in bytes decides how many blocks are. Where one constant c cannot serve a whole block in floating point, and where every
anchor has a τ of its own, two exponentials with a shift per row and per column do. Derivation: docs/fast-contrastive.md.

Legend: b pairs of this rank, B over all ranks, m rows of a block. Direction 0 = image anchors, 1 = text anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.exchange import Parcel, expecting
from steering.contrastive.pairs import Pairs

HEADROOM = (
    40.0  # E ≤ e^40: sums of many stay finite, and items down to e^-127 of the largest are normal float32 numbers
)
DEPTH = 100.0  # an anchor's own sum may lie this many nats below the largest item before one exponential is not enough
NOTHING = -1e30  # stands at the positives: as good as −∞, but 0 times it is 0
SAMPLE = 64  # rows that are looked at for a log
BLOCK_BYTES = 8 << 20
DEFAULT_BUDGET = 512 << 20


@dataclass
class Blocks:
    """One batch: this rank's images against all texts, and what pass 1 leaves for pass 2.

    Attributes:
        image, text: (b, d) and (B, d), detached; text is gathered over the ranks.
        guide_image, guide_text: the reference's, (b, d′) and (B, d′), or None.
        tau: temperature, (), or one for each image of this rank, (b,); text_tau: the same, or one for each text, (B,).
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
        scale: float | Tensor = 1 / self.tau if self.shared else 1.0
        self.factors = [_number(scale), _number(-self.strength * scale)]  # of the target's product and the reference's
        count = math.ceil(b / max(64, BLOCK_BYTES // (B * self.image.element_size())))
        rows = math.ceil(b / count)
        self.slices = [slice(start, min(start + rows, b)) for start in range(0, b, rows)]
        self.first = distributed.rank() * b
        self.own = slice(self.first, self.first + b)
        self.scratch = [self.image.new_empty(0) for _ in range(3)]
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
    def taus(self) -> Tensor:
        """Temperatures of this rank's anchors, () or (2, b)."""
        return self.tau if self.shared else torch.stack([self.tau, self.text_tau[self.own]])

    @property
    def positives(self) -> Tensor:
        """D of this rank's positives as either anchor sees them, (b,), or (2, b) with temperatures of their own."""
        return self.diagonal if self.shared else self.diagonal / self.taus

    def scores(self, logits: Tensor, some: slice) -> tuple[Tensor, Tensor]:
        """D of a block in units of the images' and of the texts' temperatures, (m, B) each, both in memory to be overwritten.

        They are one and the same if the temperature is shared.
        """
        if self.shared:
            return logits, logits
        across = torch.div(logits, self.tau[some, None], out=self.buffer(1, len(logits)))
        return across, torch.div(logits, self.text_tau, out=self.buffer(2, len(logits)))

    def logits(self, some: slice, out: Tensor) -> Tensor:
        """D of some rows, (m, B), `NOTHING` at the positives, whose D go to `diagonal`; D·τ with temperatures of their own."""
        _product(self.image[some], self.text, self.factors[0], out, beta=0)
        if self.guide_image is not None and self.guide_text is not None:
            _product(self.guide_image[some], self.guide_text, self.factors[1], out, beta=1)
        own = out[:, self.first + some.start : self.first + some.stop].diagonal()
        self.diagonal[some] = own
        own.fill_(NOTHING)
        sampled = self.sample[some]
        sampled.copy_(out[: len(sampled)])
        return out

    def log_means(self) -> tuple[Tensor, Tensor]:
        """Pass 1: log of the mean over the negatives of exp(h/τ), (2, b); and the mean of h/τ under these weights, (2, b)."""
        sums = self._sums() if self.single else None
        if sums is None:
            self.single = False
            self.kept.clear()
            sums = self._exact_sums()
        rows, columns, row_means, column_means = sums
        if distributed.active():
            parts = distributed.gather(columns[None])  # (K, B)
            columns = parts.logsumexp(0)
            if self.with_means:
                column_means = ((parts - columns).exp() * distributed.gather(column_means[None])).sum(0)
        found = torch.stack([rows, columns[self.own]]) - self.positives - math.log(len(self.text) - 1)
        return found, torch.stack([row_means, column_means[self.own]]) - self.positives

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
        """log Σ_j exp D_ij and log Σ_i exp D_ij by one exponential, and E-weighted means of D; None if digits would be lost."""
        columns, tops = self.image.new_zeros(2, len(self.text)), self.image.new_full((), -math.inf)
        rows, means = torch.empty_like(self.diagonal), torch.zeros_like(self.diagonal)
        for number, some in enumerate(self.slices):
            m = some.stop - some.start
            out, keep = self.room(m)
            e = self.logits(some, out)
            shift = e.amax() - HEADROOM
            e.sub_(shift).exp_()
            top = torch.maximum(tops, shift)
            now, then = (shift - top).exp(), (tops - top).exp()
            total = e.sum(1)
            rows[some] = total.log() + shift
            columns[0].mul_(then).add_(e.sum(0).mul_(now))
            if self.with_means:
                weighted = torch.xlogy(e, e, out=self.buffer(1, m))  # E·(D − c)
                means[some] = weighted.sum(1) / total + shift
                columns[1].mul_(then).add_((weighted.sum(0) + shift * e.sum(0)).mul_(now))
            tops, self.shifts[number] = top, shift
            if keep:
                self.kept[number] = e
        down = columns[0].log() + tops
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
            rows[some], means[some] = self._softmax(logits, 1, None if self.shared else self.tau[some])
            down, here = self._softmax(logits, 0, None if self.shared else self.text_tau)
            merged = torch.logaddexp(columns, down)
            column_means = (columns - merged).exp() * column_means + (down - merged).exp() * here
            columns = merged
            if keep:
                self.kept[number] = logits
        return rows, columns, means, column_means

    def _softmax(self, logits: Tensor, dim: int, tau: Tensor | None) -> tuple[Tensor, Tensor]:
        """log Σ exp(logits/τ) along an axis, and the mean of logits/τ under these weights (zero unless it is wanted)."""
        top, e = logits.amax(dim, keepdim=True), self.buffer(1, len(logits))
        if tau is None:
            torch.sub(logits, top, out=e)
        else:
            top /= tau.unsqueeze(dim)
            _affine(logits, 1 / tau.unsqueeze(dim), -top, e)
        total = e.exp_().sum(dim)
        found = total.log() + top.squeeze(dim)
        if not self.with_means:
            return found, torch.zeros_like(found)
        mean = e.mul_(logits).sum(dim) / total
        return found, mean if tau is None else mean / tau

    def gradients(
        self, log_entries: tuple[Tensor, Tensor], signs: tuple[Tensor, Tensor] | None, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Pass 2: ∂L/∂image, (b, d), and ∂L/∂text of all texts from this rank's images, (B, d); positives excluded.

        The entry ∂L/∂S_ij is ±exp(D_ij + log a_i) ± exp(D_ij + log b_j), a of this rank's images, b of all texts; signs None
        means plus throughout. What is not wanted (a tower is frozen) is None, and its product is saved.
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
        return grad_image, grad_text

    def _entries(
        self, number: int, some: slice, log_a: Tensor, log_b: Tensor, signs: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        m, kept = some.stop - some.start, self.kept.get(number)
        if self.single:
            shift = self.shifts[number]
            e = self.logits(some, self.buffer(0, m)).sub_(shift).exp_() if kept is None else kept
            a, b = (log_a + shift).exp(), (log_b + shift).exp()
            if signs is not None:
                a, b = a * signs[0], b * signs[1]
            return e.mul_(torch.add(a, b, out=self.buffer(1, m)))
        across, along = self.logits(some, self.buffer(0, m)) if kept is None else kept, self.buffer(1, m)
        if self.shared:
            torch.add(across, log_b, out=along)
            across.add_(log_a)
        else:
            _affine(across, 1 / self.text_tau, log_b, along)
            across.div_(self.tau[some, None]).add_(log_a)
        across.exp_()
        along.exp_()
        return across.add_(along) if signs is None else across.mul_(signs[0]).add_(along.mul_(signs[1]))


def _number(factor: float | Tensor) -> float | Tensor:
    """A number where that costs nothing: a GPU would have to wait for it."""
    return float(factor) if not isinstance(factor, Tensor) or factor.device.type == "cpu" else factor


def _product(x: Tensor, y: Tensor, factor: float | Tensor, out: Tensor, beta: int) -> None:
    """out ← β·out + factor·x yᵀ. A number goes into the product, a tensor into its narrow side."""
    if isinstance(factor, Tensor):
        x, factor = x * factor, 1.0
    out.addmm_(x, y.T, beta=beta, alpha=factor)


def _affine(x: Tensor, slope: Tensor, offset: Tensor, out: Tensor) -> None:
    """out ← slope·x + offset. Along a row both are of one element, and two passes are the faster way."""
    if slope.shape[-1] == 1:
        torch.mul(x, slope, out=out).add_(offset)
    else:
        torch.addcmul(offset, x, slope, out=out)


class GlobalRisk(torch.autograd.Function):
    """(height, log û, mean of h/τ), each (2, b), of every anchor; the gradient is that of the height, ∂ log(ε + û)/∂S, in τ.

    The height is log(ε + u), where u is the running estimate that û has just moved: as everywhere, the weights are
    exp(h/τ)/((B − 1)(ε + u)), detached. What other ranks know of the texts' gradient goes into the parcel.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        image: Tensor,  # noqa: ARG004  (the blocks hold them, detached)
        text: Tensor,  # noqa: ARG004
        blocks: Blocks,
        heights: Callable[[Tensor], Tensor],
        parcel: Parcel,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(blocks.image.device.type, enabled=False):
            log_means, means = blocks.log_means()
        height = heights(log_means)
        ctx.blocks, ctx.parcel = blocks, parcel
        ctx.save_for_backward(height, log_means)
        ctx.mark_non_differentiable(log_means, means)
        return height, log_means, means

    @staticmethod
    def backward(ctx, weights: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        height, log_means = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        weights = weights / blocks.taus
        pull = (weights * (log_means - height).exp()).sum(0)[:, None]  # what the positives push back
        log_entry = weights.abs().log() - height - blocks.positives - math.log(len(blocks.text) - 1)
        signs = weights.sign()
        with torch.autocast(blocks.image.device.type, enabled=False):
            every = distributed.gather(torch.stack([log_entry[1], signs[1]], -1))  # (B, 2): one exchange
            plain = signs.device.type == "cpu" and not bool((signs[0] < 0).any() or (every[:, 1] < 0).any())
            grad_image, grad_text = blocks.gradients(
                (log_entry[0], every[:, 0]), None if plain else (signs[0], every[:, 1]), ctx.needs_input_grad[:2]
            )
        if grad_image is not None:
            grad_image.addcmul_(pull, blocks.text[blocks.own], value=-1)
        if grad_text is None:
            return grad_image, None, None, None, None
        ctx.parcel.content = distributed.send_to_owner(grad_text)
        return grad_image, -pull * blocks.image, None, None, None


def global_risk(pairs: Pairs, blocks: Blocks, heights: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """`GlobalRisk` of the pairs that the blocks were made of; `heights` takes log û to log(ε + u), (2, b) both."""
    text, parcel = expecting(pairs.text)
    found: tuple[Tensor, Tensor, Tensor] = GlobalRisk.apply(pairs.image, text, blocks, heights, parcel)
    return found
