"""DoReMi (arXiv 2305.10429): domain weights by group DRO on clipped excess losses; their running
mean is a data mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from steering import distributed
from steering.dro.online.groups import GroupWeights, group_means
from steering.items import LossItems, rows_of
from steering.methods.group_dro import (
    items_of_groups,
    mean_weights,
    placed,
    unless_diverged,
    weight_scalars,
)
from steering.methods.ranges import Ranges, by_log
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class DoremiOptions:
    step: float = 1.0
    """η of the exponentiated gradient a ← a·exp(η·s) on the domains' scores s = mean [ℓ −
    ℓ_ref]_+."""
    smoothing: float = 1e-3
    """c in a ← (1 − c)·a + c/k: every one of the k domains that have examples keeps at least
    c/k."""
    search: ClassVar[Ranges] = {"step": by_log(0.03, 3.0)}


@register(
    "doremi",
    DoremiOptions,
    units=("example", "token", "sequence"),
    groups=True,
    needs=Needs(reference=True),
)
class Doremi(Method):
    """DoReMi: domains weighted by clipped excess loss; the mean weights are a data mix.

    This is the proxy run: the losses of domain d are weighted by a_d over its share of the batch,
    and the mix is in `summary`.

    Formula: Σ_d a_d·L_d, a_d ← a_d·exp(η·s_d) and normalised, a ← (1 − c)·a + c/k, where s_d is the
    mean of [ℓ − ℓ_ref]₊

    Source: arXiv 2305.10429
    """

    def __init__(self, options: DoremiOptions, groups: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(groups)
        self.weights = GroupWeights(len(groups), step=options.step, smoothing=options.smoothing)

    def without_groups(self, groups: Sequence[int]) -> None:
        self.weights.without(groups)

    def forward(self, items: LossItems) -> Step:
        units, k = rows_of(items), len(self.names)
        clipped, groups = items_of_groups(units, units.excess().detach().clamp_min(0.0), "doremi")
        scores, counts = group_means(clipped, groups, k)
        q = self.weights.update(unless_diverged(scores, units, self.weights), counts)
        losses, _ = items_of_groups(units, units.target, "doremi")
        # The share of the batch stands for that of the data. An absent domain has no item that would
        # be divided by its 0.
        shares = (counts / counts.sum()).clamp_min(torch.finfo(counts.dtype).tiny)
        weights = self.weights.item_weights(groups, shares, q)
        # Over all ranks, as the weights of one rank may be small.
        total = distributed.mean(weights.sum())
        scalars = partial(weight_scalars, self.names, self.weights)
        return Step((weights * losses).sum() / total, scalars, placed(weights / total, units))

    def summary(self) -> dict[str, dict[str, float]]:
        return {"data_mix": mean_weights(self.names, self.weights)}
