"""Weights over groups (domains, classes) in anybody's loop: group DRO and DoReMi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.groups import GroupWeights, group_means
from steering.items import Units
from steering.losses.checks import one_row, require_number, require_reference
from steering.losses.estimate import Estimate
from steering.methods.doremi import DoremiOptions
from steering.methods.group_dro import GroupDroOptions


class OverGroups(nn.Module):
    """What losses have in common that weigh groups."""

    weights: GroupWeights

    @property
    def mix(self) -> Tensor:
        """Running mean of the groups' weights over the training calls, (k,): DoReMi's is the mix to
        train the large model on."""
        return self.weights.mean

    def without(self, groups: Sequence[int]) -> None:
        """Take all weight from groups that no training example belongs to; call it before
        training."""
        self.weights.without(groups)


class GroupDRO(OverGroups):
    """Group DRO (arXiv 1911.08731): weights over groups that climb towards the worst one.

        steer = GroupDRO(num_groups=4)
        loss = steer(losses, None, groups)

    The loss is Σ_g q_g·L_g, where L_g is the mean of ℓ − α·ℓ_ref over the group's examples in the
    batches of all ranks; then q_g ← q_g·exp(η·L_g), normalised.

    Args:
        num_groups: k; groups are numbered 0 .. k − 1.
        step: η ≥ 0.
        penalty: λ ≥ 0 in nats: a KL penalty that keeps q near uniform. 0 goes for the worst group.
        strength: α ≥ 0. 0 is group DRO; 1 weights groups by what can still be learned.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_groups: int,
        *,
        step: float = GroupDroOptions().step,
        penalty: float = GroupDroOptions().penalty,
        strength: float = GroupDroOptions().strength,
    ) -> None:
        super().__init__()
        require_number("strength", strength)
        self.strength = strength
        self.weights = GroupWeights(num_groups, step=step, penalty=penalty)

    def forward(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        groups: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Σ_g q_g·L_g, (). See `estimate`."""
        return self.estimate(losses, reference_losses, groups, mask).loss

    def estimate(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        groups: Tensor,
        mask: Tensor | None = None,
    ) -> Estimate:
        """Loss, weights and metrics of one batch; a training call like `forward`, so call one of
        the two.

        Args:
            losses: target losses, (b,) or any shape, item by item; with gradient.
            reference_losses: the same shape; None with `strength` 0.
            groups: int64, the same shape, in [0, k).
            mask: bool, the same shape, False where an item does not count.

        Returns:
            The weights are q_g over the number of the group's items; over all ranks they sum to the
            q of the groups that are there.

        Raises:
            ValueError: shapes differ, nothing counts, a group is out of range, or a loss that
                counts is not finite.
        """
        if self.strength > 0 and reference_losses is None:
            raise ValueError(
                f"strength {self.strength} needs reference_losses, got None; set strength=0"
            )
        units = one_row(losses, reference_losses, mask, groups=groups, any_shape=True)
        values, numbers = _items(units, units.excess(self.strength))
        means, counts = group_means(values, numbers, len(self.mix))
        q = self.weights.update(means, counts).to(means.dtype)
        loss = (q * means.masked_fill(counts == 0, 0.0)).sum()
        weights = (q / counts.clamp_min(1))[numbers]
        return Estimate(loss, _placed(weights, losses, mask), _scalars(self.weights))


class DoReMi(OverGroups):
    """DoReMi's proxy run (arXiv 2305.10429): domains weighted by clipped excess loss; the mean
    weights are a data mix.

        steer = DoReMi(num_groups=22)
        loss = steer(token_losses, reference_token_losses, domains)
        ...
        print(steer.mix)

    The loss is the mean of the losses weighted by a_d over the share of domain d in the batch; a_d
    ← a_d·exp(η·s_d), normalised, a ← (1 − c)·a + c/k, where s_d is the mean of [ℓ − ℓ_ref]₊.

    Args:
        num_groups: k domains, numbered 0 .. k − 1.
        step: η ≥ 0.
        smoothing: c in [0, 1): every domain keeps at least c/k.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_groups: int,
        *,
        step: float = DoremiOptions().step,
        smoothing: float = DoremiOptions().smoothing,
    ) -> None:
        super().__init__()
        self.weights = GroupWeights(num_groups, step=step, smoothing=smoothing)

    def forward(
        self,
        losses: Tensor,
        reference_losses: Tensor,
        groups: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The weighted mean of the losses, (). See `estimate`."""
        return self.estimate(losses, reference_losses, groups, mask).loss

    def estimate(
        self,
        losses: Tensor,
        reference_losses: Tensor,
        groups: Tensor,
        mask: Tensor | None = None,
    ) -> Estimate:
        """Loss, weights and metrics of one batch; a training call like `forward`, so call one of
        the two.

        Args:
            losses: target losses, (b, T) or any shape, item by item; with gradient.
            reference_losses: the same shape.
            groups: int64, the same shape, the domain of each item.
            mask: bool, the same shape, False where an item does not count.

        Returns:
            Over all ranks the weights sum to 1; those of a domain to its share a_d, but for domains
            that the batch lacks.

        Raises:
            ValueError: no reference, or as in `GroupDRO`.
        """
        require_reference(self, reference_losses)
        units = one_row(losses, reference_losses, mask, groups=groups, any_shape=True)
        clipped, numbers = _items(units, units.excess().detach().clamp_min(0.0))
        scores, counts = group_means(clipped, numbers, len(self.mix))
        a = self.weights.update(scores, counts)
        shares = (counts / counts.sum()).clamp_min(torch.finfo(counts.dtype).tiny)
        weights = self.weights.item_weights(numbers, shares, a)
        # Over all ranks, as the weights of one rank may be small.
        total = distributed.mean(weights.sum())
        values, _ = _items(units, units.target)
        loss = (weights * values).sum() / total
        # `total` is a mean over the ranks, and weights are told as shares of the sum.
        own = weights / (total * distributed.world_size())
        return Estimate(loss, _placed(own, losses, mask), _scalars(self.weights))


def _items(units: Units, values: Tensor) -> tuple[Tensor, Tensor]:
    """The values and groups of the items that count, each (m,)."""
    assigned = units.groups
    if assigned is None:
        raise ValueError("groups: must be given, got None")
    if units.mask is None:
        return values, assigned
    return values[units.mask], assigned[units.mask]


def _placed(weights: Tensor, losses: Tensor, mask: Tensor | None) -> Tensor:
    """Weights of the items that count in the shape of the losses, zero elsewhere."""
    weights = weights.detach()
    if mask is None:
        return weights.view(losses.shape)
    return weights.new_zeros(losses.shape).masked_scatter(mask, weights)


@torch.no_grad()
def _scalars(weights: GroupWeights) -> dict[str, Tensor]:
    """The present weight of each group, by number."""
    q = weights.log_q.exp()
    return {f"weight/{number}": q[number].clone() for number in range(len(q))}
