"""Selectors in anybody's loop: score a large batch without gradient, train on the share that is
chosen.

    select = RhoLoss(share=0.1)
    with torch.no_grad():
        losses = F.cross_entropy(model(x), y, reduction="none")
    chosen = select(losses, reference_losses[index])
    loss = F.cross_entropy(model(x[chosen]), y[chosen])

Under several processes each chooses among its own candidates. A selector keeps no state; random
choices use torch's global generator of the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steering.losses.checks import (
    checked_pairs,
    one_row,
    require_count,
    require_number,
    require_reference,
    require_share,
)
from steering.methods.jest import JestOptions, joint_selection
from steering.methods.rho_loss import RhoLossOptions
from steering.methods.selection import largest, sampled
from steering.methods.soft_rho import SoftRhoOptions


class RhoLoss(nn.Module):
    """RHO-LOSS (arXiv 2206.07137): the examples of the largest reducible loss ℓ − ℓ_ref.

    Args:
        share: of the candidates that are chosen, in (0, 1].

    Raises:
        ValueError: share out of range.
    """

    def __init__(self, *, share: float = RhoLossOptions().share) -> None:
        super().__init__()
        require_share(share)
        self.share = share

    def forward(self, losses: Tensor, reference_losses: Tensor, count: int | None = None) -> Tensor:
        """Positions of the chosen candidates, int64, (count,); the largest first, of equal ones the
        first.

        Args:
            losses: target losses of the n candidates, (n,).
            reference_losses: those of the reference, (n,).
            count: how many to choose; None: the share of n, rounded, at least 1.

        Raises:
            ValueError: no reference, shapes differ, a loss is not finite, or count is not in 1 .. n.
        """
        require_reference(self, reference_losses)
        excess = one_row(losses.detach(), reference_losses).excess()
        return largest(excess, _count(len(losses), self.share, count))


class SoftRho(nn.Module):
    """RHO-LOSS with a temperature (arXiv 2206.07137; ClassAct, arXiv 2312.05328): candidates drawn
    without replacement ∝ exp((ℓ − ℓ_ref)/T).

    Args:
        share: of the candidates that are chosen, in (0, 1].
        temperature: T > 0 in nats; towards 0 the top share, towards ∞ uniform.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        share: float = SoftRhoOptions().share,
        temperature: float = SoftRhoOptions().temperature,
    ) -> None:
        super().__init__()
        require_share(share)
        require_number("temperature", temperature, positive=True)
        self.share, self.temperature = share, temperature

    def forward(self, losses: Tensor, reference_losses: Tensor, count: int | None = None) -> Tensor:
        """Positions of the chosen candidates, int64, (count,); arguments and errors as in
        `RhoLoss`."""
        require_reference(self, reference_losses)
        excess = one_row(losses.detach(), reference_losses).excess()
        return sampled(excess / self.temperature, _count(len(losses), self.share, count))


class Jest(nn.Module):
    """JEST (arXiv 2406.17711): pairs chosen jointly, chunk by chunk, by how learnable they are
    together.

        select = Jest(share=0.2, reference_scale=100.0)
        chosen = select(image_features, text_features, reference_image_features,
        reference_text_features, tau=0.07)

    Args:
        reference_scale: logit scale of the reference, 1/τ: 100 for published CLIP models.
        share: of the candidates that are chosen, in (0, 1].
        chunks: parts in which they are chosen; each knows the ones before.
        temperature: T > 0 in nats: candidates are drawn ∝ exp(score/T).
        top: take the largest scores instead of drawing.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        reference_scale: float,
        share: float = JestOptions().share,
        chunks: int = JestOptions().chunks,
        temperature: float = JestOptions().temperature,
        top: bool = JestOptions().top,
    ) -> None:
        super().__init__()
        require_number("reference_scale", reference_scale, positive=True)
        require_share(share)
        require_count("chunks", chunks)
        require_number("temperature", temperature, positive=True)
        self.reference_scale, self.share = reference_scale, share
        self.chunks, self.temperature, self.top = chunks, temperature, top

    @torch.no_grad()
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        reference_image: Tensor,
        reference_text: Tensor,
        *,
        tau: float | Tensor,
        count: int | None = None,
    ) -> Tensor:
        """Positions of the chosen pairs, int64, (count,), in the order in which they were chosen.

        Args:
            image, text: unit-norm features of the target on the n candidates, (n, d) each.
            reference_image, reference_text: those of the reference, (n, d′) each.
            tau: the target's present temperature, a number or ().
            count: how many to choose; None: the share of n, rounded, at least 1.

        Raises:
            ValueError: shapes differ, a feature is not finite, or count is not in 1 .. n.
        """
        pairs = checked_pairs(image, text, None, reference_image, reference_text)
        reference = pairs.reference()
        if reference is None:
            raise ValueError("reference_image and reference_text must be given, got None")
        learner = pairs.image @ pairs.text.T / tau
        other = self.reference_scale * reference[0] @ reference[1].T
        number = _count(len(image), self.share, count)
        return joint_selection(learner, other, number, self.chunks, self.temperature, self.top)


def _count(candidates: int, share: float, count: int | None) -> int:
    if count is None:
        return max(1, round(share * candidates))
    require_count("count", count)
    if count > candidates:
        raise ValueError(f"count must be at most {candidates}, the candidates, got {count}")
    return count
