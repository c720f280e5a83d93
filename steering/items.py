"""Loss items of one batch: what a task makes of two models' outputs, and what a method weighs.

Shapes: n items in a row; b pairs in this process, B = K·b over all ranks, d feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import singledispatch

import torch
from torch import Tensor

from steering import distributed
from steering.errors import SteeringError


class LossItems:
    """What a task makes of a batch and a method weighs: `Units`, losses themselves, or `Pairs`,
    features whose losses are between examples.

    Attributes:
        unit: what one loss belongs to: "example", "token", "sequence" or "pair".
    """

    unit: str


@dataclass(frozen=True)
class Units(LossItems):
    """Loss items of one batch; one adversary per row reweights the last axis.

    Attributes:
        target: target losses, (..., n), nats, with gradient, float32 or float64.
        reference: reference losses on the same items, (..., n), without gradient; None means "no
            reference".
        rows: int64 key of each row's running estimate, (...). A plain batch is a single row, (n,),
            and may leave it out: its key is 0.
        mask: bool, (..., n), True where an item counts; None means all do. What stands at the
            others may be anything.
        sharded: False when every rank holds the same rows, True when the rows are split over the
            ranks.
        groups: int64, (..., n), the group (class, domain) of each item; None where the data have
            none.
        logits: scores of the target over C classes or tokens, (..., n, C), with gradient; only for
            a method whose `Needs` name them.
        reference_logits: those of the reference, (..., n, C), without gradient.
        unit: what an item belongs to: "example", "token" or "sequence"; "pair" where the items are
            the losses between pairs.

    Raises:
        ValueError: shapes differ, a row has no items, the mask is not bool, or several rows come
            without keys. Broadcasting would hide such a mistake.
    """

    target: Tensor
    reference: Tensor | None = None
    rows: Tensor = field(default=None)  # type: ignore[assignment]  # a tensor after __post_init__
    mask: Tensor | None = None
    sharded: bool = False
    groups: Tensor | None = None
    logits: Tensor | None = None
    reference_logits: Tensor | None = None
    unit: str = "example"

    def __post_init__(self) -> None:
        shape = tuple(self.target.shape)
        if self.rows is None and len(shape) == 1:
            key = torch.zeros((), dtype=torch.int64, device=self.target.device)
            object.__setattr__(self, "rows", key)  # the class is frozen
        if not shape or shape[-1] == 0:
            raise ValueError(f"target must be (..., n) with n ≥ 1, got {shape}")
        if self.reference is not None and tuple(self.reference.shape) != shape:
            raise ValueError(
                f"reference must be {shape} like target, got {tuple(self.reference.shape)}"
            )
        rows = None if self.rows is None else tuple(self.rows.shape)
        if rows != shape[:-1]:
            raise ValueError(f"rows must be {shape[:-1]}, one key per row of target, got {rows}")
        if self.mask is not None and (
            tuple(self.mask.shape) != shape or self.mask.dtype != torch.bool
        ):
            raise ValueError(
                f"mask must be bool, {shape}, got {self.mask.dtype}, {tuple(self.mask.shape)}"
            )
        if self.groups is not None and (
            tuple(self.groups.shape) != shape or self.groups.dtype != torch.int64
        ):
            raise ValueError(
                f"groups must be int64, {shape}, got {self.groups.dtype}, {tuple(self.groups.shape)}"
            )
        for name in ("logits", "reference_logits"):
            scores = getattr(self, name)
            if scores is not None and tuple(scores.shape[:-1]) != shape:
                raise ValueError(f"{name} must be {(*shape, 'C')}, got {tuple(scores.shape)}")

    def excess(self, strength: float | Tensor = 1.0) -> Tensor:
        """h = ℓ − α·ℓ_ref, (..., n): the loss that training can still reduce. α = 1 is arXiv
        2505.06699, α = 0 plain DRO."""
        excess = self.target
        if self.reference is not None and (isinstance(strength, Tensor) or strength != 0.0):
            reference = self.reference.detach()
            plain = not isinstance(strength, Tensor) and strength == 1.0  # the usual case
            excess = excess - (reference if plain else strength * reference)
        # Zero where masked: a NaN there would survive a weight of zero.
        return excess if self.mask is None else excess.masked_fill(~self.mask, 0.0)

    def counts(self) -> Tensor:
        """Number of items that count in each row, (...), in the dtype of the losses; ValueError if
        a row has none."""
        if self.mask is None:
            return torch.full_like(self.target[..., 0], self.target.shape[-1]).detach()
        counts = self.mask.sum(-1)
        require_items(counts)
        return counts.to(self.target.dtype)


@singledispatch
def rows_of(items: LossItems) -> Units:
    """The items as losses that a method weighs or selects; SteeringError where there are none.

    Pairs have no losses before it is known which others each is compared with
    (`steering.contrastive.negatives`). A run refuses a method that does not fit its task by name
    (`steering.methods.Entry.objection`); this guards those who call a method themselves.
    """
    raise SteeringError(
        f"expected Units, one loss for each item, got {type(items).__name__} (unit {items.unit!r})"
    )


@rows_of.register
def _(items: Units) -> Units:
    return items


@singledispatch
def pairs_of(items: LossItems) -> Pairs:
    """The items as pairs, for what needs their features; SteeringError where they are losses."""
    raise SteeringError(
        f"expected Pairs, the features of pairs, got {type(items).__name__} (unit {items.unit!r})"
    )


def gathered(units: Units) -> Units:
    """The same rows over the items of all ranks: (..., n) becomes (..., K·n) on every rank. Logits
    stay behind."""
    if units.sharded or not distributed.active():
        return units

    def last_axis(x: Tensor) -> Tensor:
        return distributed.gather(x.movedim(-1, 0)).movedim(0, -1)

    reference = None if units.reference is None else last_axis(units.reference)
    mask = None if units.mask is None else last_axis(units.mask)
    groups = None if units.groups is None else last_axis(units.groups)
    return replace(
        units,
        target=last_axis(units.target),
        reference=reference,
        mask=mask,
        groups=groups,
        logits=None,
        reference_logits=None,
    )


def own_part(values: Tensor, count: int) -> Tensor:
    """The items of this process among those of all ranks: (..., K·count) → (..., count)."""
    if values.shape[-1] == count:
        return values
    first = distributed.rank() * count
    return values[..., first : first + count]


def require_items(counts: Tensor) -> None:
    """ValueError where a mask leaves nothing, which would become a NaN; on a GPU a device-side
    assertion."""
    if counts.device.type != "cpu":
        torch._assert_async((counts > 0).all(), "mask: a row of losses has no items")
    elif not (counts > 0).all():
        place = (counts == 0).nonzero()[0].tolist()
        raise ValueError(
            f"mask: row {place or 0} of the losses has no items, expected at least one"
        )


@dataclass(frozen=True)
class Pairs(LossItems):
    """Unit-norm features of b pairs; row i of every tensor belongs to example `index[i]`.

    Attributes:
        image, text: target features, (b, d), float32 or float64, with gradient.
        reference_image, reference_text: features of the frozen reference, (b, d′), without
            gradient; both or neither. They count in the dtype of `image`; in half precision they
            take half of the traffic between ranks.
        index: stable example numbers, int64, (b,); each once in a batch over all ranks.
        reference_scale: logit scale of the reference, 1/τ, the same number in each row, (b,); None:
            not known.
    """

    image: Tensor
    text: Tensor
    index: Tensor
    reference_image: Tensor | None = None
    reference_text: Tensor | None = None
    reference_scale: Tensor | None = None
    unit: str = field(default="pair", init=False)

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or self.image.shape != self.text.shape:
            raise ValueError(
                f"image and text must both be (b, d), got {tuple(self.image.shape)}, {tuple(self.text.shape)}"
            )
        if self.index.shape != self.image.shape[:1]:
            raise ValueError(
                f"index must be (b,) = ({len(self.image)},), got {tuple(self.index.shape)}"
            )
        if (self.reference_image is None) != (self.reference_text is None):
            raise ValueError("give both reference_image and reference_text, or neither")
        scale = self.reference_scale
        if scale is not None and scale.shape != self.index.shape:
            raise ValueError(
                f"reference_scale must be (b,) = ({len(self.image)},), got {tuple(scale.shape)}"
            )
        if self.reference_image is None or self.reference_text is None:
            return
        shapes = tuple(self.reference_image.shape), tuple(self.reference_text.shape)
        if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][0] != len(self.image):
            raise ValueError(
                f"reference features must both be ({len(self.image)}, d'), got {shapes[0]}, {shapes[1]}"
            )

    def reference(self) -> tuple[Tensor, Tensor] | None:
        """The reference's image and text features, detached and in the dtype of `image`, (b, d′)
        each; None without one."""
        if self.reference_image is None or self.reference_text is None:
            return None
        dtype = self.image.dtype
        return self.reference_image.detach().to(dtype), self.reference_text.detach().to(dtype)


@pairs_of.register
def _(items: Pairs) -> Pairs:
    return items
