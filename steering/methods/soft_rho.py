"""Learnability sampling: RHO-LOSS with a temperature (the soft variant of arXiv 2206.07137;
ClassAct, arXiv 2312.05328)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steering.items import LossItems
from steering.methods.erm import Erm, ErmOptions
from steering.methods.ranges import Ranges, by_log, evenly
from steering.methods.registry import Method, register
from steering.methods.selection import (
    SELECTORS,
    Selector,
    SelectorOptions,
    excess_of,
    require_temperature,
    sampled,
    selecting,
)


class SoftRho(Selector):
    """Examples drawn ∝ exp((ℓ − ℓ_ref)/T), without replacement."""

    def __init__(self, share: float, temperature: float) -> None:
        super().__init__(share)
        require_temperature(temperature)
        self.temperature = temperature

    def choose(self, items: LossItems, count: int) -> Tensor:
        return sampled(excess_of(items, "soft_rho") / self.temperature, count)


@SELECTORS.register("soft_rho")
@dataclass(frozen=True)
class SoftRhoOptions(SelectorOptions):
    units: ClassVar[tuple[str, ...]] = ("example", "sequence")
    share: float = 0.1
    """Share of the drawn examples to train on, in (0, 1]: a step draws batch_size/share."""
    temperature: float = 0.25
    """T in nats: examples are drawn without replacement ∝ exp(excess/T); towards 0 the top share,
    towards ∞ uniform."""
    search: ClassVar[Ranges] = {"share": evenly(0.1, 0.9), "temperature": by_log(0.05, 2.0)}

    def selector(self) -> Selector:
        return SoftRho(self.share, self.temperature)


@register("soft_rho", SoftRhoOptions, units=SoftRhoOptions.units)
def build(options: SoftRhoOptions) -> Method:
    """RHO-LOSS with a temperature: examples drawn by their excess loss.

    Formula: mean of ℓ_i over a `share` of the drawn examples, chosen without replacement ∝
    exp((ℓ_i − ℓ_ref,i)/T)

    Source: arXiv 2206.07137, 2312.05328
    """
    return selecting(Erm(ErmOptions()), options.selector(), options.needs())
