"""Rho-1 in anybody's loop: the tokens of the largest excess loss alone."""

from __future__ import annotations

from torch import Tensor, nn

from steering.items import gathered, own_part
from steering.losses.checks import one_row, require_reference, require_share
from steering.losses.estimate import Estimate
from steering.methods.rho1 import Rho1Options, top_share


class Rho1(nn.Module):
    """Rho-1 (arXiv 2404.07965): the mean loss of the share of tokens with the largest ℓ − ℓ_ref.

        steer = Rho1(share=0.6)
        loss = steer(token_losses, reference_token_losses, mask)

    The share is taken over the batches of all ranks. It keeps no state.

    Args:
        share: in (0, 1]; 1 is plain training.

    Raises:
        ValueError: share out of range.
    """

    def __init__(self, *, share: float = Rho1Options().share) -> None:
        super().__init__()
        require_share(share)
        self.share = share

    def forward(
        self, losses: Tensor, reference_losses: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Mean loss of the chosen tokens, (). See `estimate`."""
        return self.estimate(losses, reference_losses, mask).loss

    def estimate(
        self, losses: Tensor, reference_losses: Tensor, mask: Tensor | None = None
    ) -> Estimate:
        """Loss, weights and metrics of one batch.

        Args:
            losses: target losses, (b, T) or any shape, token by token, nats, with gradient.
            reference_losses: those of the reference, the same shape.
            mask: bool, the same shape, False where a token does not count (padding, a prompt). It
                is never chosen.

        Returns:
            The weights are 1/k for the k chosen tokens of all ranks, else 0.

        Raises:
            ValueError: no reference, shapes differ, no token counts, or a loss that counts is not finite.
        """
        require_reference(self, reference_losses)
        units = gathered(one_row(losses, reference_losses, mask, any_shape=True))
        counts = units.counts()  # refuses a batch in which no token counts
        chosen = top_share(units.excess().detach(), units.mask, self.share)
        weights = chosen.to(units.target.dtype) / chosen.sum()
        # The losses themselves, zero where masked: a NaN there would outlive its weight of 0.
        loss = (weights * units.excess(0.0)).sum()
        kept = chosen.sum() / counts
        own = own_part(weights, losses.numel()).view(losses.shape)
        return Estimate(loss, own, {"kept_share": kept})
