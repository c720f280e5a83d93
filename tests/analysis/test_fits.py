"""Scaling laws: recovered from what they made, at the rate that their intervals promise."""

import math

import numpy as np
import pytest
from scipy import stats

from steering.analysis.fits import Law, beats, crossing, fit_law, frontier

COSTS = np.geomspace(1e3, 1e6, 6)


def runs_of(law, seeds, noise, generator):
    return {
        float(cost): np.exp(
            np.log(law.at(cost)) + noise * generator.standard_normal(seeds)
        ).tolist()
        for cost in COSTS
    }


@pytest.mark.parametrize("law", [Law(1.2, 0.23), Law(1.2, 0.3, 0.04), Law(3.0, 0.45, 0.1)])
def test_a_law_without_noise_is_found_exactly(law):
    points = {float(cost): [float(law.at(cost))] * 2 for cost in COSTS}
    found = fit_law(points, floor=law.floor > 0, draws=5)
    assert found.law.beta == pytest.approx(law.beta, rel=1e-5)
    assert found.law.log_a == pytest.approx(law.log_a, rel=1e-4)
    assert found.law.floor == pytest.approx(law.floor, abs=1e-6)
    assert found.residual < 1e-7
    assert found.law.cost_of(float(law.at(12345.0))) == pytest.approx(12345.0, rel=1e-3)


def test_a_law_that_hardly_falls_needs_infinitely_much():
    assert Law(1.0, 1e-5).cost_of(0.5) == math.inf
    assert Law(1.0, -0.1).cost_of(0.5) == math.inf


def test_least_squares_in_log_space_is_that_of_numpy():
    generator = np.random.default_rng(0)
    points = runs_of(Law(1.0, 0.2), 3, 0.2, generator)
    slope, height = np.polyfit(np.log(COSTS), [np.log(v).mean() for v in points.values()], 1)
    found = fit_law(points, draws=2).law
    assert (found.beta, found.log_a) == (pytest.approx(-slope), pytest.approx(height))


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds):
    """200 synthetic studies: 95 %, within four standard errors. A plain bootstrap of three runs
    fails."""
    truth, hits = Law(1.0, 0.2), 0
    generator = np.random.default_rng(seeds)
    for _ in range(200):
        interval = fit_law(runs_of(truth, seeds, 0.1, generator), draws=200).exponent()
        hits += interval.low <= truth.beta <= interval.high
    assert 0.89 <= hits / 200 <= 0.99


def test_the_evaluated_examples_are_in_the_interval():
    """80 studies of three runs at six costs, all evaluated on the same 300 examples, some of which are
    hard for every run: 95 %, within three standard errors. Seeds alone covered two of three."""
    generator, n, draws, covered = np.random.default_rng(0), 300, 200, 0
    counts = generator.multinomial(n, np.full(n, 1 / n), size=draws) / n
    for _ in range(80):
        ease, points, drawn = 0.95 * generator.normal(size=n), {}, {}
        for cost in np.geomspace(1, 32, 6):
            level = stats.norm.ppf(0.3 * cost**-0.3 * np.exp(0.03 * generator.normal(size=3)))
            wrong = ease[:, None] + 0.31 * generator.normal(size=(n, 3)) < level
            points[cost] = wrong.mean(0).tolist()
            drawn[cost] = [*(counts @ wrong).T]
        found = fit_law(points, draws=draws, drawn=drawn)
        assert found.over == "seeds and examples"
        covered += found.exponent().low <= 0.3 <= found.exponent().high
    assert covered >= 0.87 * 80


def test_intervals_of_single_runs_come_from_the_residuals():
    truth, hits = Law(1.0, 0.2), 0
    generator = np.random.default_rng(1)
    for _ in range(200):
        found = fit_law(runs_of(truth, 1, 0.1, generator), draws=200)
        assert found.over == "residuals"
        hits += found.exponent().low <= truth.beta <= found.exponent().high
    assert 0.82 <= hits / 200 <= 0.99  # six residuals, no t correction


def test_the_chance_that_one_exponent_beats_another_is_calibrated():
    """Of two equal laws it is uniform; of a clearly better one it is near 1. Common luck cancels."""
    generator = np.random.default_rng(2)
    same = []
    for _ in range(100):
        two = [fit_law(runs_of(Law(1.0, 0.2), 4, 0.1, generator), draws=100) for _ in range(2)]
        same.append(beats(*two)[0])
    assert abs(np.mean(same) - 0.5) < 0.12
    assert 0.2 < np.mean(np.abs(np.array(same) - 0.5) > 0.25) < 0.8
    luck = {cost: generator.standard_normal(4) for cost in COSTS}
    better, worse = (
        fit_law({float(c): np.exp(np.log(law.at(c)) + 0.3 * luck[c]).tolist() for c in COSTS})
        for law in (Law(1.0, 0.21), Law(1.0, 0.2))
    )
    chance, gap = beats(better, worse)
    assert chance == 1.0
    assert gap.value == pytest.approx(0.01)
    assert gap.low == pytest.approx(0.01)
    assert better.exponent().high - better.exponent().low > 0.02  # each alone is far less sure


def test_the_published_laws_agree_with_the_published_scores():
    """arXiv 2505.06699: errors 5.77·C^−0.116 (OpenCLIP) and 7.15·C^−0.127 (DRRho-CLIP), C in
    GFLOPs × samples; ViT-B/16 after 1.28e9 samples has ImageNet errors of 33.06 % and 31.16 %.

    Both scores lie on their laws at one and the same compute, about 40 GFLOPs an example; and from
    errors at the costs of three sizes the fitter returns the printed exponents, and the order.
    """
    plain, steered = Law(math.log(5.77), 0.116), Law(math.log(7.15), 0.127)
    costs = plain.cost_of(0.3306), steered.cost_of(0.3116)
    assert costs[0] == pytest.approx(costs[1], rel=0.05)
    assert 30 < costs[0] / 1.28e9 < 50
    sizes = np.array([0.35, 1.0, 4.3]) * costs[0]
    generator = np.random.default_rng(3)
    luck = {float(cost): 0.003 * generator.standard_normal(5) for cost in sizes}
    fits = [
        fit_law({c: (law.at(c) * np.exp(shake)).tolist() for c, shake in luck.items()})
        for law in (plain, steered)
    ]
    for fit, beta in zip(fits, (0.116, 0.127), strict=True):
        assert fit.exponent().low <= beta <= fit.exponent().high
    assert beats(fits[1], fits[0])[0] == 1.0


def test_a_floor_is_found_within_its_interval():
    generator = np.random.default_rng(4)
    found = fit_law(runs_of(Law(3.0, 0.5, 0.1), 5, 0.02, generator), floor=True, draws=200)
    assert found.floor().low <= 0.1 <= found.floor().high
    assert found.exponent().low <= 0.5 <= found.exponent().high
    ahead = found.at(1e8)
    assert ahead.low <= float(Law(3.0, 0.5, 0.1).at(1e8)) <= ahead.high
    assert found.law.cost_of(0.9 * found.law.floor) == math.inf


def test_the_frontier_leaves_out_what_costs_more_and_errs_more():
    points = {1.0: [0.5], 2.0: [0.6], 3.0: [0.4], 4.0: [0.4]}
    assert [*frontier(points)] == [1.0, 3.0]


def test_where_a_curve_reaches_a_level():
    shares = [0.01, 0.1, 1.0]
    assert crossing(shares, [0.2, 0.4, 0.6], 0.5) == pytest.approx(10**-0.5)
    assert crossing(shares, [0.2, 0.4, 0.6], 0.1) == 0.01
    assert math.isnan(crossing(shares, [0.2, 0.4, 0.6], 0.7))
    # What diverged has reached nothing, and no line goes through it.
    assert math.isnan(crossing(shares, [math.nan, 0.4, 0.6], 0.7))
    assert crossing(shares, [math.nan, 0.4, 0.6], 0.5) == pytest.approx(10**-0.5)
    assert crossing(shares, [0.2, math.nan, 0.6], 0.4) == pytest.approx(0.1)
    assert math.isnan(crossing(shares, [0.2, 0.4, 0.6], math.nan))


@pytest.mark.parametrize(
    ("points", "says"),
    [
        ({1.0: [0.5]}, "at least 2 different costs, got 1"),
        ({1.0: [0.5], 2.0: [0.0]}, "errors at cost 2: expected positive"),
        ({1.0: [0.5], 2.0: [math.nan]}, "expected positive numbers"),
        ({0.0: [0.5], 2.0: [0.4]}, "cost 0.0: expected a positive number"),
        ({1.0: [0.5], 2.0: []}, "errors at cost 2"),
    ],
)
def test_what_no_law_can_be_made_of_is_refused(points, says):
    with pytest.raises(ValueError, match=says):
        fit_law(points)
    with pytest.raises(ValueError, match="at least 3 different costs"):
        fit_law({1.0: [0.5], 2.0: [0.4]}, floor=True)
