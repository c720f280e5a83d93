"""Plain training: uniform weights, no reference."""

from __future__ import annotations

from dataclasses import dataclass

from steering import distributed
from steering.contrastive.risk import info_nce_losses
from steering.dro.defaults import default_tau
from steering.dro.online.temperature import Temperature
from steering.items import Pairs, Units, require_items
from steering.methods.registry import Method, Step, register


@dataclass
class ErmOptions:
    tau: float = default_tau("pair")
    """Initial temperature of InfoNCE, learned; only contrastive tasks use it. CLIP starts at
    0.07."""
    tau_min: float = 0.01
    """Smallest temperature; CLIP's largest logit scale is 100."""


class Erm(Method):
    """The mean of the losses; for pairs the mean of InfoNCE over all anchors of both directions,
    which is CLIP."""

    def __init__(self, options: ErmOptions) -> None:
        super().__init__()
        self.temperature = Temperature(
            options.tau, learned=True, minimum=options.tau_min, maximum=1.0
        )

    def logit_scale(self) -> float | None:
        return 1 / self.temperature.typical().item()

    def forward(self, losses: Units | Pairs) -> Step:
        if isinstance(losses, Pairs):
            tau = self.temperature()
            return Step(info_nce_losses(losses, tau).mean(), {"tau": tau.detach()})
        if losses.mask is None:
            return Step(losses.target.mean(), {})
        kept = losses.target.masked_fill(~losses.mask, 0.0).sum()
        # Over all ranks: a mean of the ranks' means would favour the items of a rank that keeps
        # few.
        count = distributed.mean(losses.mask.sum().to(kept.dtype))
        require_items(count)
        return Step(kept / count, {})


@register("erm", ErmOptions)
def build(options: ErmOptions, num_examples: int) -> Method:  # noqa: ARG001
    """Empirical risk minimisation; for image-text pairs InfoNCE (CLIP).

    Formula: mean_i ℓ_i; pairs: mean_i of −log softmax_j(cos_ij/τ) at j = i, over both directions
    Source: arXiv 2103.00020 (CLIP)
    """
    return Erm(options)
