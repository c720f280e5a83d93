"""The quadratic model behind a small rate (METHODS 6, acceptance facts 3 and 4)."""

import numpy as np
import pytest


def change(g_v, g, h, rate):
    """Of a quadratic validation loss by one step along −g."""
    return -rate * g_v @ g + 0.5 * rate**2 * g @ h @ g


def test_two_recipes_change_places_where_the_formula_says():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(200):
        a = rng.normal(size=(4, 4))
        h, g_v, one, other = a @ a.T, *rng.normal(size=(3, 4))
        slope, curve = g_v @ (one - other), one @ h @ one - other @ h @ other
        rate = 2 * slope / curve
        if rate <= 0:
            continue
        found += 1
        below = change(g_v, one, h, 0.9 * rate) - change(g_v, other, h, 0.9 * rate)
        above = change(g_v, one, h, 1.1 * rate) - change(g_v, other, h, 1.1 * rate)
        assert below * above < 0
        tiny = change(g_v, one, h, 1e-6 * rate) - change(g_v, other, h, 1e-6 * rate)
        assert np.sign(tiny) == np.sign(g_v @ other - g_v @ one)
    assert found > 50


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_features_at_a_small_rate_rank_as_a_wide_model_does(seed):
    """Recipes are noise levels of the labels of a linear teacher. One pass of gradient descent on
    ReLU features: width 64 at a small rate orders them as width 4096 does."""
    rng = np.random.default_rng(seed)
    x, clean = rng.normal(size=(400, 8)), rng.normal(size=8)
    y = np.sign(x @ clean)
    test = rng.normal(size=(1000, 8))
    target = np.sign(test @ clean)
    flip = rng.random(400)
    noises = [0.0, 0.08, 0.16, 0.24, 0.32, 0.4]

    def losses(width, rate):
        w = np.random.default_rng(7).normal(size=(8, width)) / np.sqrt(8)
        f, f_test = (np.maximum(z @ w, 0) / np.sqrt(width) for z in (x, test))
        found = []
        for noise in noises:
            labels, head = np.where(flip < noise, -y, y), np.zeros(width)
            for row in range(0, 400, 10):
                some = slice(row, row + 10)
                head -= rate * f[some].T @ (f[some] @ head - labels[some]) / 10
            found.append(np.mean((f_test @ head - target) ** 2))
        return np.array(found)

    wide = losses(4096, 0.05)
    assert np.array_equal(np.argsort(losses(64, 0.05)), np.argsort(wide))
    assert np.array_equal(np.argsort(wide), np.arange(6))
