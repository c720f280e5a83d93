"""Group DRO (arXiv 1911.08731): weights over groups that climb towards the worst one; with a
reference by excess loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.dro.online.groups import GroupWeights, group_means
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.methods.registry import Method, Step, register


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


class GroupDro(Method):
    """Σ_g q_g L_g over the groups of a batch, of all ranks."""

    def __init__(self, options: GroupDroOptions, groups: Sequence[str]) -> None:
        super().__init__()
        if not 0 <= options.strength < float("inf"):
            raise ValueError(f"strength must be a number ≥ 0, got {options.strength}")
        self.names, self.strength = tuple(groups), options.strength
        self.uses_reference = options.strength > 0
        self.weights = GroupWeights(len(groups), step=options.step, penalty=options.penalty)

    def start_epoch(self, epoch: int) -> None: ...

    def without_groups(self, groups: Sequence[int]) -> None:
        self.weights.without(groups)

    def forward(self, losses: Units | Pairs) -> Step:
        assert isinstance(losses, Units)
        items, groups = items_of_groups(losses, losses.excess(self.strength), "group_dro")
        means, counts = group_means(items, groups, len(self.names))
        loss = self.weights(means, counts)
        return Step(loss, weight_scalars(self.names, self.weights))

    def summary(self) -> dict[str, dict[str, float]]:
        return {"group_weights": mean_weights(self.names, self.weights)}


def items_of_groups(losses: Units, values: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The values and group numbers of the items that count, each (b,); SteeringError if the items
    have no groups."""
    if losses.groups is None:
        raise SteeringError(f"method ({name}): weights groups, and the losses come without them")
    if losses.mask is None:
        return values.flatten(), losses.groups.flatten()
    return values[losses.mask], losses.groups[losses.mask]


@torch.no_grad()
def weight_scalars(names: Sequence[str], weights: GroupWeights) -> dict[str, Tensor]:
    """The present weight of each group, for the log."""
    q = weights.log_q.exp()
    return {f"weight/{name}": q[number].clone() for number, name in enumerate(names)}


def mean_weights(names: Sequence[str], weights: GroupWeights) -> dict[str, float]:
    """The running mean of the weights, by group."""
    return dict(zip(names, weights.mean.tolist(), strict=True))


@register("group_dro", GroupDroOptions, units=("example", "token", "sequence"), groups=True)
def build(options: GroupDroOptions, num_examples: int, groups: Sequence[str]) -> Method:  # noqa: ARG001
    """Group DRO: groups weighted towards the worst one.

    Formula: Σ_g q_g·L_g, q_g ← q_g·exp(η·L_g) and normalised, where L_g is the mean of ℓ − α·ℓ_ref
    in group g Source: arXiv 1911.08731
    """
    return GroupDro(options, groups)
