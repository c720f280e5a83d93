"""RHO-LOSS (arXiv 2206.07137): train on the examples of the largest reducible loss, of a larger
batch that is drawn for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from steering.items import LossItems
from steering.methods.erm import Erm, ErmOptions
from steering.methods.ranges import Ranges, evenly
from steering.methods.registry import Method, register
from steering.methods.selection import (
    SELECTORS,
    Selector,
    SelectorOptions,
    excess_of,
    largest,
    selecting,
)


class RhoLoss(Selector):
    """The largest ℓ(θ; z) − ℓ(θ_ref; z)."""

    def choose(self, items: LossItems, count: int) -> Tensor:
        return largest(excess_of(items, "rho_loss"), count)


@SELECTORS.register("rho_loss")
@dataclass(frozen=True)
class RhoLossOptions(SelectorOptions):
    units: ClassVar[tuple[str, ...]] = ("example", "sequence")
    share: float = 0.1
    """Share of the drawn examples to train on, in (0, 1]: a step draws batch_size/share."""
    search: ClassVar[Ranges] = {"share": evenly(0.1, 0.9)}

    def selector(self) -> Selector:
        return RhoLoss(self.share)


@register("rho_loss", RhoLossOptions, units=RhoLossOptions.units)
def build(options: RhoLossOptions) -> Method:
    """RHO-LOSS: the top share of a larger batch by excess loss, unweighted.

    Formula: mean of ℓ_i over the `share` of the drawn examples with the largest ℓ_i − ℓ_ref,i
    Source: arXiv 2206.07137
    """
    return selecting(Erm(ErmOptions()), options.selector(), options.needs())
