"""Rho-1 (arXiv 2404.07965), selective language modelling: the loss of the tokens with the largest
excess loss alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.items import Pairs, Units, gathered
from steering.methods.registry import Method, Step, register


@dataclass
class Rho1Options:
    keep: float = 0.6
    """Share of the batch's tokens that train, in (0, 1]; at least one of each row does."""


class Rho1(Method):
    """The mean loss of the top share of tokens by ℓ − ℓ_ref, over the batches of all ranks."""

    uses_reference = True

    def __init__(self, options: Rho1Options) -> None:
        super().__init__()
        if not 0 < options.keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {options.keep}")
        self.share = (
            options.keep
        )  # every drawn example is run forward and backward, so `Method.keep` stays 1

    def start_epoch(self, epoch: int) -> None: ...

    def forward(self, losses: Units | Pairs) -> Step:
        assert isinstance(losses, Units)
        units = gathered(losses)
        chosen = top_share(units.excess().detach(), units.mask, self.share)
        kept = units.target.masked_fill(~chosen, 0.0).sum(-1) / chosen.sum(-1)
        return Step(kept.mean(), {"kept_share": chosen.sum() / units.counts().sum()})


def top_share(scores: Tensor, mask: Tensor | None, share: float) -> Tensor:
    """The largest ⌈share·count⌉ of the items that count in each row, bool, (..., n); of equal ones
    the first.

    Args:
        scores: (..., n).
        mask: bool, (..., n), or None.
        share: in (0, 1].
    """
    hidden = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    place = hidden.argsort(dim=-1, descending=True, stable=True).argsort(-1)
    counts = (
        torch.full_like(place[..., :1], scores.shape[-1])
        if mask is None
        else mask.sum(-1, keepdim=True)
    )
    chosen = place < (share * counts.double() * (1 - 1e-12)).ceil()
    return chosen if mask is None else chosen & mask


@register("rho1", Rho1Options, units=("token",))
def build(options: Rho1Options, num_examples: int) -> Method:  # noqa: ARG001
    """Rho-1: the tokens of the largest excess loss alone.

    Formula: mean of ℓ_t over the share `keep` of the batch's tokens with the largest ℓ_t − ℓ_ref,t
    Source: arXiv 2404.07965
    """
    return Rho1(options)
