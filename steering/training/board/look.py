"""What one step saw: losses, reference losses and weights of the items of all ranks.

Made for the steps that are logged or drawn, and for no others: it gathers over the ranks. Shapes: R
rows of N items; pairs are one row, with one loss for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.naive import own_columns
from steering.dro.online.told import effective_share, excess_metrics, spent_metrics
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.methods.registry import Step

ANCHORS = 64
"""Image anchors of a contrastive batch that InfoNCE's weights are looked at of."""


@dataclass(frozen=True)
class Look:
    """The items of a step, without gradient, on every rank the same.

    Attributes:
        loss: target losses, (R, N), nats; of pairs the mean over their negatives and both
            directions of cos(i, j) − cos(i, i).
        reference: the reference's on the same items, or None.
        mask: bool, True where an item counts.
        weights: ≥ 0, 1 in the sum of a row that has any weight.
        groups: int64, or None.
        example: number of the example that an item belongs to, int64; None where it cannot be told.
        place: which of its example's items an item is, int64, from 0; None as `example`.
    """

    loss: Tensor
    reference: Tensor | None
    mask: Tensor
    weights: Tensor
    groups: Tensor | None = None
    example: Tensor | None = None
    place: Tensor | None = None

    @property
    def ratios(self) -> Tensor:
        """Weights as multiples of a uniform one, (R, N)."""
        return self.weights * self.mask.sum(-1, keepdim=True)

    def noise(self, wrong: Tensor | None) -> Tensor | None:
        """How much of each item's label is wrong, in [0, 1], (R, N), 0 where masked; None where
        nobody knows.

        Args:
            wrong: the same of the items of every training example, (n, k); k = 1: they share it.
        """
        if wrong is None or self.example is None or self.place is None:
            return None
        known = wrong.to(self.example.device)
        place = self.place if known.shape[1] > 1 else 0
        return known[self.example, place].to(self.weights.dtype) * self.mask


@torch.no_grad()
def look_at(step: Step) -> Look:
    """The look of a step that `steering.training` has made; every rank calls this.

    Raises:
        TypeError: items of a kind that nobody knows.
    """
    if step.items is None or step.index is None:
        raise SteeringError("a step can be looked at when training has filled in its items")
    return _look(step.items, step.index, step.weights)


@singledispatch
def _look(items: object, index: Tensor, weights: Tensor | None) -> Look:  # noqa: ARG001
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_look.register
def _(items: Units, index: Tensor, weights: Tensor | None) -> Look:
    loss = items.target.detach()
    mask = torch.ones_like(loss, dtype=torch.bool) if items.mask is None else items.mask
    # A block of tokens is an example: its number counts for each of them.
    each = loss.shape[-1] / len(index)
    example = place = None
    if each.is_integer():
        example = index.repeat_interleave(int(each)).expand(loss.shape)
        place = torch.arange(int(each), device=index.device).repeat(len(index)).expand(loss.shape)
    given = mask.to(loss.dtype) if weights is None else weights * mask

    def whole(x: Tensor | None) -> Tensor | None:
        return None if x is None else _rows(x.detach(), items.sharded)

    reference, groups = whole(items.reference), whole(items.groups)
    found = [_rows(x, items.sharded) for x in (loss, mask, given)]
    weights, where = _shares(found[2]), (whole(example), whole(place))
    return Look(found[0], reference, found[1], weights, groups, *where)


@_look.register
def _(items: Pairs, index: Tensor, weights: Tensor | None) -> Look:
    guide = items.reference()
    loss = _pair_losses(items.image.detach(), items.text.detach())
    reference = None if guide is None else _pair_losses(*guide)
    given = torch.ones_like(loss) if weights is None else weights.detach()
    own = given if given.ndim == 1 else given.mean(0)  # of both anchors of a pair
    whole = distributed.gather(own.contiguous())[None]
    numbers = distributed.gather(index)[None]
    where = numbers, torch.zeros_like(numbers)
    return Look(loss, reference, torch.ones_like(loss).bool(), _shares(whole), None, *where)


def _rows(x: Tensor, sharded: bool) -> Tensor:
    """(..., n) of this rank as (R, N) of all: further rows, or further items of the same rows."""
    rows = x.reshape(-1, x.shape[-1])
    if sharded:
        return distributed.gather(rows.contiguous())
    return distributed.gather(rows.T.contiguous()).T


def _shares(weights: Tensor) -> Tensor:
    total = weights.sum(-1, keepdim=True)
    return weights / total.clamp_min(torch.finfo(weights.dtype).tiny)


def _pair_losses(image: Tensor, text: Tensor) -> Tensor:
    """Mean of cos(i, j) − cos(i, i) over j ≠ i and both directions, (1, B); in memory linear in the
    batch, as a mean of cosines is the cosine of a mean."""
    image, text = distributed.gather(image.contiguous()), distributed.gather(text.contiguous())
    others = max(len(image) - 1, 1)
    own = (image * text).sum(-1)
    # Σ_j cos(i, j) = x_i·Σ_j t_j, and less its own pair there are B − 1 of them.
    both = image @ text.sum(0) + text @ image.sum(0)
    return ((both / 2 - own) / others - own)[None]


@torch.no_grad()
def adversary_scalars(step: Step, look: Look, told: dict[str, float]) -> dict[str, float]:
    """Effective share, largest weight, spent KL, and mean and standard deviation of the excess loss
    of the adversary that weighs the items; every rank calls this.

    For pairs that is the adversary over an anchor's negatives: what the method tells of it, else
    InfoNCE's softmax.

    Args:
        told: what the method has told of the step, means over the ranks.
    """
    if step.items is None:
        return {}
    found = _adversary(step.items, look, told)
    return {name: float(value) for name, value in found.items()}


@singledispatch
def _adversary(items: object, look: Look, told: dict[str, float]) -> dict[str, Tensor | float]:  # noqa: ARG001
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_adversary.register
def _(items: Units, look: Look, told: dict[str, float]) -> dict[str, Tensor | float]:  # noqa: ARG001
    alpha = told.get("strength", 1.0)
    excess = look.loss if look.reference is None else look.loss - alpha * look.reference
    counts = look.mask.sum(-1).to(look.loss.dtype)
    return _named(
        effective_share(look.weights, counts),
        spent_metrics(look.weights, counts),
        excess_metrics(look.mask, excess.masked_fill(~look.mask, 0.0)),
    )


@_adversary.register
def _(items: Pairs, look: Look, told: dict[str, float]) -> dict[str, Tensor | float]:  # noqa: ARG001
    if "kl_spent" in told:
        return _named(told["effective_sample_share"], told, told)
    if "tau" not in told:
        return {}
    # Plain InfoNCE, whose softmax nobody has told of: look at some of this rank's anchors.
    image, text = items.image.detach()[:ANCHORS], distributed.gather(items.text.detach())
    cosines = image @ text.T
    own = own_columns(len(items.index), image.device)[: len(image), None]
    excess = cosines - cosines.gather(1, own)
    mask = torch.ones_like(excess, dtype=torch.bool).scatter(1, own, False)
    weights = (excess / told["tau"]).masked_fill(~mask, -torch.inf).softmax(-1)
    others = float(excess.shape[-1] - 1)
    found = _named(
        effective_share(weights, others),
        spent_metrics(weights, others),
        excess_metrics(mask, excess),
    )
    numbers = torch.stack([torch.as_tensor(value).double() for value in found.values()])
    return dict(zip(found, distributed.mean(numbers), strict=True))


def _named(share: Tensor | float, spent: dict, excess: dict) -> dict[str, Tensor | float]:
    return {
        "ess": share,
        "weight_max": spent["weight_max"],
        "kl_spent": spent["kl_spent"],
        "excess_mean": excess["excess_mean"],
        "excess_std": excess["excess_variance"] ** 0.5,
    }
