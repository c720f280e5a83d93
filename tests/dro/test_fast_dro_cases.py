"""The grid on which fast-dro (Levy et al., arXiv 2010.05893) tests its own best responses: sizes of
the set × prices × numbers of items, random losses and constant ones.

Its tests ask a convex solver for 3 to 4 digits; here the oracle is the optimality condition of each
problem, solved by bracketing in float64, and 9 digits are asked for.
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from steering.dro import worst_case

PRICES, COUNTS = (1e-4, 1e-2, 1.0, 1e2), (200, 2000)
LEVELS, RADII = (1e-4, 1e-3, 1e-2, 1e-1, 1.0), (1e-2, 1e-1, 1.0, 10.0)
KINDS = ("random", "constant")


def losses(kind, n):
    if kind == "constant":
        return np.full(n, math.log(10.0))
    return np.abs(np.random.default_rng(n).standard_normal(n))


def capped_entropy(v, price, level):
    """Weights of max p·v − price·KL(p ‖ uniform) with p ≤ 1/(level·n): min(e^((v − η)/price),
    1/level)/n, η such that they sum to 1."""
    n = len(v)
    if level == 1:
        return np.full(n, 1 / n)

    def weights(eta):
        return np.minimum(np.exp(np.minimum((v - eta) / price, 700.0)), 1 / level) / n

    top = v.max() / price
    low = price * (top + math.log(np.exp(v / price - top).sum() / n))  # without the cap
    short = low - price * math.log(1 / level) - v.max() + v.min() - price
    if 1 - weights(low).sum() <= 1e-15:
        return weights(low)
    return weights(brentq(lambda eta: weights(eta).sum() - 1, short, low, xtol=1e-16, rtol=1e-15))


def chi_square(v, price, radius):
    """Weights of max p·v − price·D(p) with D = Σ (np − 1)²/2n ≤ radius: (v − η)⁺/(n·λ) where λ is
    the price, or what the radius asks for beyond it."""
    n = len(v)
    if np.ptp(v) == 0:
        return np.full(n, 1 / n)
    if n <= 1 + 2 * radius:
        raise AssertionError("the grid has no such case")

    def weights(eta):
        above = np.maximum(v - eta, 0.0)
        lam = max(price, np.linalg.norm(above) / math.sqrt(n * (1 + 2 * radius)))
        return above / (n * lam)

    # Far below all losses the weights exceed 1 in sum, at the largest loss they are zero.
    low = v.min() - 2 * price - np.ptp(v) * (1 + 2 / radius) - 1
    return weights(brentq(lambda eta: weights(eta).sum() - 1, low, v.max() - 1e-300, xtol=1e-16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("level", LEVELS)
def test_cvar_with_a_price(level, price, n, kind):
    v = losses(kind, n)
    # A cap above 1 is none: fewer than one item could take all the weight.
    p = capped_entropy(v, price, max(level, 1 / n))
    spent = np.where(p > 0, p * np.log(np.where(p > 0, n * p, 1.0)), 0.0).sum()
    found = worst_case(torch.from_numpy(v), "cvar-kl", penalty=price, level=level)
    assert found.value.item() == pytest.approx(p @ v - price * spent, rel=1e-9)
    assert found.weights.numpy() == pytest.approx(p, abs=1e-8)
    assert found.gap.item() <= 1e-9 * max(1.0, price)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("radius", RADII)
def test_chi_square_with_price_and_budget(radius, price, n, kind):
    v = losses(kind, n)
    p = chi_square(v, price, radius)
    spent = ((n * p - 1) ** 2).sum() / (2 * n)
    found = worst_case(torch.from_numpy(v), "chi2", penalty=price, radius=radius)
    assert found.value.item() == pytest.approx(p @ v - price * spent, rel=1e-9)
    assert found.weights.numpy() == pytest.approx(p, abs=1e-8)
    assert spent <= radius * (1 + 1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_below_one_item_is_the_largest_loss_at_no_price(level):
    v = losses("random", 200)
    found = worst_case(torch.from_numpy(v), "cvar", level=level)
    k = max(level * 200, 1.0)
    order = np.sort(v)[::-1]
    whole = int(k + 1e-9)
    part = k - whole
    expected = (order[:whole].sum() + (part * order[whole] if part > 1e-9 else 0.0)) / k
    assert found.value.item() == pytest.approx(expected, rel=1e-12)
