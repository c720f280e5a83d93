"""Exact worst-case weights of each row of losses, for any divergence of `divergences.py`.

Everything runs in float64 on rows that are shifted and scaled to x ∈ [−1, 0] with the largest item at 0, so neither
the unit, nor the offset, nor the dtype of the losses costs digits. One temperature τ decides a row: the penalty gives
it, or the radius does by a search, and the divergence's `tilt` of x/τ gives the weights. τ = 0 and τ = ∞ are limits in
their own right: uniform over the largest items, uniform over all.

Legend: n items in a row, "..." leading dimensions (rows), t_i = n p_i likelihood ratios.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.dro.divergences import Divergence, masked_mean

_EPS = torch.finfo(torch.float64).eps
# Temperatures of scaled rows, as logarithms: outside, x/τ or its sums could leave float64.
_LOG_TAU_MIN, _LOG_TAU_MAX = math.log(1e-290), math.log(1e290)


@dataclass(frozen=True, eq=False)
class Dual:
    """Multipliers of one solution, each (...), in the unit of the losses.

    Attributes:
        tau: price of the divergence, the penalty itself or the multiplier of the radius; in [0, ∞]. Zero when the
            radius does not bind (its price is nothing), and for CVaR, whose value does not depend on it.
        nu: price of Σ p = 1. KL with a penalty: the value; CVaR: the quantile. At tau = 0 the largest loss (but for
            CVaR), at tau = ∞ the mean.
    """

    tau: Tensor
    nu: Tensor


@dataclass(frozen=True, eq=False)
class WorstCase:
    """Worst case of each row. All in the dtype of the losses, rounded once from a float64 solution.

    Attributes:
        value: (...), unit of the losses; its gradient with respect to the losses is `weights`.
        weights: p*, (..., n), without gradient, ≥ 0, zero where masked, each row sums to 1.
        dual: the multipliers, without gradient.
        gap: dual minus primal objective, (...): how far `value` can be from the supremum, zero up to rounding.
    """

    value: Tensor
    weights: Tensor
    dual: Dual
    gap: Tensor


def worst_case(
    losses: Tensor,
    divergence: Divergence,
    *,
    radius: float | Tensor | None = None,
    penalty: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> WorstCase:
    """Worst-case mean of each row of losses h under weights p near uniform, and the weights that attain it.

        radius R   value = sup { Σ_i p_i h_i : p ∈ Δ, D_φ(p‖1/n) ≤ R }
        penalty τ  value = sup { Σ_i p_i h_i − τ D_φ(p‖1/n) : p ∈ Δ }
        CVaR       value = mean of the level · n largest h_i        (neither radius nor penalty)

    R is the size of the ball itself; the theory writes it R = ρ/n. R = 0 or τ = ∞ give the mean. τ = 0 gives the
    maximum, and so does R ≥ log(n/k) for KL, R ≥ (n/k − 1)/2 for half chi-square, if k items share the largest loss.
    Where several p are optimal, equal losses get equal weights; a constant row gets uniform ones.

    Gradient: by the envelope theorem ∂value/∂losses = weights, as constants (second derivatives come out as zero).
    Where the value has a kink (CVaR with a tie at its quantile, a tie at the maximum) this is one subgradient.

    Args:
        losses: h, (..., n), float32 or float64, n ≥ 1, nats as a rule; any number of rows, each on its own.
        divergence: KL(), ChiSquare() or CVaR(level).
        radius: R ≥ 0, a number or a tensor that broadcasts to (...), unit of the divergence, ∞ allowed. No gradient.
        penalty: τ ≥ 0, likewise, unit of the losses. No gradient; the derivative of the value is −D_φ(p*‖1/n).
        mask: bool, broadcasts to losses, True where an item counts; n is then the number of those. What stands at the
            others may be anything, NaN too. None means all count.

    Returns:
        WorstCase, rows (...). With a radius, D_φ(weights) ≤ R up to rounding, which is the more of R the smaller it is
        (1e-9 of R = 1e-12), as in dual.tau; the value stays good. R < 5e-32 counts as 0.

    Raises:
        ValueError: losses of another dtype, without items, not finite, or with a row that spans more than float64; a
            mask that does not fit or hides a whole row; both or neither of radius and penalty, or any of them with
            CVaR; a budget that is negative, NaN, does not fit or requires a gradient. The message names argument, row
            and what was expected.

    Source: Ben-Tal et al. (2013), Theorem 1, for the dual with a radius; limits, search and scaling are our derivation.
    """
    mask = _checked_mask(losses, mask)
    tau, limit = _checked_budget(losses, divergence, radius, penalty)
    items = losses.masked_fill(~mask, 0.0)  # keeps the gradient, drops what a mask hides
    with torch.no_grad():
        x, top, spread = _scaled(items.double(), mask)
        if limit is not None:
            scaled_tau = _temperature(divergence, x, mask, limit)
        elif divergence.takes_budget:
            scaled_tau = tau / spread
        else:
            scaled_tau = torch.ones_like(top)
        ratios, nu = _tilted(divergence, x, mask, scaled_tau)
        primal, gap = _objectives(divergence, x, mask, scaled_tau, nu, ratios, limit)
        weights = ratios / mask.sum(-1, keepdim=True)
        found = [top + spread * primal, weights, tau if limit is None else scaled_tau * spread, top + spread * nu]
        value, weights, tau, nu, gap = (part.to(losses.dtype) for part in [*found, spread * gap])
    # Adds an exact zero, whose gradient is the weights.
    value = value + (weights * (items - items.detach())).sum(-1)
    return WorstCase(value, weights, Dual(tau, nu), gap)


def _scaled(losses: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x = (losses − top) / spread, (..., n), zero where masked; top and spread, (...); a constant row has spread 1."""
    top = losses.masked_fill(~mask, -torch.inf).amax(-1)
    spread = top - losses.masked_fill(~mask, torch.inf).amin(-1)
    if (wide := spread.isinf()).any():
        raise ValueError(f"losses: {_row(wide)} spans more than float64 can hold, expected max - min < 1.8e308")
    spread = torch.where(spread > 0, spread, 1.0)
    return ((losses - top[..., None]) / spread[..., None]).masked_fill(~mask, 0.0), top, spread


def _tilted(divergence: Divergence, x: Tensor, mask: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Ratios t, (..., n), and ν, (...), of the penalty problem on scaled rows, limits of τ included."""
    sharp, flat = _limits(tau)
    safe = torch.where(sharp | flat, 1.0, tau)
    ratios, nu = divergence.tilt(x / safe[..., None], mask)
    ties = (x == 0) & mask
    ratios_sharp = ties.double() * mask.sum(-1, keepdim=True) / ties.sum(-1, keepdim=True)
    ratios = torch.where(sharp[..., None], ratios_sharp, torch.where(flat[..., None], mask.double(), ratios))
    return ratios, torch.where(sharp, 0.0, torch.where(flat, masked_mean(x, mask), safe * nu))


def _limits(tau: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to be solved as τ = 0 and rows to be solved as τ = ∞; scaled τ, so the value moves by less than 1e-280."""
    return tau < math.exp(_LOG_TAU_MIN), tau.isinf()


def _objectives(
    divergence: Divergence, x: Tensor, mask: Tensor, tau: Tensor, nu: Tensor, ratios: Tensor, radius: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Primal objective Σ p x − τ D(p), or Σ p x with a radius, and its distance from the dual one, each (...).

    The dual objective is τ mean φ*((x − ν)/τ) + ν, plus τ R with a radius.
    """
    sharp, flat = _limits(tau)
    safe = torch.where(sharp | flat, 0.0, tau)
    mean = masked_mean(ratios * x, mask)  # Σ p x
    paid = torch.where(safe > 0, safe * masked_mean(divergence.phi(ratios), mask), 0.0)
    s = (x - nu[..., None]) / torch.where(safe > 0, safe, 1.0)[..., None]
    # In the limits, τ φ*((x − ν)/τ) is 0 for x ≤ ν, or x − ν.
    dual = nu + torch.where(safe > 0, safe * masked_mean(divergence.conjugate(s), mask), 0.0)
    if radius is None:
        return mean - paid, dual - (mean - paid)
    return mean, dual + torch.where(safe > 0, safe * radius, 0.0) - mean


def _temperature(divergence: Divergence, x: Tensor, mask: Tensor, radius: Tensor) -> Tensor:
    """Scaled τ ∈ [0, ∞], (...), at which D(p_τ) = R: D falls from its maximum to 0 as τ grows, so a bracket suffices.

    0 when R ≥ max D, ∞ when R < ε², where no ratio can leave 1. D(p_τ) ≤ R but for rounding.
    """
    n = mask.sum(-1).double()
    k = ((x == 0) & mask).sum(-1).double()
    largest = (k * divergence.phi(n / k) + (n - k) * divergence.phi(torch.zeros_like(n))) / n
    largest = torch.where(k == n, 0.0, largest)  # φ(0) may be ∞
    slack = radius >= largest * (1 - 8 * _EPS)
    todo = ~slack & (radius >= _EPS**2)
    goal = torch.where(todo, radius, 1.0)
    # Rounding in log D: ratios are good to ε, and stray from 1 by about √R.
    noise = (8 * _EPS * (1 + goal.rsqrt())).clamp_max(1e-3)

    def excess(log_tau: Tensor) -> Tensor:
        ratios, _ = divergence.tilt(x / log_tau.exp()[..., None], mask)
        # In logarithms: D is near Var(x)/(2τ²) on flat rows, a straight line that interpolation hits at once.
        spent = masked_mean(divergence.phi(ratios), mask)
        gap = spent.clamp_min(1e-300).log() - goal.log()
        return torch.where(gap.abs() <= noise, 0.0, gap)

    start = -(8 * goal).log() / 2  # D ≤ Var(x)/(2τ²) ≤ 1/(8τ²) for chi-square, ∫ s Var_s ds ≤ 1/(8τ²) for KL
    tau = _falling_root(excess, start, todo).exp()
    return torch.where(slack, 0.0, torch.where(todo, tau, torch.inf))


def _falling_root(f: Callable[[Tensor], Tensor], start: Tensor, todo: Tensor) -> Tensor:
    """An x with f(x) = 0, (...), of a falling f in each row marked `todo`; if f jumps over 0, just behind the jump.

    Source: Chandrupatla (1997), inverse quadratic interpolation where it is safe, else bisection; the bracket is kept.
    """
    a, fa = _march(f, start, todo, -1)
    b, fb = _march(f, start, todo, +1)
    stuck = fa <= 0  # f never gets positive: its lowest x is the answer
    todo, b, fb = todo & ~stuck, torch.where(stuck, a, b), torch.where(stuck, fa, fb)
    t = torch.full_like(a, 0.5)
    for _ in range(100):
        tolerance = 1e-14 + 2 * _EPS * a.abs()
        searching = todo & (fa != 0) & (fb != 0) & ((b - a).abs() > tolerance)
        if not searching.any():
            break
        # A row that is done stands still, so its answer does not depend on its neighbours.
        x = torch.where(searching, a + t * (b - a), a)
        fx = f(x)
        same = (fx > 0) == (fa > 0)
        c, fc = torch.where(same, a, b), torch.where(same, fa, fb)
        b, fb = torch.where(same, b, a), torch.where(same, fb, fa)
        a, fa = x, fx  # a is the newest point, b its opposite in sign, c the one before
        xi, level = (a - b) / (c - b), (fa - fb) / (fc - fb)
        smooth = (level.square() < xi) & ((1 - level).square() < 1 - xi)
        quadratic = fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        edge = (0.5 * tolerance / (b - a).abs()).clamp_max(0.5)
        t = torch.where(smooth, quadratic, 0.5).clamp(edge, 1 - edge)
    return torch.where(fa <= 0, a, b)


def _march(f: Callable[[Tensor], Tensor], start: Tensor, todo: Tensor, direction: int) -> tuple[Tensor, Tensor]:
    """Walk from `start` in doubling steps until f > 0 (direction −1) or f ≤ 0 (direction +1); the point and its f."""
    x, fx = start, f(start)
    for power in range(11):
        wrong = todo & ((fx > 0) if direction > 0 else (fx <= 0))
        if not wrong.any():
            break
        x = torch.where(wrong, (x + direction * 2.0**power).clamp(_LOG_TAU_MIN, _LOG_TAU_MAX), x)
        fx = f(x)
    return x, fx


def _checked_mask(losses: Tensor, mask: Tensor | None) -> Tensor:
    """The mask at full shape, after a look at everything that can be wrong with it and with the losses."""
    if losses.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"losses: expected float32 or float64, got {losses.dtype}")
    if losses.dim() == 0 or losses.shape[-1] == 0:
        raise ValueError(f"losses: expected at least one item in each row, got shape {tuple(losses.shape)}")
    if mask is None:
        mask = torch.ones_like(losses, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected dtype bool, got {mask.dtype}")
    try:
        mask = mask.expand_as(losses)
    except RuntimeError:
        shapes = f"{tuple(losses.shape)}, got {tuple(mask.shape)}"
        raise ValueError(f"mask: expected a shape that broadcasts to {shapes}") from None
    if (hidden := ~mask.any(-1)).any():
        raise ValueError(f"mask: {_row(hidden)} hides every item, expected at least one True")
    if (bad := mask & ~losses.isfinite()).any():
        *_, item = where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"losses: {_row(bad.any(-1))} holds {losses[tuple(where)]} at item {item}, expected finite numbers"
        )
    return mask


def _checked_budget(
    losses: Tensor, divergence: Divergence, radius: float | Tensor | None, penalty: float | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Penalty and radius as float64 rows, (...): (τ, None), (0, R), or (0, None) if the divergence takes no budget."""
    given = {name: value for name, value in (("radius", radius), ("penalty", penalty)) if value is not None}
    if given and not divergence.takes_budget:
        raise ValueError(f"{' and '.join(given)}: {divergence} takes no budget, expected None")
    if len(given) != 1 and divergence.takes_budget:
        raise ValueError(f"radius, penalty: expected exactly one of them, got {'both' if given else 'neither'}")
    none = losses.new_zeros(losses.shape[:-1], dtype=torch.float64)
    for name, value in given.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise ValueError(f"{name}: gets no gradient, expected a number or a detached tensor")
        rows = torch.as_tensor(value, dtype=torch.float64, device=losses.device)
        try:
            rows = rows.expand(losses.shape[:-1])
        except RuntimeError:
            shapes = f"{tuple(losses.shape[:-1])}, got {tuple(rows.shape)}"
            raise ValueError(f"{name}: expected a number or a shape that broadcasts to {shapes}") from None
        if (bad := ~(rows >= 0)).any():
            raise ValueError(f"{name}: expected a number >= 0, got {rows[bad][0].item()} for {_row(bad)}")
        return (none, rows) if name == "radius" else (rows, None)
    return none, None


def _row(bad: Tensor) -> str:
    """Name of the first row that is True."""
    index = bad.nonzero()[0].tolist()
    return "the only row" if not index else f"row {index[0] if len(index) == 1 else tuple(index)}"
