"""Exact worst-case weights of each row of losses, for any divergence of `divergences.py`.

Rows are shifted and scaled to x ∈ [−1, 0] with the largest item at 0, so neither the unit, nor the
offset, nor the dtype of the losses costs digits; a divergence then solves scaled rows (`base.py`).
What no divergence needs to know happens here: looking at the input, the limits of the budget,
blocks of rows that fit into a cache, the gradient, and the certificate.

Legend: "..." leading dimensions, m rows of a block, n items in a row, q the prior, t_i = p_i / q_i
likelihood ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from steering.dro.divergences.base import EPS, Divergence, Rows, Solution
from steering.dro.exact.checks import Problem, checked

_BLOCK = {"cpu": 2**20}  # items solved at once: their temporaries stay in the cache
_BLOCK_ELSEWHERE = 2**27


@dataclass(frozen=True, eq=False)
class Dual:
    """Multipliers of one solution, each (...), in the unit of the losses.

    Attributes:
        tau: price of the divergence, the penalty itself or the multiplier of the radius, or their sum;
            in [0, ∞].
            Zero when the radius does not bind (its price is nothing), and for CVaR, whose value
            does not depend on it.
        nu: price of Σ p = 1. KL with a penalty: the value; CVaR: the quantile. At tau = 0 the
            largest loss (but for CVaR), at tau = ∞ the mean.
    """

    tau: Tensor
    nu: Tensor


@dataclass(frozen=True, eq=False)
class WorstCase:
    """Worst case of each row, in the dtype of the losses.

    Attributes:
        value: (...), unit of the losses; its gradient with respect to the losses is `weights`.
        weights: p*, (..., n), without gradient, ≥ 0, zero where masked, each row sums to 1.
        dual: the multipliers, without gradient.
    """

    value: Tensor
    weights: Tensor
    dual: Dual
    _certificate: Callable[[], Tensor] = field(repr=False)

    @property
    def gap(self) -> Tensor:
        """Dual minus primal objective, (...), unit of the losses: how far `value` can be from the
        supremum.

        Computed from `weights` and the multipliers when asked for, in float64, by the definitions
        of φ and φ* alone: it shares nothing with the solver, so it certifies its answer. Zero up to
        rounding.
        """
        return self._certificate()


def worst_case(
    losses: Tensor,
    divergence: str | Divergence,
    *,
    radius: float | Tensor | None = None,
    rho: float | Tensor | None = None,
    penalty: float | Tensor | None = None,
    level: float | None = None,
    order: float | None = None,
    mask: Tensor | None = None,
    prior: Tensor | None = None,
) -> WorstCase:
    """Worst-case mean of each row of losses h under weights p near a prior q, and the weights that
    attain it.

        radius R   value = sup { Σ_i p_i h_i : p ∈ Δ, D_φ(p‖q) ≤ R }
        rho ρ      the same with R = ρ/n, the convention of the theory
        penalty τ  value = sup { Σ_i p_i h_i − τ D_φ(p‖q) : p ∈ Δ }
        both       value = sup { Σ_i p_i h_i − τ D_φ(p‖q) : p ∈ Δ, D_φ(p‖q) ≤ R }
        CVaR       value = mean of the level · n largest h_i        (none of the three)

    R = 0 or τ = ∞ give the mean. τ = 0 and R = ∞ give the maximum, and so does any R ≥ D_φ of the
    largest items, which is log(n/k) for KL, (n/k − 1)/2 for half chi-square and 1 − k/n for total
    variation, if k items share the largest loss. Where several p are optimal, equal losses get
    equal ratios p_i/q_i; a constant row gets p = q.

    Gradient: by the envelope theorem ∂value/∂losses = weights, as constants (second derivatives
    come out as zero). Where the value has a kink (CVaR with a tie at its quantile, a tie at the
    maximum) this is one subgradient.

    Groups instead of examples: give the mean losses of the groups as `losses`, and their shares as
    `prior`.

    Args:
        losses: h, (..., n), float32 or float64, n ≥ 1, nats as a rule; any number of rows, each on
            its own.
        divergence: an object such as KL(), or "kl", "chi2" (half chi-square), "cvar" with `level`,
            "cressie-read" with `order`, "tv" (total variation), "cvar-kl" with `level` (CVaR with a KL
            price).
        radius: R ≥ 0, a number or a tensor that broadcasts to (...), unit of the divergence. No
            gradient. With more than the weights of a row can spend, ∞ too, the adversary of that
            row is free.
        rho: ρ ≥ 0, likewise; n counts the items that the mask leaves.
        penalty: τ ≥ 0, likewise, unit of the losses, ∞ allowed; the derivative of the value is
            −D_φ(p*‖q).
        level: of CVaR and "cvar-kl", 0 < level ≤ 1.
        order: of the Cressie–Read family.
        mask: bool, broadcasts to losses, True where an item counts; n is then the number of those.
            What stands at the others may be anything, NaN too. None means all count.
        prior: q ≥ 0, broadcasts to losses, any scale (it is normalised over the mask); an item of
            prior zero gets weight zero. None means uniform. No gradient.

    Returns:
        WorstCase, rows (...). With a radius, D_φ(weights) ≤ R up to rounding, which is the more of
        R the smaller it is (in float64 1e-9 of R = 1e-12), as in dual.tau; the value stays good. R
        below the square of the dtype's rounding counts as 0, as does 1/τ below it for a penalty in
        units of max h − min h.

    Raises:
        ValueError: losses of another dtype, without items, not finite, or with a row that spans
            more than float64; a mask or prior that does not fit or leaves nothing of a row; none or
                    radius and rho together, or any of radius, rho and penalty with CVaR; a budget that is negative,
            NaN, does not fit or requires a gradient. The message names argument, row, item and what
            was expected.

    Source: Ben-Tal et al. (2013), Theorem 1, for the dual with a radius; limits, search and scaling
    are our derivation.
    """
    problem = checked(losses, divergence, radius, rho, penalty, level, order, mask, prior)
    with torch.no_grad():
        solution = _solved(problem)
    value = problem.top + problem.spread * solution.value
    tau = problem.tau if problem.radius is None else solution.tau * problem.spread
    nu = problem.top + problem.spread * solution.nu
    shape, dtype = losses.shape, losses.dtype
    weights = solution.weights.view(shape)

    def rows(x: Tensor) -> Tensor:
        return x.to(dtype).view(shape[:-1])

    def gap() -> Tensor:
        with torch.no_grad():
            return rows(problem.spread * certificate(problem, solution))

    value = rows(value)
    if losses.requires_grad:
        value = _Envelope.apply(losses, value, weights)
    return WorstCase(value, weights, Dual(rows(tau), rows(nu)), gap)


class _Envelope(torch.autograd.Function):
    """The value, with the weights as its gradient."""

    @staticmethod
    def forward(ctx, losses: Tensor, value: Tensor, weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ARG004
        ctx.save_for_backward(weights)
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (weights,) = ctx.saved_tensors
        return gradient[..., None] * weights, None, None


def _solved(problem: Problem) -> Solution:
    """All rows, block by block; weights (rows, n) in the dtype of the losses, the rest float64,
    (rows,), scaled."""
    weights, parts = torch.empty_like(problem.losses), []
    spare: dict[int, Tensor] = {}
    for some in _blocks(problem):
        solution = _block(problem.rows(some), weights[some], spare)
        if solution.weights.data_ptr() != weights[some].data_ptr():
            weights[some] = solution.weights
        parts.append(solution[1:])
    return Solution(
        weights, *(parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True)))
    )


def _blocks(problem: Problem) -> list[slice]:
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
        return _priced_within(problem)
    if not divergence.takes_budget:
        return divergence.penalised(_scaled(problem, problem.spread, out, spare))
    if problem.radius is None:
        if divergence.has_ceiling:  # its limit τ → 0 is found by the search, at a tiny price
            tiny = torch.maximum(problem.tau, 1e-280 * problem.spread)
            problem = replace(problem, tau=tiny)
        prices = problem.tau / problem.spread
        flat, sharp = prices > eps**-1.1, prices < 1e-290
        unit = torch.where(flat | sharp, problem.spread, problem.tau)
        rows = _scaled(problem, unit, out, spare)
    else:
        unit, rows = problem.spread, _scaled(problem, problem.spread, out, spare)
        share = rows.share(rows.x == 0)
        least = torch.where(
            share < 1, (1 - share) * divergence.phi(torch.zeros_like(share)), 0.0
        )  # φ(0) may be ∞
        most = share * divergence.phi(1 / share) + least
        flat, sharp = problem.radius < eps**2, problem.radius >= most * (1 - 8 * EPS)
    if not (limit := flat | sharp).any():
        solution = _inner(divergence, rows, problem.radius)
        if problem.radius is not None:
            return solution
        weights, value, _, nu = solution
        return Solution(weights, value * prices, prices, nu * prices)
    solution = _limits(rows, flat, _least_ratio(problem))
    if not limit.all():
        inner = (~limit).nonzero()[:, 0]
        some = Rows(
            rows.x[inner], rows.extent[inner], None if rows.prior is None else rows.prior[inner]
        )
        weights, *numbers = _inner(
            divergence, some, None if problem.radius is None else problem.radius[inner]
        )
        solution.weights[inner] = weights.to(solution.weights.dtype)
        for whole, part in zip(solution[1:], numbers, strict=True):
            whole[inner] = part * (unit / problem.spread)[inner]
    return solution


def _priced_within(problem: Problem) -> Solution:
    """A price and a budget together: the penalised solution where it spends no more than the budget,
    else that of the budget, less its price.

    By the Lagrangian: the multiplier of the budget adds to the price, so the weights are those of a
    higher price, and where the budget binds they do not depend on τ.
    """
    priced = _solved(replace(problem, radius=None))
    free = _solved(replace(problem, tau=torch.zeros_like(problem.tau)))
    price = problem.tau / problem.spread
    over = _spent(problem, priced.weights) > problem.radius
    value = free.value - torch.where(over, price * _spent(problem, free.weights), 0.0)
    weights = torch.where(over[:, None], free.weights, priced.weights)
    numbers = [
        torch.where(over, x, y)
        for x, y in ((value, priced.value), (free.tau, priced.tau), (free.nu, priced.nu))
    ]
    return Solution(weights, *numbers)


def _spent(problem: Problem, weights: Tensor) -> Tensor:
    """D_φ(p‖q) of the weights of a block, (rows,), float64."""
    rows = _scaled(problem, problem.spread)
    return rows.mean(problem.divergence.phi(rows.ratios(weights.double())))


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
    largest = (rows.x == 0).to(rows.x.dtype)
    sharp = torch.maximum(largest / rows.column(rows.mean(largest)), rows.column(least))
    ratios = torch.where(flat[:, None], 1.0, sharp)
    mean = torch.where(flat, rows.mean(rows.x), 0.0)
    return Solution(
        rows.weights(ratios), mean, torch.where(flat, torch.inf, 0.0).double(), mean.clone()
    )


def _scaled(
    problem: Problem,
    unit: Tensor,
    out: Tensor | None = None,
    spare: dict[int, Tensor] | None = None,
) -> Rows:
    """x = (h − top)/unit, 0 where the prior is 0; written to `out` if its dtype can hold it, else
    float64."""
    h = problem.losses
    if out is None or problem.prior is not None or h.shape[-1] > 2**24 or not problem.modest:
        h, out = h.double(), None
    top, divisor = (x.to(h.dtype)[:, None] for x in (problem.top, unit))
    x = torch.sub(h, top, out=out).div_(divisor)
    if problem.prior is not None:
        x.masked_fill_(problem.prior == 0, 0.0)
    return Rows(x, problem.spread / unit, problem.prior, {} if spare is None else spare)


def certificate(problem: Problem, solution: Solution) -> Tensor:
    """Dual minus primal objective of scaled rows, (rows,), float64: zero at the optimum, positive
    elsewhere.

    Primal: Σ p x, less the penalty times D_φ(p‖q). Dual: ν + τ Σ q φ*((x − ν)/τ), plus what τ is
    above the penalty times R with a radius.
    """
    blocks = _blocks(problem)
    if len(blocks) > 1:
        return torch.cat(
            [
                certificate(problem.rows(some), Solution(*(x[some] for x in solution)))
                for some in blocks
            ]
        )
    rows, divergence, tau = _scaled(problem, problem.spread), problem.divergence, solution.tau
    sharp, flat = (x & divergence.takes_budget for x in (tau < 1e-290, tau.isinf()))
    tau = torch.where(sharp | flat, 1.0, tau)
    weights = solution.weights.double()
    weights = weights / weights.sum(-1, keepdim=True)
    primal = (weights * rows.x).sum(-1)
    dual = torch.full_like(tau, torch.inf)
    for nudge in (
        0,
        4,
        64,
    ):  # φ* may have a wall where the largest item stands; any ν gives a bound
        nu = solution.nu + nudge * EPS * (1 + solution.nu.abs())
        found = nu + tau * rows.mean(divergence.conjugate((rows.x - nu[:, None]) / tau[:, None]))
        dual = torch.minimum(dual, found)
        if dual.isfinite().all():
            break
    if divergence.takes_budget:
        # At τ = 0, τ φ*((x − ν)/τ) is 0 for x ≤ ν; at τ = ∞ it is x − ν, and p = q pays nothing.
        dual = torch.where(sharp, solution.nu, torch.where(flat, rows.mean(rows.x), dual))
        ratios = rows.ratios(weights)
        rounding = (
            4 * torch.finfo(problem.losses.dtype).eps
        )  # of the weights: a large τ must not be made to pay for it
        ratios = torch.where((ratios - 1).abs() <= rounding, 1.0, ratios)
        price = problem.tau / problem.spread
        priced = (price > 0) & ~(sharp | flat)
        primal = primal - torch.where(priced, price * rows.mean(divergence.phi(ratios)), 0.0)
        if problem.radius is not None:  # what the multiplier asks beyond the price
            dual = dual + torch.where(sharp | flat, 0.0, (tau - price) * problem.radius)
    return dual - primal
