"""Blocks of scaled rows: the limits of the budget, and the divergence's own solution in between."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steering.dro.divergences.base import Divergence
from steering.dro.divergences.rows import EPS, Rows, Solution
from steering.dro.exact.checks import Problem

_BLOCK = {"cpu": 2**20}  # items solved at once: their temporaries stay in the cache
_BLOCK_ELSEWHERE = 2**27  # a GPU fits larger ones: 1 GiB for each temporary in float64


def solved(problem: Problem) -> Solution:
    """All rows, block by block; weights (rows, n) in the dtype of the losses, the rest float64,
    (rows,), scaled."""
    weights, parts = torch.empty_like(problem.losses), []
    spare: dict[int, Tensor] = {}
    for some in blocks_of(problem):
        solution = _block(problem.rows(some), weights[some], spare)
        # Many solutions have left their weights there already, in the memory of the scaled rows.
        if solution.weights.data_ptr() != weights[some].data_ptr():
            weights[some] = solution.weights
        parts.append(solution[1:])
    return Solution(
        weights, *(parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True)))
    )


def blocks_of(problem: Problem) -> list[slice]:
    """Some rows at a time; one slice at least."""
    m, n = problem.losses.shape
    size = max(1, _BLOCK.get(problem.losses.device.type, _BLOCK_ELSEWHERE) // n)
    return [slice(start, start + size) for start in range(0, max(m, 1), size)]


def _block(problem: Problem, out: Tensor, spare: dict[int, Tensor]) -> Solution:
    """One block of rows: the limits of the budget, and the divergence's own solution in between.

    The scaled rows are written to `out`, where a solution that needs them no more leaves its
    weights.
    """
    divergence, eps = problem.divergence, torch.finfo(problem.losses.dtype).eps
    if problem.radius is not None and bool((problem.tau > 0).any()):
        return _priced_within(problem, problem.radius)
    if not divergence.takes_budget:
        return divergence.penalised(scaled(problem, problem.spread, out, spare))
    if problem.radius is None:
        # Its limit τ → 0 is not the largest item alone; the search finds it, at a tiny price.
        if divergence.has_ceiling:
            tiny = torch.maximum(problem.tau, 1e-280 * problem.spread)
            problem = replace(problem, tau=tiny)
        # The price in the unit of the scaled rows. Beyond the one bound no weight of this dtype
        # differs from the prior; beyond the other x/τ would leave float64. There the unit is the
        # spread, so that x stays finite in rows whose answer is a limit anyway.
        prices = problem.tau / problem.spread
        flat, sharp = prices > eps**-1.1, prices < 1e-290
        unit = torch.where(flat | sharp, problem.spread, problem.tau)
        rows = scaled(problem, unit, out, spare)
    else:
        unit, rows = problem.spread, scaled(problem, problem.spread, out, spare)
        # D of the weights that lie on the largest items alone: t = 1/share there, and 0 elsewhere.
        # φ(0) may be ∞, and ∞ times a share of nothing would be NaN.
        share = rows.share(rows.x == 0)
        least = torch.where(share < 1, (1 - share) * divergence.phi(torch.zeros_like(share)), 0.0)
        most = share * divergence.phi(1 / share) + least
        flat, sharp = problem.radius < eps**2, problem.radius >= most * (1 - 8 * EPS)
    if not (limit := flat | sharp).any():
        solution = _inner(divergence, rows, problem.radius)
        if problem.radius is not None:
            return solution
        # From units of τ to those of the scaled rows.
        weights, value, _, nu = solution
        return Solution(weights, value * prices, prices, nu * prices)
    solution = _limits(rows, flat, _least_ratio(problem))
    if not limit.all():
        # Only the rows whose answer is no limit. Indexing copies them, so that a solution may write
        # over its rows.
        inner = (~limit).nonzero()[:, 0]
        some = Rows(
            rows.x[inner], rows.extent[inner], None if rows.prior is None else rows.prior[inner]
        )
        weights, *numbers = _inner(
            divergence, some, None if problem.radius is None else problem.radius[inner]
        )
        solution.weights[inner] = weights.to(solution.weights.dtype)
        for whole, part in zip(solution[1:], numbers, strict=True):
            # The unit is τ with a penalty, and the spread itself with a radius.
            whole[inner] = part * (unit / problem.spread)[inner]
    return solution


def _priced_within(problem: Problem, radius: Tensor) -> Solution:
    """A price and a budget together: the penalised solution where it spends no more than the budget,
    else that of the budget, less its price.

    By the Lagrangian: the multiplier of the budget adds to the price, so the weights are those of a
    higher price, and where the budget binds they do not depend on τ.
    """
    priced = solved(replace(problem, radius=None))
    free = solved(replace(problem, tau=torch.zeros_like(problem.tau)))
    price = problem.tau / problem.spread
    over = _spent(problem, priced.weights) > radius
    # `free` was solved without the price, which its weights have to pay all the same.
    value = free.value - torch.where(over, price * _spent(problem, free.weights), 0.0)
    weights = torch.where(over[:, None], free.weights, priced.weights)
    numbers = [
        torch.where(over, x, y)
        for x, y in ((value, priced.value), (free.tau, priced.tau), (free.nu, priced.nu))
    ]
    return Solution(weights, *numbers)


def _spent(problem: Problem, weights: Tensor) -> Tensor:
    """D_φ(p‖q) of the weights of a block, (rows,), float64."""
    rows = scaled(problem, problem.spread)
    return rows.mean(prices_of(problem, rows.ratios(weights.double())))


def prices_of(problem: Problem, ratios: Tensor) -> Tensor:
    """φ(t), (rows, n), float64; a ratio at a ceiling may stand above it by the rounding of the
    weights."""
    phi = problem.divergence.phi
    rounding = 4 * torch.finfo(problem.losses.dtype).eps
    found = phi(ratios)
    return torch.where(found.isinf(), phi(ratios * (1 - rounding)), found)


def _inner(divergence: Divergence, rows: Rows, radius: Tensor | None) -> Solution:
    return divergence.penalised(rows) if radius is None else divergence.constrained(rows, radius)


def _least_ratio(problem: Problem) -> Tensor:
    """Ratio of the items that the limit τ → 0 leaves out, (rows,), float64: zero as a rule.

    Where φ(0) = ∞, as for reverse KL, a weight of zero has an infinite price, and only at τ = 0
    is it free. Rounding squared costs next to nothing at the tiny τ of this limit.
    """
    none = torch.zeros_like(problem.tau)
    if problem.radius is not None or problem.divergence.phi(none[:1]).isfinite().all():
        return none
    return torch.where(problem.tau > 0, torch.finfo(problem.losses.dtype).eps ** 2, 0.0)


def _limits(rows: Rows, flat: Tensor, least: Tensor) -> Solution:
    """τ = ∞, the prior itself, in the rows that are flat; τ = 0, the largest items alone, in the
    others."""
    # Equal shares of the prior for those that tie; what is left out keeps `least`, as a rule zero.
    largest = (rows.x == 0).to(rows.x.dtype)
    sharp = torch.maximum(largest / rows.column(rows.mean(largest)), rows.column(least))
    ratios = torch.where(flat[:, None], 1.0, sharp)
    mean = torch.where(flat, rows.mean(rows.x), 0.0)
    return Solution(
        rows.weights(ratios), mean, torch.where(flat, torch.inf, 0.0).double(), mean.clone()
    )


def scaled(
    problem: Problem,
    unit: Tensor,
    out: Tensor | None = None,
    spare: dict[int, Tensor] | None = None,
) -> Rows:
    """x = (h − top)/unit, 0 where the prior is 0; written to `out` if its dtype can hold it, else
    float64."""
    # In float32 only where that costs nothing: a prior is float64, whole numbers beyond 2^24 are no
    # longer counted, and `modest` bounds what x and prices may be.
    h = problem.losses
    if out is None or problem.prior is not None or h.shape[-1] > 2**24 or not problem.modest:
        h, out = h.double(), None
    top, divisor = (x.to(h.dtype)[:, None] for x in (problem.top, unit))
    x = torch.sub(h, top, out=out).div_(divisor)
    if problem.prior is not None:
        x.masked_fill_(problem.prior == 0, 0.0)
    return Rows(x, problem.spread / unit, problem.prior, {} if spare is None else spare)
