"""The exact solver against cvxpy with Clarabel: random problems of every divergence, form, mask and
prior."""

import math

import cvxpy as cp
import numpy as np
import pytest
import torch

from steering.dro import (
    KL,
    CappedKL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    worst_case,
)

PROBLEMS = 10  # of each family: 9 × 3 + 2 families below


def total(divergence: Divergence, p: cp.Variable, q: np.ndarray) -> cp.Expression:
    """Σ q φ(p/q) as cvxpy sees it, where Σ p = Σ q = 1."""
    if isinstance(divergence, KL | CappedKL):
        return cp.sum(cp.kl_div(p, q))
    if isinstance(divergence, ChiSquare):
        return cp.sum(cp.multiply(1 / (2 * q), cp.square(p - q)))
    if isinstance(divergence, TotalVariation):
        return cp.norm1(p - q) / 2
    assert isinstance(divergence, CressieRead)
    k = divergence.order
    if k == 0:
        return cp.sum(cp.multiply(q, -cp.log(cp.multiply(1 / q, p))))
    power = cp.sum(
        cp.multiply(q, cp.power(cp.multiply(1 / q, p), k))
    )  # convex for k > 1 and k < 0, else concave
    return (power - 1) / (k * (k - 1))


def solved(
    h: np.ndarray, divergence: Divergence, q: np.ndarray, form: str, budget: float
) -> tuple[float, np.ndarray]:
    p = cp.Variable(len(h), nonneg=True)
    constraints = [cp.sum(p) == 1]
    if isinstance(divergence, CVaR | CappedKL):
        constraints.append(p <= q / divergence.level)
    if isinstance(divergence, CVaR):
        objective = h @ p
    else:
        distance = total(divergence, p, q)
        if form == "penalty":
            objective = h @ p - budget * distance
        else:
            objective = h @ p
            constraints.append(distance <= (budget if form == "radius" else budget / len(h)))
    problem = cp.Problem(cp.Maximize(objective), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
    assert problem.status in ("optimal", "optimal_inaccurate")
    return float(problem.value), np.asarray(p.value)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.random.Generator]:
    """Losses of 2 to 12 items, a mask, a prior or None (every other time), and the generator for
    more."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 13))
    h = rng.normal(size=n) * rng.choice([0.1, 1.0, 5.0])
    if seed % 5 == 0:
        h = h.round()  # ties
    mask = np.ones(n, dtype=bool) if seed % 3 else rng.random(n) < 0.7
    mask[int(rng.integers(n))] = True
    prior = rng.random(n) + 0.05 if seed % 2 else None
    return h, mask, prior, rng


def budget_of(divergence: Divergence, form: str, q: np.ndarray, rng: np.random.Generator) -> float:
    if form == "penalty":
        return float(10 ** rng.uniform(-1, 1))
    least = q.min()
    if isinstance(divergence, CappedKL):  # what the weights of CVaR spend
        tail = worst_case(torch.arange(len(q)).double(), "cvar", level=divergence.level)
        q, least = tail.weights[tail.weights > 0].numpy(), divergence.level
    most = float(
        least * divergence.phi(torch.tensor(1 / least))
        + (1 - least) * divergence.phi(torch.tensor(0.0))
    )
    radius = min(most, 2.0) * float(rng.uniform(0.02, 0.9)) if len(q) > 1 else 0.0
    return radius if form == "radius" else radius * len(q)


FAMILIES = [
    (divergence, form)
    for divergence in [
        KL(),
        ChiSquare(),
        TotalVariation(),
        *map(CressieRead, (-1.0, 0.0, 0.5, 1.5, 3.0)),
    ]
    for form in ("penalty", "radius", "rho")
] + [(CVaR(0.35), ""), (CVaR(0.8), "")]


FAMILIES += [(CappedKL(0.4), form) for form in ("penalty", "radius", "rho")]


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize(
    "divergence", [KL(), ChiSquare(), TotalVariation(), CressieRead(1.5), CappedKL(0.4)], ids=str
)
def test_a_price_and_a_budget_together(divergence: Divergence):
    binds = set()
    for seed in range(PROBLEMS):
        h, mask, prior, rng = drawn(seed)
        q = (np.ones_like(h) if prior is None else prior)[mask]
        q = q / q.sum()
        radius = budget_of(divergence, "radius", q, rng)
        price = float(np.ptp(h) + 0.1) * float(10 ** rng.uniform(-1.5, 0.5))
        p = cp.Variable(len(q), nonneg=True)
        spent = total(divergence, p, q)
        constraints = [cp.sum(p) == 1, spent <= radius]
        if isinstance(divergence, CappedKL):
            constraints.append(p <= q / divergence.level)
        problem = cp.Problem(cp.Maximize(h[mask] @ p - price * spent), constraints)
        problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)
        found = worst_case(
            torch.from_numpy(h),
            divergence,
            mask=torch.from_numpy(mask),
            prior=None if prior is None else torch.from_numpy(prior),
            penalty=price,
            radius=radius,
        )
        spread = max(float(np.ptp(h[mask])), 1e-3)
        assert float(found.value) == pytest.approx(problem.value, abs=1e-6 * spread), f"seed {seed}"
        assert abs(float(found.gap)) <= 1e-10 * spread
        assert float(found.dual.tau) >= price * (1 - 1e-12)
        binds.add(float(found.dual.tau) > price * (1 + 1e-9))
    assert binds == {True, False}  # both cases are among the problems


@pytest.mark.filterwarnings(
    "ignore:Solution may be inaccurate"
)  # it stops a digit early; the comparison decides
@pytest.mark.parametrize(("divergence", "form"), FAMILIES, ids=str)
def test_value_and_weights(divergence: Divergence, form: str):
    for seed in range(PROBLEMS):
        h, mask, prior, rng = drawn(seed)
        q = (np.ones_like(h) if prior is None else prior)[mask]
        q = q / q.sum()
        budget = budget_of(divergence, form, q, rng) if form else 0.0
        expected, weights = solved(h[mask], divergence, q, form, budget)
        found = worst_case(
            torch.from_numpy(h),
            divergence,
            mask=torch.from_numpy(mask),
            prior=None if prior is None else torch.from_numpy(prior),
            **({form: budget} if form else {}),
        )
        spread = max(float(np.ptp(h[mask])), 1e-3)
        assert float(found.value) == pytest.approx(expected, abs=1e-6 * spread), f"seed {seed}"
        assert abs(float(found.gap)) <= 1e-10 * spread
        unique = isinstance(divergence, KL | CappedKL | ChiSquare | CressieRead) or len(
            set(h)
        ) == len(h)
        if unique and len(q) > 1 and not math.isclose(float(np.ptp(h[mask])), 0):
            np.testing.assert_allclose(found.weights.numpy()[mask], weights, atol=2e-3)
        assert not found.weights.numpy()[~mask].any()
