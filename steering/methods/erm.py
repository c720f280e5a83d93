"""Plain training: uniform weights, no reference."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch

from steering import distributed
from steering.contrastive.risk import info_nce_losses
from steering.dro.defaults import default_tau
from steering.dro.online.temperature import Temperature
from steering.errors import SteeringError
from steering.items import LossItems, Pairs, require_items, rows_of
from steering.methods.registry import Method, Step, register


@dataclass
class ErmOptions:
    tau: float = default_tau("pair")
    """Initial temperature of InfoNCE, learned; only contrastive tasks use it. CLIP starts at
    0.07."""
    tau_min: float = 0.01
    """Smallest temperature; CLIP's largest logit scale is 100."""


@register("erm", ErmOptions)
class Erm(Method):
    """Empirical risk minimisation; for image-text pairs InfoNCE (CLIP).

    Formula: mean_i ℓ_i; pairs: mean_i of −log softmax_j(cos_ij/τ) at j = i, over both directions

    Source: arXiv 2103.00020 (CLIP)
    """

    def __init__(self, options: ErmOptions, unit: str = "example") -> None:
        super().__init__()
        self.temperature = clip_temperature(options.tau, options.tau_min, unit)

    def logit_scale(self) -> float | None:
        return logit_scale(self.temperature)

    def forward(self, items: LossItems) -> Step:
        return mean_loss(items, self.temperature)


def clip_temperature(tau: float, minimum: float, unit: str) -> Temperature | None:
    """The learned temperature of InfoNCE, at most 1; None for losses that know none.

    Raises:
        ValueError: out of range, whatever the unit.
    """
    temperature = Temperature(tau, learned=True, minimum=minimum, maximum=1.0)
    return temperature if unit == "pair" else None


def logit_scale(temperature: Temperature | None) -> float | None:
    """1/τ; None without a temperature."""
    return None if temperature is None else 1 / temperature.typical().item()


@singledispatch
def mean_loss(
    items: LossItems,
    temperature: Temperature | None,  # noqa: ARG001
) -> Step:
    """A step of plain training: the mean of the losses that count.

    Args:
        temperature: of InfoNCE, for pairs.
    """
    units = rows_of(items)
    if units.mask is None:
        return Step(units.target.mean())
    total = units.target.masked_fill(~units.mask, 0.0).sum()
    # Over all ranks: a mean of the ranks' means would favour the items of a rank that has few.
    count = distributed.mean(units.mask.sum().to(total.dtype))
    require_items(count)
    return Step(total / count)


@mean_loss.register
def _(items: Pairs, temperature: Temperature | None) -> Step:
    if temperature is None:
        raise SteeringError(
            'method: was built for losses of examples and got pairs; build it with unit="pair"'
        )
    tau = temperature()
    losses = info_nce_losses(items, tau)
    # What an anchor pulls with is the softmax's share that its positive does not have.
    return Step(losses.mean(), {"tau": tau.detach()}, -torch.expm1(-losses.detach()))
