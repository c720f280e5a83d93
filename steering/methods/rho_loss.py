"""RHO-LOSS (arXiv 2206.07137): train on the examples of the largest reducible loss, of a larger
batch of candidates."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steering.items import LossItems, rows_of
from steering.methods.registry import Method, Needs, register
from steering.methods.selection import Selecting, largest


@dataclass
class RhoLossOptions:
    keep: float = 0.1
    """Share of the drawn examples to train on, in (0, 1]: a step draws batch_size/keep
    candidates."""


class RhoLoss(Selecting):
    """The largest ℓ(θ; z) − ℓ(θ_ref; z), then an unweighted step. Every rank selects among its own
    candidates."""

    def select(self, items: LossItems, count: int) -> Tensor:
        return largest(self.scores(rows_of(items)), count)


@register("rho_loss", RhoLossOptions, units=("example", "sequence"), needs=Needs(reference=True))
def build(options: RhoLossOptions, num_examples: int) -> Method:  # noqa: ARG001
    """RHO-LOSS: the top share of a larger batch by excess loss, unweighted.

    Formula: mean of ℓ_i over the share `keep` of the candidates with the largest ℓ_i − ℓ_ref,i

    Source: arXiv 2206.07137
    """
    return RhoLoss("rho_loss", options.keep)
