"""Rho-1 (arXiv 2404.07965), selective language modelling: the loss of the tokens with the largest
excess loss alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.items import LossItems, gathered, own_part, rows_of
from steering.methods.ranges import Ranges, evenly
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class Rho1Options:
    share: float = 0.6
    """Share of the batch's tokens that train, in (0, 1]; at least one of each row does."""
    search: ClassVar[Ranges] = {"share": evenly(0.4, 0.9)}


@register("rho1", Rho1Options, units=("token",), needs=Needs(reference=True))
class Rho1(Method):
    """Rho-1: the tokens of the largest excess loss alone.

    Formula: mean of ℓ_t over the share of the batch's tokens, of all ranks, with the largest ℓ_t −
    ℓ_ref,t

    Source: arXiv 2404.07965
    """

    def __init__(self, options: Rho1Options) -> None:
        super().__init__()
        if not 0 < options.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {options.share}")
        self.share = options.share

    def forward(self, items: LossItems) -> Step:
        own = rows_of(items)
        units = gathered(own)
        largest = top_share(units.excess().detach(), units.mask, self.share)
        loss = units.target.masked_fill(~largest, 0.0).sum(-1) / largest.sum(-1)
        share = {"kept_share": largest.sum() / units.counts().sum()}
        return Step(loss.mean(), share, own_part(largest.to(loss.dtype), own.target.shape[-1]))


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
    counts = torch.full_like(place[..., :1], scores.shape[-1])
    if mask is not None:
        counts = mask.sum(-1, keepdim=True)
    # A hair less: 0.6·5 is 3.0000000000000004 for some spellings, and must stay 3.
    largest = place < (share * counts.double() * (1 - 1e-12)).ceil()
    return largest if mask is None else largest & mask
