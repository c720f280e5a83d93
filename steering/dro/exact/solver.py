"""Exact worst-case weights of each row of losses, for any divergence of `divergences/`.

Rows are shifted and scaled to x ∈ [−1, 0] with the largest item at 0, so neither the unit, nor the
offset, nor the dtype of the losses costs digits; a divergence then solves scaled rows
(`blocks.py`). Here are the question, its answer, and the gradient; the certificate is `certificate.py`.

Legend: "..." leading dimensions, m rows of a block, n items in a row, q the prior, t_i = p_i / q_i
likelihood ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from steering.dro.divergences.base import Divergence
from steering.dro.exact.blocks import solved
from steering.dro.exact.certificate import certificate
from steering.dro.exact.checks import checked


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
        below the square of the dtype's rounding counts as 0, as does a penalty's 1/τ below its
        power 1.1, τ in units of max h − min h.

    Raises:
        ValueError: losses of another dtype, without items, not finite, or with a row that spans
            more than float64; a mask or prior that does not fit or leaves nothing of a row; none of
            radius, rho and penalty, or radius and rho together, or any of them with CVaR; a budget
            that is negative, NaN, does not fit or requires a gradient. The message names argument,
            row, item and what was expected.

    Source: Ben-Tal et al. (2013), Theorem 1, for the dual with a radius; limits, search and scaling
    are our derivation.
    """
    problem = checked(losses, divergence, radius, rho, penalty, level, order, mask, prior)
    with torch.no_grad():
        solution = solved(problem)
    # Rows were solved as x = (h − top)/spread. Adding a constant to h moves value and ν by it, and
    # no weight; a factor multiplies value, ν and τ.
    value = problem.top + problem.spread * solution.value
    # A penalty is given back as it came, with no rounding from the scaling.
    tau = problem.tau if problem.radius is None else solution.tau * problem.spread
    nu = problem.top + problem.spread * solution.nu
    shape, dtype = losses.shape, losses.dtype
    weights = solution.weights.view(shape)

    def rows(x: Tensor) -> Tensor:
        return x.to(dtype).view(shape[:-1])

    # Not before somebody asks: it is a pass over all rows in float64.
    def gap() -> Tensor:
        with torch.no_grad():
            return rows(problem.spread * certificate(problem, solution))

    value = rows(value)
    if losses.requires_grad:
        # By (16) the gradient is the weights: nothing of the search needs a graph.
        value = _Envelope.apply(losses, value, weights)
    return WorstCase(value, weights, Dual(rows(tau), rows(nu)), gap)


class _Envelope(torch.autograd.Function):
    """The value, with the weights as its gradient."""

    @staticmethod
    def forward(ctx, losses: Tensor, value: Tensor, weights: Tensor) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ARG004
        ctx.save_for_backward(weights)
        # A tensor of its own: the one that came in has no gradient.
        return value.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        (weights,) = ctx.saved_tensors
        return gradient[..., None] * weights, None, None
