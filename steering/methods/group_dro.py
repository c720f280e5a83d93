"""Group DRO (arXiv 1911.08731): weights over groups that climb towards the worst one; with a
reference by excess loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.online.groups import GroupWeights, group_means
from steering.errors import SteeringError
from steering.items import LossItems, Units, rows_of
from steering.methods.ranges import Ranges, by_log, evenly
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class GroupDroOptions:
    step: float = 0.01
    """η of the exponentiated gradient q ← q·exp(η·L)."""
    penalty: float = 0.0
    """λ ≥ 0 in nats: strength of a KL penalty that keeps the weights near uniform; 0 goes for the
    worst group."""
    strength: float = 0.0
    """α in the group's loss mean(ℓ − α·ℓ_ref): 0 is group DRO, 1 weights groups by what can still
    be learned."""
    search: ClassVar[Ranges] = {
        "step": by_log(0.001, 0.1),
        "penalty": by_log(0.01, 1.0),
        "strength": evenly(0.25, 1.0),
    }

    def needs(self) -> Needs:
        return Needs(reference=self.strength > 0)


@register("group_dro", GroupDroOptions, units=("example", "token", "sequence"), groups=True)
class GroupDro(Method):
    """Group DRO: groups weighted towards the worst one.

    Formula: Σ_g q_g·L_g, q_g ← q_g·exp(η·L_g) and normalised, where L_g is the mean of ℓ − α·ℓ_ref
    in group g, of all ranks

    Source: arXiv 1911.08731
    """

    def __init__(self, options: GroupDroOptions, groups: Sequence[str]) -> None:
        super().__init__()
        if not 0 <= options.strength < float("inf"):
            raise ValueError(f"strength must be a number ≥ 0, got {options.strength}")
        self.names, self.strength = tuple(groups), options.strength
        self.weights = GroupWeights(len(groups), step=options.step, penalty=options.penalty)

    def without_groups(self, groups: Sequence[int]) -> None:
        self.weights.without(groups)

    def forward(self, items: LossItems) -> Step:
        units = rows_of(items)
        excess, groups = items_of_groups(units, units.excess(self.strength), "group_dro")
        means, counts = group_means(excess, groups, len(self.names))
        q = self.weights.update(unless_diverged(means, units, self.weights), counts)
        q = q.to(means.dtype)
        loss = (q * means.masked_fill(counts == 0, 0.0)).sum()
        # Of one item: its group's weight, shared by the group's items of all ranks.
        weights = placed((q / counts.clamp_min(1))[groups], units)
        return Step(loss, partial(weight_scalars, self.names, self.weights), weights)

    def summary(self) -> dict[str, dict[str, float]]:
        return {"group_weights": mean_weights(self.names, self.weights)}


def unless_diverged(scores: Tensor, units: Units, weights: GroupWeights) -> Tensor:
    """The groups' scores, or those that are remembered where the target's losses are not finite.

    The loop ends such a run, and says so; the weights would refuse the scores before.
    """
    finite = units.target.isfinite()
    if units.mask is not None:
        finite = finite | ~units.mask
    return torch.where(finite.all(), scores, weights.losses)


def items_of_groups(units: Units, values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The values and group numbers of the items that count, each (b,); SteeringError if the items
    have no groups."""
    if units.groups is None:
        raise SteeringError(f"method ({name}): weights groups, and the losses come without them")
    if units.mask is None:
        return values.flatten(), units.groups.flatten()
    return values[units.mask], units.groups[units.mask]


def placed(weights: Tensor, units: Units) -> Tensor:
    """Weights of the items that count, (b,), detached, in the shape of all; zero elsewhere."""
    weights = weights.detach()
    if units.mask is None:
        return weights.view(units.target.shape)
    return weights.new_zeros(units.target.shape).masked_scatter(units.mask, weights)


@torch.no_grad()
def weight_scalars(names: Sequence[str], weights: GroupWeights) -> dict[str, Tensor]:
    """The present weight of each group, for the log."""
    q = weights.log_q.exp()
    return {f"weight/{name}": q[number].clone() for number, name in enumerate(names)}


def mean_weights(names: Sequence[str], weights: GroupWeights) -> dict[str, float]:
    """The running mean of the weights, by group."""
    return dict(zip(names, weights.mean.tolist(), strict=True))
