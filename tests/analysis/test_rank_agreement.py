"""Ranks by hand and against scipy (METHODS 6, acceptance facts 1 and 2)."""

import numpy as np
import pytest
from scipy import stats

from steering.analysis.ranks import over_items, pair_agreement, regret, spearman


def test_spearman_of_maps_and_of_ties():
    x = np.array([0.1, 0.5, 0.3, 2.0, 1.0])
    assert spearman(x, np.exp(3 * x)) == pytest.approx(1.0)
    assert spearman(x, -(x**3)) == pytest.approx(-1.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(4, size=9), rng.normal(size=9)
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(spearman(np.zeros(4), x[:4]))


def test_pairs_against_a_loop_and_kendall():
    rng = np.random.default_rng(1)
    for _ in range(10):
        proxy, truth, noise = rng.normal(size=8), rng.normal(size=8), rng.random(8)
        agree, clear = [], []
        for i in range(8):
            for j in range(i):
                same = (proxy[i] - proxy[j]) * (truth[i] - truth[j]) > 0
                agree.append(same)
                if abs(truth[i] - truth[j]) > 2 * np.sqrt(noise[i] ** 2 + noise[j] ** 2):
                    clear.append(same)
        found = pair_agreement(proxy, truth, noise)
        assert found.all == pytest.approx(np.mean(agree))
        assert found.all == pytest.approx((stats.kendalltau(proxy, truth).statistic + 1) / 2)
        assert (found.pairs, found.clear_pairs) == (28, len(clear))
        assert np.isnan(found.clear) if not clear else found.clear == pytest.approx(np.mean(clear))
    assert pair_agreement(np.array([1.0, 1.0]), np.array([1.0, 2.0])).all == 0.5


def test_regret_falls_to_nothing():
    rng = np.random.default_rng(2)
    for _ in range(20):
        proxy, truth = rng.normal(size=7), rng.normal(size=7)
        found = [regret(proxy, truth, k) for k in range(1, 8)]
        assert all(value >= 0 for value in found)
        assert found == sorted(found, reverse=True)
        assert found[-1] == 0
        assert found[0] == truth[proxy.argmin()] - truth.min()
        best_first = proxy.copy()
        best_first[truth.argmin()] = proxy.min() - 1
        assert [regret(best_first, truth, k) for k in range(1, 8)] == [0.0] * 7
    assert regret(np.zeros(3), np.array([1.0, 3.0, 2.0]), 1) == 2.0  # a tie is no luck


def test_a_bootstrap_covers_its_truth_about_as_often_as_it_says():
    """Spearman's ρ of a normal pair with correlation r is (6/π)·asin(r/2)."""
    r, truth, hits = 0.6, 6 / np.pi * np.arcsin(0.3), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=40)
        b = r * a + np.sqrt(1 - r * r) * rng.normal(size=40)
        found = over_items(spearman, a, b, draws=100, seed=seed)
        hits += found.low <= truth <= found.high
    assert 33 <= hits <= 40
    assert np.isnan(over_items(spearman, np.zeros(5), np.arange(5.0), draws=50).low)
