"""What the tests of the exact solver share: every form of a problem, a naive dual, and what holds
of every solution."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from steering.dro import (
    KL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    WorstCase,
    distance,
)

# Every way to set the strength: (divergence, budget).
MORE = [CressieRead(1.5), CressieRead(3.0), CressieRead(0.5), CressieRead(0.0), CressieRead(-1.0)]
SMOOTH = [KL(), ChiSquare(), *MORE]
PENALTIES: list[tuple[Divergence, dict[str, float]]] = [
    (d, {"penalty": t}) for d in (*SMOOTH, TotalVariation()) for t in (0.2, 3)
]
RADII: list[tuple[Divergence, dict[str, float]]] = [
    (d, {"radius": r}) for d in SMOOTH for r in (0.05, 0.7)
]
RADII.append((TotalVariation(), {"radius": 0.3}))
BUDGETED = PENALTIES + RADII
EVERY = [*BUDGETED, (CVaR(0.4), {}), (CVaR(0.37), {})]
every = pytest.mark.parametrize(("phi", "budget"), EVERY)


def rows(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(losses: Tensor) -> Tensor:
    return losses.amax(-1) - losses.amin(-1)


def naive_value(
    losses: Tensor, phi: Divergence, radius: float | None = None, penalty: float | None = None
) -> float:
    """The dual of docs/theory.md, (7), as printed, minimised by nested golden section: slow, and
    shares nothing but φ*."""

    def dual(tau: float, nu: float) -> float:
        return tau * phi.conjugate((losses - nu) / tau).mean().item() + nu

    # The best ν lies between the largest loss and what the largest loss alone would need.
    def over_nu(tau: float) -> float:
        return golden(
            lambda nu: dual(tau, nu), losses.min().item() - 20 * tau, losses.max().item() + 2 * tau
        )

    if radius is None:
        return over_nu(penalty if penalty is not None else 1.0)
    return golden(lambda log_tau: over_nu(math.exp(log_tau)) + radius * math.exp(log_tau), -6, 4)


def golden(f: Callable[[float], float], low: float, high: float, steps: int = 42) -> float:
    shrink = (math.sqrt(5) - 1) / 2
    c, d = high - shrink * (high - low), low + shrink * (high - low)
    fc, fd = f(c), f(d)
    for _ in range(steps):
        if fc < fd:
            high, d, fd = d, c, fc
            c = high - shrink * (high - low)
            fc = f(c)
        else:
            low, c, fc = c, d, fd
            d = low + shrink * (high - low)
            fd = f(d)
    return min(fc, fd)


def check(
    found: WorstCase, losses: Tensor, phi: Divergence, mask: Tensor | None = None, **budget: float
) -> None:
    """What holds of every solution: a distribution, feasible, its value attained, no gap. Rounding
    in units of n."""
    mask = torch.ones_like(losses, dtype=torch.bool) if mask is None else mask
    exact, p = losses.double().masked_fill(~mask, 0), found.weights.double()
    scale = (
        spread(exact.masked_fill(~mask, exact[mask].mean().item())) + exact.abs().amax(-1) + 1e-300
    )
    eps = 200 * torch.finfo(losses.dtype).eps
    for part in (found.value, found.weights, found.dual.nu, found.gap):
        assert part.isfinite().all()
        assert part.dtype == losses.dtype
    assert (p >= 0).all()
    assert (p[~mask] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]), rtol=0, atol=eps)
    assert (found.gap.double().abs() <= eps * scale).all()
    spent = distance(p, phi, mask)
    if "radius" in budget:
        assert (spent <= budget["radius"] + eps * (1 + budget["radius"])).all()
    paid = (
        budget.get("penalty", 0.0) * spent
        if budget.get("penalty") and phi.takes_budget
        else torch.zeros_like(spent)
    )
    if (
        budget.get("penalty", 0.0) < 1e6
    ):  # beyond, the rounding of float weights times τ says nothing
        attained = (p * exact).sum(-1) - paid
        assert (
            (found.value.double() - attained).abs() <= eps * (scale + budget.get("penalty", 0.0))
        ).all()
