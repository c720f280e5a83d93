"""What the losses look at before they compute, and the row of items that they make of it."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from steering import distributed
from steering.items import Pairs, Units


def one_row(
    losses: Tensor,
    reference_losses: Tensor | None,
    mask: Tensor | None = None,
    *,
    index: Tensor | None = None,
    groups: Tensor | None = None,
    any_shape: bool = False,
) -> Units:
    """Checked losses of one batch as a single row, (b,), at least float32.

    Args:
        losses: (b,), with gradient.
        reference_losses: the same shape, or None.
        mask: bool, the same shape, or None.
        index: example numbers, int64, the same shape; messages then name the example.
        groups: int64, the same shape, or None.
        any_shape: also take (b, T) and the like, token by token, and flatten them.

    Raises:
        ValueError: shapes differ, the batch is empty, or a loss is not finite where the mask counts
            it (on a GPU the last is a device-side assertion, so that nothing waits).
    """
    for name, given in [("losses", losses), ("reference_losses", reference_losses)]:
        if given is not None and not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(given).__name__}")
    shape = tuple(losses.shape)
    if losses.numel() == 0 or losses.ndim == 0 or (losses.ndim > 1 and not any_shape):
        expected = "(b,) or (b, T)" if any_shape else "(b,)"
        raise ValueError(f"losses must be {expected} with b ≥ 1, got {shape}; use reduction='none'")
    for name, given in [("reference_losses", reference_losses), ("index", index)]:
        if given is not None and tuple(given.shape) != shape:
            raise ValueError(f"{name} must be {shape}, got {tuple(given.shape)}")
    for name, given, dtype in [("mask", mask, torch.bool), ("groups", groups, torch.int64)]:
        if given is not None and (tuple(given.shape) != shape or given.dtype != dtype):
            kind = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"{name} must be {kind}, {shape}, got {given.dtype}, {tuple(given.shape)}"
            )
    if index is not None:
        index = index.flatten()
    require_finite(losses, mask, index, "losses")
    if reference_losses is not None:
        require_finite(reference_losses, mask, index, "reference_losses")
    return Units(
        wide(losses).flatten(),
        None if reference_losses is None else wide(reference_losses.detach()).flatten(),
        torch.zeros((), dtype=torch.int64, device=losses.device),
        None if mask is None else mask.flatten(),
        groups=None if groups is None else groups.flatten(),
    )


def checked_pairs(
    image: Tensor,
    text: Tensor,
    index: Tensor | None,
    reference_image: Tensor | None = None,
    reference_text: Tensor | None = None,
) -> Pairs:
    """Features of one batch, at least float32.

    Args:
        index: example numbers, int64, (b,); None numbers the pairs of the batch over all ranks, for
            losses without memory.

    Raises:
        ValueError: shapes differ, or a feature is not finite.
    """
    if index is None:
        index = torch.arange(len(image), device=image.device) + distributed.rank() * len(image)
    pairs = Pairs(wide(image), wide(text), index, reference_image, reference_text)
    for name in ("image", "text", "reference_image", "reference_text"):
        features = getattr(pairs, name)
        if features is not None:
            _require(torch.isfinite(features.detach()).all(-1), index, f"{name}: not finite")
    return pairs


def wide(x: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def require_count(name: str, value: int) -> None:
    try:
        whole = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if whole < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def require_number(name: str, value: float, *, positive: bool = False) -> None:
    """ValueError unless it is a finite number ≥ 0, or > 0."""
    if not (0 < value < math.inf or (value == 0 and not positive)):
        raise ValueError(f"{name} must be a number {'>' if positive else '≥'} 0, got {value}")


def require_reference(losses: object, reference_losses: Tensor | None) -> None:
    """ValueError if there is none: without one these would go by the plain losses."""
    if reference_losses is None:
        raise ValueError(f"{type(losses).__name__} needs reference_losses, got None")


def require_share(value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"share must lie in (0, 1], got {value}")


def require_index(index: Tensor, num_examples: int | None) -> None:
    if index.dtype != torch.int64:
        hint = "; a mask is given by name: mask=" if index.dtype == torch.bool else ""
        raise ValueError(f"index must be int64, got {index.dtype}{hint}")
    if num_examples is not None:
        inside = (index >= 0) & (index < num_examples)
        _require(inside, index, f"index: outside [0, {num_examples})")


def require_finite(values: Tensor, mask: Tensor | None, index: Tensor | None, name: str) -> None:
    """What stands where the mask is False may be anything."""
    ok = torch.isfinite(values.detach())
    if mask is not None:
        ok = ok | ~mask
    _require(ok.flatten(), index, f"{name}: not finite")


def _require(ok: Tensor, index: Tensor | None, what: str) -> None:
    if ok.device.type != "cpu":
        # Asking would make the host wait for the GPU.
        torch._assert_async(ok.all(), what)
    elif not ok.all():
        place = int((~ok).nonzero()[0, 0])
        example = "" if index is None else f" (example {int(index[place])})"
        raise ValueError(f"{what} at position {place} of the batch{example}")
