"""DoReMi (arXiv 2305.10429): domain weights by group DRO on clipped excess losses; their running
mean is a data mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering import distributed
from steering.dro.online.groups import GroupWeights, group_means
from steering.items import Pairs, Units
from steering.methods.group_dro import items_of_groups, mean_weights, weight_scalars
from steering.methods.registry import Method, Step, register


@dataclass
class DoremiOptions:
    step: float = 1.0
    """η of the exponentiated gradient a ← a·exp(η·s) on the domains' scores s = mean [ℓ −
    ℓ_ref]_+."""
    smoothing: float = 1e-3
    """c in a ← (1 − c)·a + c/k: every one of the k domains that have examples keeps at least
    c/k."""


class Doremi(Method):
    """The proxy run: losses weighted by a_d over the share of domain d in the batch; the mix is in
    `summary`."""

    uses_reference = True

    def __init__(self, options: DoremiOptions, groups: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(groups)
        self.weights = GroupWeights(len(groups), step=options.step, smoothing=options.smoothing)

    def start_epoch(self, epoch: int) -> None: ...

    def without_groups(self, groups: Sequence[int]) -> None:
        self.weights.without(groups)

    def forward(self, losses: Units | Pairs) -> Step:
        assert isinstance(losses, Units)
        k = len(self.names)
        clipped, groups = items_of_groups(losses, losses.excess().detach().clamp_min(0.0), "doremi")
        scores, counts = group_means(clipped, groups, k)
        q = self.weights.update(scores, counts)
        items, _ = items_of_groups(losses, losses.target, "doremi")
        shares = (counts / counts.sum()).clamp_min(torch.finfo(counts.dtype).tiny)
        weights = self.weights.item_weights(groups, shares, q)
        total = distributed.mean(
            weights.sum()
        )  # over all ranks, as the weights of one rank may be small
        return Step((weights * items).sum() / total, weight_scalars(self.names, self.weights))

    def summary(self) -> dict[str, dict[str, float]]:
        return {"data_mix": mean_weights(self.names, self.weights)}


@register("doremi", DoremiOptions, units=("example", "token", "sequence"), groups=True)
def build(options: DoremiOptions, num_examples: int, groups: Sequence[str]) -> Method:  # noqa: ARG001
    """DoReMi: domains weighted by clipped excess loss; the mean weights are a data mix.

    Formula: Σ_d a_d·L_d, a_d ← a_d·exp(η·s_d) and normalised, a ← (1 − c)·a + c/k, where s_d is the
    mean of [ℓ − ℓ_ref]₊ Source: arXiv 2305.10429
    """
    return Doremi(options, groups)
