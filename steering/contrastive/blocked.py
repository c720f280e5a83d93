"""The global contrastive risk at the speed of its matrix products, in memory linear in the batch.

`naive.py` is the truth; this computes the same numbers in blocks of image rows, twice over. With d the feature width,

    D_ij = (S_ij − α·S^ref_ij)/τ,   E = exp(D − c)                    one exponential for both directions
    row sums of E, column sums of E                                   pass 1, in forward: log û of every anchor
    ∂L/∂S_ij = E_ij·(a_i + b_j),   a, b from the duals                pass 2, in backward: into ∂L/∂image and ∂L/∂text

so that a block costs one product in pass 1 (two with a reference), two in pass 2, and one (two) more if it was not kept. A
budget in bytes decides how many blocks are. Where one constant c cannot serve a whole block in floating point, two exponentials
with a shift per row and per column do. Derivation: docs/fast-contrastive.md.

Legend: b pairs of this rank, B over all ranks, m rows of a block. Direction 0 = image anchors, 1 = text anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.pairs import Pairs

HEADROOM = (
    40.0  # E ≤ e^40: sums of many stay finite, and items down to e^-127 of the largest are normal float32 numbers
)
DEPTH = 100.0  # an anchor's own sum may lie this many nats below the largest item before one exponential is not enough
BLOCK_BYTES = 8 << 20
DEFAULT_BUDGET = 512 << 20


@dataclass
class Blocks:
    """One batch: features of this rank's images against all texts, and what pass 1 leaves for pass 2.

    Attributes:
        image, text: (b, d) and (B, d), detached; text is gathered over the ranks.
        guide_image, guide_text: the reference's, (b, d′) and (B, d′), or None.
        tau: temperature; strength: α.
        budget: bytes for kept blocks.
    """

    image: Tensor
    text: Tensor
    guide_image: Tensor | None
    guide_text: Tensor | None
    tau: Tensor
    strength: float
    budget: int
    kept: dict[int, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    single: bool = True
    diagonal: Tensor | None = None

    def __post_init__(self) -> None:
        b, B = len(self.image), len(self.text)
        rows = max(64, BLOCK_BYTES // (B * self.image.element_size()))
        count = math.ceil(b / rows)
        rows = math.ceil(b / count)
        self.slices = [slice(start, min(start + rows, b)) for start in range(0, b, rows)]
        self.first = distributed.rank() * b
        self.scratch = [self.image.new_empty(0), self.image.new_empty(0)]

    def buffer(self, number: int, m: int) -> Tensor:
        """Uninitialised (m, B), the same memory for every block."""
        size = m * len(self.text)
        if self.scratch[number].numel() < size:
            self.scratch[number] = self.image.new_empty(size)
        return self.scratch[number][:size].view(m, -1)

    def logits(self, some: slice, out: Tensor) -> tuple[Tensor, Tensor]:
        """D of some rows with −∞ at the positives, (m, B), and the positives' D, (m,)."""
        torch.mm(self.image[some], self.text.T, out=out)
        if self.guide_image is not None and self.guide_text is not None:
            out.addmm_(self.guide_image[some], self.guide_text.T, alpha=-self.strength)
        out.div_(self.tau)
        own = torch.arange(some.start, some.stop, device=out.device)
        diagonal = out[own - some.start, own + self.first]
        out[own - some.start, own + self.first] = -math.inf
        return out, diagonal

    def log_means(self) -> Tensor:
        """log of the mean over the negatives of exp(h/τ), (2, b): pass 1."""
        with torch.autocast(self.image.device.type, enabled=False):
            sums = self._sums() if self.single else None
            if sums is None:
                self.single = False
                self.kept.clear()
                sums = self._exact_sums()
        rows, columns = sums
        if distributed.active():
            parts = distributed.gather(columns[None])  # (K, B)
            columns = parts.logsumexp(0)[self.first : self.first + len(self.image)]
        assert self.diagonal is not None
        return torch.stack([rows, columns]) - self.diagonal - math.log(len(self.text) - 1)

    def _sums(self) -> tuple[Tensor, Tensor] | None:
        """log Σ_j exp D_ij and log Σ_i exp D_ij by one exponential; None if some anchor would lose its digits."""
        B, size = len(self.text), self.image.element_size()
        columns = self.image.new_zeros(B)
        rows, diagonals = [], []
        top = self.image.new_full((), -math.inf)
        for number, some in enumerate(self.slices):
            m = some.stop - some.start
            keep = (sum(part.numel() for part in self.kept.values()) + m * B) * size <= self.budget
            e, diagonal = self.logits(some, self.image.new_empty(m, B) if keep else self.buffer(0, m))
            shift = e.amax() - HEADROOM
            e.sub_(shift).exp_()
            rows.append(e.sum(1).log_().add_(shift))
            new_top = torch.maximum(top, shift)
            columns.mul_((top - new_top).exp()).add_(e.sum(0).mul_((shift - new_top).exp()))
            top, self.shifts[number] = new_top, shift
            diagonals.append(diagonal)
            if keep:
                self.kept[number] = e
        self.diagonal = torch.cat(diagonals)
        found, down = torch.cat(rows), columns.log() + top
        lowest = torch.minimum(found.amin(), down.amin())
        return (found, down) if bool(lowest > top + HEADROOM - DEPTH) else None

    def _exact_sums(self) -> tuple[Tensor, Tensor]:
        """The same with a shift for each row and each column."""
        columns = self.image.new_full((len(self.text),), -math.inf)
        rows, diagonals = [], []
        for some in self.slices:
            d, diagonal = self.logits(some, self.buffer(0, some.stop - some.start))
            rows.append(d.logsumexp(1))
            columns = torch.logaddexp(columns, d.logsumexp(0))
            diagonals.append(diagonal)
        self.diagonal = torch.cat(diagonals)
        return torch.cat(rows), columns

    def gradients(self, log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """∂L/∂image, (b, d), ∂L/∂text of all texts from this rank's images, (B, d), and Σ over its entries of |∂L/∂D|·D: pass 2.

        Positives excluded. With h/τ = D_ij − D_ii, the entry is exp(D_ij + log a_i) + exp(D_ij + log b_j).

        Args:
            log_weights: log a of this rank's images, (b,), followed by log b of all texts, (B,).
        """
        b = len(self.image)
        log_a, log_b = log_weights[:b], log_weights[b:]
        grad_image, grad_text = torch.empty_like(self.image), torch.zeros_like(self.text)
        with torch.autocast(self.image.device.type, enabled=False):
            for number, some in enumerate(self.slices):
                m = some.stop - some.start
                g = self._entries(number, some, log_a[some], log_b)
                torch.mm(g, self.text, out=grad_image[some])
                grad_text.addmm_(g.T, self.image[some])
                self.kept.pop(number, None)
                del g, m
        return grad_image, grad_text, log_weights.new_zeros(())

    def _entries(self, number: int, some: slice, log_a: Tensor, log_b: Tensor) -> Tensor:
        """∂L/∂S of some rows, (m, B), zero at the positives."""
        m = some.stop - some.start
        if not self.single:
            d, _ = self.logits(some, self.buffer(0, m))
            down = torch.add(d, log_b, out=self.buffer(1, m)).exp_()
            return d.add_(log_a[:, None]).exp_().add_(down)
        shift = self.shifts[number]
        e = self.kept.get(number)
        if e is None:
            e = self.logits(some, self.buffer(0, m))[0].sub_(shift).exp_()
        factor = torch.add((log_a + shift).exp()[:, None], (log_b + shift).exp(), out=self.buffer(1, m))
        return e.mul_(factor)


class _GlobalRisk(torch.autograd.Function):
    """Risk τ(height + R) of every anchor, (2, b), where height = log(ε + u) comes from the estimator."""

    @staticmethod
    def forward(ctx, image, text, tau, blocks, heights, radius):  # type: ignore[no-untyped-def]
        log_means = blocks.log_means()
        height = heights(log_means)
        ctx.blocks, ctx.radius = blocks, radius
        ctx.save_for_backward(height, log_means, tau)
        ctx.mark_non_differentiable(log_means)
        return tau * (height + radius), log_means

    @staticmethod
    def backward(ctx, weights, _):  # type: ignore[no-untyped-def]
        height, log_means, tau = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        b, B = len(blocks.image), len(blocks.text)
        pull = weights * (log_means - height).exp()  # ω_i Σ_j p_ij: what the positive pushes back
        # log of |ω|·exp(−height − D_ii)/(B − 1); a weight of zero is −∞
        log_entry = weights.abs().log() - height - blocks.diagonal - math.log(B - 1)
        columns = distributed.gather(log_entry[1])
        grad_image, grad_text, _ = blocks.gradients(torch.cat([log_entry[0], columns]))
        own = slice(blocks.first, blocks.first + b)
        both = pull.sum(0)[:, None]
        grad_image -= both * blocks.text[own]
        grad_text = distributed.sum_to_owner(grad_text) if distributed.active() else grad_text
        grad_text = grad_text - both * blocks.image
        return grad_image, grad_text, None, None, None, None


def global_risks(
    pairs: Pairs,
    tau: Tensor,
    strength: float,
    heights: Callable[[Tensor], Tensor],
    radius: float = 0.0,
    budget: int = DEFAULT_BUDGET,
) -> tuple[Tensor, Tensor]:
    """Risk of every anchor of this rank, (2, b), with gradient to the features; and log û, (2, b), without.

    The gradient given to the risks must not be negative (a mean, or the weights of an outer adversary).

    Args:
        pairs: features; float16 and bfloat16 are widened to float32.
        tau: τ, (), without gradient.
        strength: α.
        heights: log û (2, b) → log(ε + u), which updates the running estimates.
        radius: R.
        budget: bytes for kept blocks; 0 recomputes all.

    Raises:
        ValueError: fewer than 2 pairs over all ranks.
    """
    if len(pairs.image) * distributed.world_size() < 2:
        raise ValueError(f"a contrastive batch needs at least 2 pairs over all ranks, got {len(pairs.image)}")
    guided = strength != 0.0 and pairs.reference_image is not None and pairs.reference_text is not None
    guide = distributed.gather(pairs.reference_text.detach()) if guided else None  # type: ignore[union-attr]
    blocks = Blocks(
        pairs.image.detach().contiguous(),
        distributed.gather(pairs.text.detach().contiguous()),
        pairs.reference_image.detach().to(pairs.image.dtype) if guided else None,  # type: ignore[union-attr]
        None if guide is None else guide.to(pairs.image.dtype),
        tau.detach(),
        strength,
        budget,
    )
    risks, log_means = _GlobalRisk.apply(pairs.image, pairs.text, tau.detach(), blocks, heights, radius)
    return risks, log_means
