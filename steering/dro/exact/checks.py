"""A look at everything that can be wrong with the input of `worst_case`, and that input in one
shape."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from steering.dro.divergences import divergence as find
from steering.dro.divergences.base import Divergence

_RANGE32 = 1e30


@dataclass(frozen=True)
class Problem:
    """Checked input, flattened to rows; the numbers of a row are float64, (rows,).

    Attributes:
        losses: (rows, n), without gradient; what the prior hides may be anything.
        prior: float64, (rows, n), each row sums to 1, zero where masked; None is uniform over all.
        top, spread: largest loss, and largest minus smallest; a constant row has spread 1.
        tau: penalty, in the unit of the losses; 0 with a radius alone and for CVaR.
        radius: R, or None with a penalty and for CVaR.
        modest: whether float32 can hold scaled rows and prices.
    """

    losses: Tensor
    divergence: Divergence
    prior: Tensor | None
    top: Tensor
    spread: Tensor
    tau: Tensor
    radius: Tensor | None
    modest: bool

    def rows(self, some: slice) -> Problem:
        prior, radius = (None if x is None else x[some] for x in (self.prior, self.radius))
        numbers = {name: getattr(self, name)[some] for name in ("losses", "top", "spread", "tau")}
        return replace(self, prior=prior, radius=radius, **numbers)


class _Shape:
    """Names rows and items of (..., n) in messages."""

    def __init__(self, losses: Tensor) -> None:
        self.leading = losses.shape[:-1]

    def row(self, bad: Tensor) -> str:
        """The first row that is True, of (rows,)."""
        place = int(bad.nonzero()[0, 0])
        if not self.leading:
            return "the only row"
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), self.leading))
        return f"row {index[0] if len(index) == 1 else index}"

    def fail(self, bad: Tensor, name: str, values: Tensor, expected: str) -> NoReturn:
        """ValueError for the first item that is True, of (rows, n)."""
        row, item = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}: {self.row(bad.any(-1))} holds {values[row, item].item()} at item {item}, expected {expected}"
        )


def checked(
    losses: Tensor,
    divergence: str | Divergence,
    radius: float | Tensor | None,
    rho: float | Tensor | None,
    penalty: float | Tensor | None,
    level: float | None,
    order: float | None,
    mask: Tensor | None,
    prior: Tensor | None,
) -> Problem:
    """The input of `worst_case`, or the ValueError that it deserves."""
    phi = find(divergence, level, order)
    if losses.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"losses: expected float32 or float64, got {losses.dtype}")
    if losses.dim() == 0 or losses.shape[-1] == 0:
        raise ValueError(
            f"losses: expected at least one item in each row, got shape {tuple(losses.shape)}"
        )
    shape = _Shape(losses)
    flat = losses.detach().reshape(-1, losses.shape[-1])
    q, counts = _prior(losses, flat, mask, prior, shape)
    top, spread = _ends(flat, q, shape)
    tau, limit = _budget(losses, phi, radius, rho, penalty, counts, shape)
    # Scaled items are (h − top)/spread, or (h − top)/τ: both, and their sums, must stay within
    # float32, which ends at 3e38.
    modest = (spread < _RANGE32) & (spread > 1 / _RANGE32)
    if penalty is not None and phi.takes_budget:
        modest &= spread < _RANGE32 * tau
    return Problem(flat, phi, q, top, spread, tau, limit, bool(modest.all()))


def _prior(
    losses: Tensor, flat: Tensor, mask: Tensor | None, prior: Tensor | None, shape: _Shape
) -> tuple[Tensor | None, Tensor]:
    """q, float64, (rows, n), or None if uniform over all; and how many items the mask leaves,
    (rows,)."""
    counts = torch.full(
        (len(flat),), float(flat.shape[-1]), dtype=torch.float64, device=flat.device
    )
    if mask is None and prior is None:
        return None, counts
    q = torch.ones_like(flat, dtype=torch.float64)
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: expected dtype bool, got {mask.dtype}")
        kept = _expanded(mask, losses.shape, "mask").reshape(flat.shape)
        counts = kept.sum(-1).double()
        if (hidden := counts == 0).any():
            raise ValueError(
                f"mask: {shape.row(hidden)} hides every item, expected at least one True"
            )
        q = q.masked_fill(~kept, 0.0)
    if prior is not None:
        if prior.requires_grad:
            raise ValueError("prior: gets no gradient, expected a detached tensor")
        given = _expanded(prior, losses.shape, "prior").reshape(flat.shape).double()
        # Written as a denial: a comparison with NaN is false, so NaN counts as bad.
        if (bad := ~((given >= 0) & given.isfinite()) & (q > 0)).any():
            shape.fail(bad, "prior", given, "finite numbers >= 0")
        # Chosen, not multiplied: what the mask hides may be NaN.
        q = torch.where(q > 0, given, 0.0)
        largest = q.amax(-1, keepdim=True)
        if (nothing := largest[:, 0] == 0).any():
            raise ValueError(
                f"prior: {shape.row(nothing)} is zero on every item that counts, expected a positive one"
            )
        # So that the sum cannot overflow.
        q = q / largest
    return q / q.sum(-1, keepdim=True), counts


def _ends(flat: Tensor, q: Tensor | None, shape: _Shape) -> tuple[Tensor, Tensor]:
    """Largest loss, and the spread of each row, (rows,), float64; ValueError where a loss that
    counts is not finite."""
    if q is None:
        top, low = flat.amax(-1), flat.amin(-1)
    else:
        # Filled on both sides, so that what the prior hides is neither the largest nor the
        # smallest.
        top = flat.masked_fill(q == 0, -torch.inf).amax(-1)
        low = flat.masked_fill(q == 0, torch.inf).amin(-1)
    # In float64, as the difference of two float32 numbers may leave float32. Not finite if an item is
    # not.
    top = top.double()
    spread = top - low
    if not spread.isfinite().all():
        counts = torch.ones_like(flat, dtype=torch.bool) if q is None else q > 0
        if (bad := counts & ~flat.isfinite()).any():
            shape.fail(bad, "losses", flat, "finite numbers")
        wide = shape.row(spread.isinf())
        raise ValueError(
            f"losses: {wide} spans more than float64 can hold, expected max - min < 1.8e308"
        )
    return top, torch.where(spread > 0, spread, 1.0)


def _budget(
    losses: Tensor,
    phi: Divergence,
    radius: float | Tensor | None,
    rho: float | Tensor | None,
    penalty: float | Tensor | None,
    counts: Tensor,
    shape: _Shape,
) -> tuple[Tensor, Tensor | None]:
    """Penalty and radius, float64, (rows,): (τ, None), (0, R), (τ, R), or (0, None) if the divergence
    takes no budget."""
    given = {"radius": radius, "rho": rho, "penalty": penalty}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not phi.takes_budget:
        raise ValueError(f"{' and '.join(given)}: {phi} takes no budget, expected None")
    if not given and phi.takes_budget:
        raise ValueError("radius, rho, penalty: expected at least one of them, got none")
    if radius is not None and rho is not None:
        raise ValueError("radius and rho: expected one of them, as rho is n times the radius")
    tau, limit = torch.zeros_like(counts), None
    for name, value in given.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name}: gets no gradient, expected a number or a detached tensor")
        rows = torch.as_tensor(value, dtype=torch.float64, device=losses.device)
        rows = _expanded(rows, losses.shape[:-1], name).reshape(-1)
        # NaN is not ≥ 0 either.
        if (bad := ~(rows >= 0)).any():
            raise ValueError(
                f"{name}: expected a number >= 0, got {rows[bad][0].item()} for {shape.row(bad)}"
            )
        if name == "penalty":
            tau = rows
        else:
            limit = rows if name == "radius" else rows / counts
    return tau, limit


def _expanded(x: Tensor, target: torch.Size, name: str) -> Tensor:
    try:
        return x.expand(target)
    except RuntimeError:
        shapes = f"{tuple(target)}, got {tuple(x.shape)}"
        what = "a shape" if name in ("mask", "prior") else "a number or a shape"
        raise ValueError(f"{name}: expected {what} that broadcasts to {shapes}") from None
