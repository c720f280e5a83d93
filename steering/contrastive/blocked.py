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

    Problem ──sums──▸ Sums ──┬─ log û ──▸ running estimates ──▸ Entries ─┐
                             └─ kept: Kept ──────────────────────────────┴─gradients──▸ ∂L/∂image, ∂L/∂text

`sums` is pass 1 (here), `gradients` pass 2 (`gradients.py`), and neither remembers anything: what
pass 2 needs of pass 1 is the value `Kept`. D and what is added to it are in bits (`problem.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.problem import LN2, LOG2E, Problem, Scales, Scratch
from steering.contrastive.products import affine

# E ≤ 2^58: sums of many stay finite, and items down to 2^-184 of the largest are normal float32
# numbers
HEADROOM = 58.0
# an anchor's own sum may lie this many bits below the largest item before one exponential is not
# enough. Then what its row or column has below the normal numbers is less than B·2^-40 of that sum,
# since 184 − 144 = 40, and rounding is 2^-24.
DEPTH = 144.0
SAMPLE = 64  # rows that are looked at for a log
DEFAULT_BUDGET = 512 << 20


@dataclass(frozen=True)
class Kept:
    """What pass 1 leaves for pass 2.

    Attributes:
        positives: D of this rank's positives as either anchor sees them, bits, (b,), or (2, b) with
            temperatures of their own.
        shifts: the c of each block, where one exponential was enough; None: two are needed.
        blocks: number of a block → E where one exponential was enough, else D; (m, B). Pass 2
            writes into them, so a block serves once: `take` it.
    """

    positives: Tensor
    shifts: tuple[Tensor, ...] | None
    blocks: dict[int, Tensor]

    def take(self, number: int) -> Tensor | None:
        """A block that was kept and is from now on the caller's; None: compute it again."""
        return self.blocks.pop(number, None)


@dataclass(frozen=True)
class Sample:
    """D of the first image anchors, for a log; in bits, or D·τ in nats with temperatures of their
    own.

    Attributes:
        rows: (m, B), `NOTHING` at the positives.
        positives: (m,).
    """

    rows: Tensor
    positives: Tensor

    def in_nats(self, scales: Scales) -> tuple[Tensor, Tensor]:
        """D, (m, B), and of the positives, (m, 1)."""
        m = len(self.rows)
        scale = LN2 if scales.shared else 1 / scales.tau[:m, None]
        return self.rows * scale, self.positives[:, None] * scale


@dataclass(frozen=True)
class Sums:
    """What pass 1 finds.

    Attributes:
        log_means: log of the mean over the negatives of exp(h/τ) of every anchor, (2, b).
        means: mean of h/τ under these weights, (2, b), nats; meaningless unless the problem wants
            means.
        sample: for a log.
        kept: for pass 2.
    """

    log_means: Tensor
    means: Tensor
    sample: Sample
    kept: Kept


class _Totals(NamedTuple):
    """Of this rank's images against all texts, bits: log Σ_j 2^D_ij, (b,), log Σ_i 2^D_ij, (B,), and the
    means of D under these weights."""

    rows: Tensor
    columns: Tensor
    row_means: Tensor
    column_means: Tensor


@dataclass(frozen=True)
class _Walk:
    """What one walk over the blocks writes down beside its totals: D (D·τ with temperatures of
    their own) of the positives, (b,), and of the first rows, (≤ SAMPLE, B); and the blocks that
    the budget lets it keep."""

    positives: Tensor
    first_rows: Tensor
    blocks: dict[int, Tensor]
    scratch: Scratch


@torch.no_grad()
def sums(problem: Problem) -> Sums:
    """Pass 1."""
    # D is a cosine over a small τ and needs all of float32, whatever the towers run in.
    with torch.autocast(problem.features.image.device.type, enabled=False):
        walk, shifts, totals = _totals(problem)
        positives = walk.positives
        if not problem.scales.shared:
            # Rows and columns divide the same product by different τ: (b,) becomes (2, b).
            positives = positives * (LOG2E / problem.scales.of_own(problem.own))
        columns, column_means = _of_all_ranks(problem, totals)
        # (26) of docs/theory.md: the mean is over B − 1 negatives, and h_ij = D_ij − D_ii in units
        # of τ, so the anchor's own positive goes out of its sum.
        log_sums = torch.stack([totals.rows, columns])
        log_means = log_sums - positives - math.log2(problem.others)
        means = torch.stack([totals.row_means, column_means]) - positives
    kept = Kept(positives, shifts, walk.blocks)
    sample = Sample(walk.first_rows, walk.positives[: len(walk.first_rows)])
    return Sums(LN2 * log_means, LN2 * means, sample, kept)


def _totals(problem: Problem) -> tuple[_Walk, tuple[Tensor, ...] | None, _Totals]:
    """By one exponential if that will do, whose shifts come back too, else by two."""
    if problem.single and problem.scales.shared:
        walk = _walk_of(problem)
        found = _one_exponential(problem, walk)
        if found is not None:
            return walk, *found
    # The walk before is forgotten: its blocks hold E, and D is needed now.
    walk = _walk_of(problem)
    return walk, None, _two_exponentials(problem, walk)


def _walk_of(problem: Problem) -> _Walk:
    (b, B), like = problem.shape, problem.features.image
    return _Walk(like.new_empty(b), like.new_empty(min(SAMPLE, b), B), {}, Scratch(like, B))


def _blocks(problem: Problem, walk: _Walk) -> Iterator[tuple[slice, Tensor]]:
    """The rows of each block and its D, (m, B), which the caller may write over: into memory of its
    own while the budget lasts, and kept there with what the caller makes of it."""
    image, used = problem.features.image, 0
    for number, some in enumerate(problem.slices):
        m, B = some.stop - some.start, problem.shape[1]
        size = m * B * image.element_size()
        if used + size <= problem.budget:
            used += size
            out = walk.blocks[number] = image.new_empty(m, B)
        else:
            out = walk.scratch.take(0, m)
        walk.positives[some] = problem.logits(some, out)
        # Now, while D still stands there; behind the end of the sample the slice is empty.
        sampled = walk.first_rows[some]
        sampled.copy_(out[: len(sampled)])
        yield some, out


def _one_exponential(problem: Problem, walk: _Walk) -> tuple[tuple[Tensor, ...], _Totals] | None:
    """The shift of each block, and the totals; None if digits would be lost."""
    (b, B), like = problem.shape, problem.features.image
    # Column sums of E, and of E·(D − c) with the c put back, in units of 2^tops, (2, B).
    columns, tops = like.new_zeros(2, B), like.new_full((), -math.inf)
    rows, means, shifts = like.new_empty(b), like.new_zeros(b), []
    for some, e in _blocks(problem, walk):
        shift = e.amax() - HEADROOM
        # E takes the memory of D, and E·(D − c) that of the scratch. At the positives E is exactly
        # 0, and 0·NOTHING is 0, so neither sum sees them.
        if problem.with_means:
            weighted = torch.sub(e, shift, out=walk.scratch.take(1, len(e)))
            weighted.mul_(torch.exp2(weighted, out=e))  # E·(D − c)
        else:
            e.sub_(shift).exp2_()
        # Columns add up over blocks of different c: all are brought to the largest so far.
        top = torch.maximum(tops, shift)
        # Before the first block tops is −∞, so `then` is 2^−∞ = 0, and meets zeros.
        now, then = (shift - top).exp2(), (tops - top).exp2()
        total, down = e.sum(1), e.sum(0)
        rows[some] = total.log2() + shift
        if problem.with_means:
            means[some] = weighted.sum(1) / total + shift
            # Σ_i E·D = Σ_i E·(D − c) + c·Σ_i E, with the c of this block.
            columns[1].mul_(then).add_(weighted.sum(0).add_(shift * down).mul_(now))
        columns[0].mul_(then).add_(down.mul_(now))
        tops = top
        shifts.append(shift)
    down = columns[0].log2() + tops
    # tops + HEADROOM is the largest D of all. A sum of 0, whose logarithm is −∞, fails the test,
    # and so does NaN, with which no comparison is true. There is no collective in either way, so
    # each rank decides for itself.
    # Asked once, after all blocks: in between it would stop a processor that runs ahead.
    lowest = torch.minimum(rows.amin(), down.amin())
    if not bool(lowest > tops + HEADROOM - DEPTH):
        return None
    return tuple(shifts), _Totals(rows, down, means, columns[1] / columns[0])


def _two_exponentials(problem: Problem, walk: _Walk) -> _Totals:
    """The same totals with a shift for each row and each column."""
    (b, B), like, scales = problem.shape, problem.features.image, problem.scales
    columns, column_means = like.new_full((B,), -math.inf), like.new_zeros(B)
    rows, means = like.new_empty(b), like.new_zeros(b)
    for some, logits in _blocks(problem, walk):
        # log₂e/τ of the block's rows, (m, 1), and of all columns, (B,).
        across = None if scales.shared else scales.rates[0][some, None]
        along = None if scales.shared else scales.rates[1]
        # Beside the logits, which the columns and pass 2 still want.
        e = walk.scratch.take(1, len(logits))
        rows[some], means[some] = _softmax(logits, 1, across, e, problem.with_means)
        down, here = _softmax(logits, 0, along, e, problem.with_means)
        # The columns of the images so far and of this block: sums add, and means are mixed by their
        # shares of the sum. No logarithm is −∞ but the first, as NOTHING is a number.
        merged = torch.logaddexp2(columns, down)
        column_means = (columns - merged).exp2() * column_means + (down - merged).exp2() * here
        columns = merged
    return _Totals(rows, columns, means, column_means)


def _softmax(
    logits: Tensor, dim: int, rate: Tensor | None, e: Tensor, with_means: bool
) -> tuple[Tensor, Tensor]:
    """log Σ 2^(rate·logits) along an axis, and the mean of rate·logits under these weights (zero
    unless it is wanted); `e` is written over, `logits` stay."""
    top = logits.amax(dim, keepdim=True)
    if rate is None:
        torch.sub(logits, top, out=e)
    else:
        # Temperatures are positive, so the largest item stays the largest.
        top *= rate
        affine(logits, rate, -top, e)
    # At least 1, the largest item's share, so its logarithm is no less than 0.
    total = e.exp2_().sum(dim)
    log_sums = total.log2() + top.squeeze(dim)
    if not with_means:
        return log_sums, torch.zeros_like(log_sums)
    mean = e.mul_(logits).sum(dim) / total
    return log_sums, mean if rate is None else mean * rate.view(-1)


def _of_all_ranks(problem: Problem, totals: _Totals) -> tuple[Tensor, Tensor]:
    """Log sums of this rank's own columns over the images of all ranks, (b,), and their means."""
    columns, means = totals.columns, totals.column_means
    if not distributed.active():
        return columns, means
    # Every rank is told what the others have summed up in its columns: b numbers from each.
    sent = torch.stack([columns, means], -1) if problem.with_means else columns[:, None]
    parts = distributed.swap(sent).view(-1, *sent[problem.own].shape).unbind(-1)  # (K, b) each
    top = parts[0].amax(0)
    columns = (parts[0] - top).exp2().sum(0).log2() + top
    if not problem.with_means:
        return columns, totals.row_means  # zeros
    return columns, ((parts[0] - columns).exp2() * parts[-1]).sum(0)
