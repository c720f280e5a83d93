"""Pass 2 of the blocked contrastive risk: from the entries of ∂L/∂S, block by block, to ∂L/∂image
and ∂L/∂text.

Legend as in `problem.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from steering.contrastive.blocked import Kept
from steering.contrastive.problem import Problem, Scratch
from steering.contrastive.products import affine


@dataclass(frozen=True)
class Entries:
    """The entry ∂L/∂S_ij is ±2^(D_ij + log a_i) ± 2^(D_ij + log b_j).

    Attributes:
        log_a: of this rank's images, bits, (b,); log_b: of all texts, (B,).
        signs: 1, 0 or −1 of both, (b,) and (B,); None: plus throughout, which spares two products.
    """

    log_a: Tensor
    log_b: Tensor
    signs: tuple[Tensor, Tensor] | None = None

    def of(self, some: slice) -> Entries:
        """Of some rows, as columns (m, 1); log b and its signs stay."""
        signs = None if self.signs is None else (self.signs[0][some, None], self.signs[1])
        return Entries(self.log_a[some, None], self.log_b, signs)


def gradients(
    problem: Problem, kept: Kept, entries: Entries, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """∂L/∂image, (b, d), and ∂L/∂text of all texts from this rank's images, (B, d); positives
    excluded.

    Args:
        kept: its blocks are used up; those that are not there are computed again.
        wanted: what is not (a tower is frozen) is None, and its product is saved.
    """
    image, text = problem.features.image, problem.features.text
    grad_image = torch.empty_like(image) if wanted[0] else None
    grad_text = torch.empty_like(text) if wanted[1] else None
    scratch = Scratch(image, len(text))
    for number, some in enumerate(problem.slices):
        block = _block(problem, kept, number, some, scratch)
        shift = None if kept.shifts is None else kept.shifts[number]
        here, spare = entries.of(some), scratch.take(1, len(block))
        if shift is None:
            _by_two_exponentials(problem, some, block, here, spare)
        else:
            _by_one_exponential(block, shift, here, spare)
        # ∂L/∂x_i = Σ_j ∂L/∂S_ij·t_j has all of its terms in the block of row i; ∂L/∂t_j = Σ_i
        # ∂L/∂S_ij·x_i has some in every block.
        if grad_image is not None:
            torch.mm(block, text, out=grad_image[some])
        if grad_text is not None:
            # The first block writes over what was never written, the others add.
            grad_text.addmm_(block.T, image[some], beta=min(number, 1))
    return grad_image, grad_text


def _block(problem: Problem, kept: Kept, number: int, some: slice, scratch: Scratch) -> Tensor:
    """As pass 1 would keep it: E, or D where two exponentials are needed; (m, B)."""
    block = kept.take(number)
    if block is not None:
        return block
    block = scratch.take(0, some.stop - some.start)
    problem.logits(some, block)
    if kept.shifts is not None:
        block.sub_(kept.shifts[number]).exp2_()
    return block


def _by_one_exponential(e: Tensor, shift: Tensor, entries: Entries, spare: Tensor) -> None:
    """E ← E·(a + b): all of the exponentials are in E, and a and b are vectors."""
    # E = 2^(D − c), so c goes back into a, (m, 1), and b, (B,). Neither overflows: an anchor whose
    # sum lies too far below c has sent the whole batch the other way (`DEPTH`).
    a, b = (entries.log_a + shift).exp2(), (entries.log_b + shift).exp2()
    if entries.signs is not None:
        a, b = a * entries.signs[0], b * entries.signs[1]
    e.mul_(torch.add(a, b, out=spare))


def _by_two_exponentials(
    problem: Problem, some: slice, d: Tensor, entries: Entries, spare: Tensor
) -> None:
    """D ← ±2^(D + log a) ± 2^(D + log b): no a and no b leave the range of floating point, as each
    is added to D before the exponential."""
    # The row's term takes the memory of D, so the column's is made first.
    across, along, scales = d, spare, problem.scales
    if scales.shared:
        torch.add(across, entries.log_b, out=along)
        across.add_(entries.log_a)
    else:
        affine(across, scales.rates[1], entries.log_b, along)
        across.mul_(scales.rates[0][some, None]).add_(entries.log_a)
    across.exp2_()
    along.exp2_()
    if entries.signs is not None:
        across.mul_(entries.signs[0])
        along.mul_(entries.signs[1])
    across.add_(along)
