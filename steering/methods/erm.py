"""Plain training: uniform weights, no reference."""

from __future__ import annotations

from dataclasses import dataclass

from steering.contrastive.naive import info_nce
from steering.contrastive.pairs import Pairs
from steering.dro.stochastic import Temperature
from steering.methods.registry import Method, Step, register
from steering.risk import Units


@dataclass
class ErmOptions:
    tau: float = 0.07
    """Initial temperature of InfoNCE, learned; only contrastive tasks use it. CLIP starts at 0.07."""
    tau_min: float = 0.01
    """Smallest temperature; CLIP's largest logit scale is 100."""


class Erm(Method):
    """The mean of the losses; for pairs the mean of InfoNCE over all anchors of both directions, which is CLIP."""

    def __init__(self, options: ErmOptions) -> None:
        super().__init__()
        self.temperature = Temperature(options.tau, learned=True, minimum=options.tau_min, maximum=1.0)

    def start_epoch(self, epoch: int) -> None: ...

    def forward(self, losses: Units | Pairs) -> Step:
        if isinstance(losses, Pairs):
            tau = self.temperature()
            return Step(info_nce(losses.image, losses.text, tau).mean(), {"tau": tau.detach()})
        if losses.mask is None:
            return Step(losses.target.mean(), {})
        kept = losses.target.masked_fill(~losses.mask, 0.0).sum()
        return Step(kept / losses.mask.sum(), {})


@register("erm", ErmOptions)
def build(options: ErmOptions, num_examples: int) -> Method:  # noqa: ARG001
    """Empirical risk minimisation; for image-text pairs InfoNCE (CLIP)."""
    return Erm(options)
