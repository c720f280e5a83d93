"""How far an answer can be from the optimum, by the definitions of φ and φ* alone."""

from __future__ import annotations

import torch
from torch import Tensor

from steering.dro.divergences.rows import EPS, Solution
from steering.dro.exact.blocks import blocks_of, prices_of, scaled
from steering.dro.exact.checks import Problem


def certificate(problem: Problem, solution: Solution) -> Tensor:
    """Dual minus primal objective of scaled rows, (rows,), float64: zero at the optimum, positive
    elsewhere.

    Primal: Σ p x, less the penalty times D_φ(p‖q). Dual: ν + τ Σ q φ*((x − ν)/τ), plus what τ is
    above the penalty times R with a radius.
    """
    blocks = blocks_of(problem)
    if len(blocks) > 1:
        return torch.cat(
            [
                certificate(problem.rows(some), Solution(*(x[some] for x in solution)))
                for some in blocks
            ]
        )
    # By (7) of docs/theory.md any ν, and with a radius any τ above the price, bounds the value from
    # above; any p that is allowed bounds it from below. So the answer need not be exact for the gap
    # to be a bound, up to rounding.
    rows, divergence, tau = scaled(problem, problem.spread), problem.divergence, solution.tau
    sharp, flat = (x & divergence.takes_budget for x in (tau < 1e-290, tau.isinf()))
    # At the ends of τ the formula divides by 0 or ∞; these rows get their limits below.
    tau = torch.where(sharp | flat, 1.0, tau)
    weights = solution.weights.double()
    # Rounded to the dtype of the losses they may not sum to 1, and would not be allowed.
    weights = weights / weights.sum(-1, keepdim=True)
    primal = (weights * rows.x).sum(-1)
    dual = torch.full_like(tau, torch.inf)
    # φ* may have a wall where the largest item stands, and a ν that is rounded down is beyond it.
    for nudge in (0, 4, 64):
        nu = solution.nu + nudge * EPS * (1 + solution.nu.abs())
        found = nu + tau * rows.mean(divergence.conjugate((rows.x - nu[:, None]) / tau[:, None]))
        dual = torch.minimum(dual, found)
        if dual.isfinite().all():
            break
    if divergence.takes_budget:
        # At τ = 0, τ φ*((x − ν)/τ) is 0 for x ≤ ν; at τ = ∞ it is x − ν, and p = q pays nothing.
        dual = torch.where(sharp, solution.nu, torch.where(flat, rows.mean(rows.x), dual))
        ratios = rows.ratios(weights)
        # The rounding of the weights: a large τ must not be made to pay for it.
        rounding = 4 * torch.finfo(problem.losses.dtype).eps
        ratios = torch.where((ratios - 1).abs() <= rounding, 1.0, ratios)
        price = problem.tau / problem.spread
        priced = (price > 0) & ~(sharp | flat)
        primal = primal - torch.where(priced, price * rows.mean(prices_of(problem, ratios)), 0.0)
        # What the multiplier asks beyond the price.
        if problem.radius is not None:
            dual = dual + torch.where(sharp | flat, 0.0, (tau - price) * problem.radius)
    # The limit τ → 0 of the dual: no weights get more than the largest item. A budget of 1e300 leaves a
    # τ so small that its product with the budget is nothing but rounding.
    return torch.minimum(dual, rows.x.amax(-1)) - primal
