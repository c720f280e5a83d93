"""Plain CLIP in anybody's loop."""

from __future__ import annotations

from torch import Tensor, nn

from steering.contrastive.risk import info_nce_losses
from steering.dro.defaults import defaults
from steering.dro.online.temperature import Temperature
from steering.losses.checks import checked_pairs
from steering.losses.estimate import Estimate


class ClipLoss(nn.Module):
    """InfoNCE, the plain loss of CLIP (arXiv 2103.00020), in blocks: the same memory as the
    others.

    Uses no reference. τ is a parameter, log τ, as in CLIP: give `parameters()` to the optimiser,
    without weight decay.

    Args:
        tau: initial temperature.
        tau_min: smallest temperature; CLIP's largest logit scale is 100. The largest τ is 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, *, tau: float = defaults("pair").tau, tau_min: float = 0.01) -> None:
        super().__init__()
        self.temperature = Temperature(tau, learned=True, minimum=tau_min, maximum=1.0)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Mean of −log softmax_j(cos_ij/τ) at j = i over both directions, ().

        Args:
            image, text: unit-norm features, (b, d) each, with gradient.

        Raises:
            ValueError: shapes differ, or a feature is not finite.
        """
        return self.estimate(image, text).loss

    def estimate(self, image: Tensor, text: Tensor) -> Estimate:
        """Loss and metrics of one batch; the weights are None."""
        tau = self.temperature()
        losses = info_nce_losses(checked_pairs(image, text, None), tau)
        return Estimate(losses.mean(), None, {"tau": tau.detach()})
