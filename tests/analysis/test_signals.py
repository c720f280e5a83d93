"""Signals, stored losses and the calibration's regression, against definitions and libraries."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, mannwhitneyu, norm, spearmanr
from sklearn.linear_model import Ridge as SklearnRidge

from steering.analysis import stored
from steering.analysis.calibration import (
    PENALTIES,
    chances,
    fit_ridge,
    left_out,
    number,
    rank_interval,
    ridge_of,
    share_interval,
    verdict,
)
from steering.analysis.intervals import Interval
from steering.analysis.signals import CONFIDENT, auc, signals_of, spearman
from steering.analysis.stored import TAU, Losses, pair_losses
from steering.studies.audit_page import verdict_table
from steering.studies.calibration_page import Combination, Judged, gain_table, judged_table


def losses(values):
    values = np.asarray(values, dtype=np.float64)
    return Losses(values, values[None])


@pytest.fixture
def two():
    generator = np.random.default_rng(0)
    reference = generator.exponential(2.0, 300)
    return 0.7 * reference + generator.exponential(1.0, 300), reference


def test_signals_are_their_definitions(two):
    target, reference = two
    found = signals_of(losses(target), losses(reference))
    excess = target - reference
    assert found.variance_ratio == pytest.approx(excess.var() / target.var())
    cov = np.cov(target, reference, bias=True)[0, 1]
    assert found.strength == pytest.approx(cov / reference.var())
    best = (target - found.strength * reference).var()
    assert found.explained == pytest.approx(1 - best / target.var())
    for other in (0.9, 1.1):  # the control variate's coefficient has the least variance
        assert (target - other * found.strength * reference).var() > best
    late = target > target.mean()
    test = mannwhitneyu(reference[late], reference[~late]).statistic
    assert found.late_auc == pytest.approx(test / (late.sum() * (~late).sum()))
    assert found.agreement == pytest.approx(spearmanr(target, reference).statistic)
    assert found.reference_wrong == (reference > CONFIDENT).mean()
    bound = math.sqrt(2 / 300) * (target.std() - excess.std())
    assert found.bound == pytest.approx(bound)
    assert math.isnan(found.advantage)
    assert found.values()["log_n"] == math.log(300)
    assert found.values()["log_variance_ratio"] == math.log(found.variance_ratio)
    assert "variance_ratio" not in found.values()


def test_a_reference_that_tracks_the_target_leaves_no_variance(two):
    target, _ = two
    found = signals_of(losses(target), losses(target + 3.0))
    assert found.variance_ratio == pytest.approx(0.0, abs=1e-12)
    assert (found.strength, found.explained) == (pytest.approx(1.0), pytest.approx(1.0))
    assert signals_of(losses(target), losses(np.ones(300))).late_auc == 0.5


def test_variances_are_within_rows():
    """A shift of a row's losses is no variance: DRRho's weights do not see it."""
    generator = np.random.default_rng(1)
    items, guide = generator.standard_normal((2, 5, 40))
    shifted = Losses(items.mean(1), items + np.arange(5)[:, None] * 100)
    plain = Losses(items.mean(1), items)
    ours = [signals_of(one, Losses(guide.mean(1), guide)) for one in (plain, shifted)]
    assert ours[0].variance_ratio == pytest.approx(ours[1].variance_ratio)


def test_held_out_losses_and_missing_examples(two):
    target, reference = two
    held_out = losses([3.0, 1.0]), losses([1.0, 2.0])
    found = signals_of(losses(target), losses(reference), held_out)
    assert found.advantage == 0.5
    assert found.gap == pytest.approx(2.0 - target.mean())
    target[3] = np.nan
    assert signals_of(losses(target), losses(reference)).n == 299
    with pytest.raises(ValueError, match="300 and of 299"):
        signals_of(losses(target), losses(reference[:-1]))
    with pytest.raises(ValueError, match="0 examples have both"):
        signals_of(losses([np.nan]), losses([1.0]))


def test_ranks_and_chances_of_ties():
    assert auc(np.array([1.0, 1.0, 2.0]), np.array([True, False, False])) == 0.25
    assert auc(np.array([1.0, 2.0]), np.array([True, True])) == 0.5
    one, other = np.array([1.0, 1.0, 2.0, 5.0]), np.array([3.0, 4.0, 4.0, 0.0])
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert spearman(np.ones(3), np.arange(3.0)) == 0.0


def test_losses_of_pairs_are_infonce():
    """With fewer pairs than negatives are drawn it is the two-sided cross entropy of all cosines."""
    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 12, 5, dtype=torch.float64), dim=-1)
    found = pair_losses(image.numpy(), text.numpy(), np.ones(12, dtype=bool))
    scores, label = image @ text.T / TAU, torch.arange(12)
    sides = [
        torch.nn.functional.cross_entropy(s, label, reduction="none") for s in (scores, scores.T)
    ]
    np.testing.assert_allclose(found.examples, (sum(sides) / 2).numpy(), rtol=1e-10)
    valid = np.arange(12) != 4
    without = pair_losses(image.numpy(), text.numpy(), valid)
    assert np.isnan(without.examples[4])
    kept = torch.from_numpy(np.flatnonzero(valid))
    small = pair_losses(image[kept].numpy(), text[kept].numpy(), np.ones(11, dtype=bool))
    np.testing.assert_allclose(without.examples[valid], small.examples, rtol=1e-10)
    diagonal = found.items[:12][np.isfinite(found.items[:12])]
    assert len(diagonal) == 12 * 11  # a pair is no negative of itself


def test_losses_of_pairs_do_not_depend_on_the_chunks(monkeypatch):
    generator = np.random.default_rng(0)
    image, text = generator.standard_normal((2, 30, 4))
    valid = generator.random(30) < 0.8
    whole = pair_losses(image, text, valid, rows=20)
    monkeypatch.setattr(stored, "_CHUNK", 7)
    parts = pair_losses(image, text, valid, rows=20)
    np.testing.assert_allclose(parts.examples, whole.examples, rtol=1e-12)
    np.testing.assert_allclose(parts.items, whole.items, rtol=1e-12)
    assert whole.items.shape == (40, 30)


def test_pairs_are_wrong_where_their_loss_is_above_that_of_guessing():
    """Among 256 others 3 nats are good: a right pair is picked 13 times as often as by a guess."""
    ones = np.ones((300, 4)) / 2
    blind = pair_losses(ones, ones, np.ones(300, dtype=bool))
    assert blind.guess == math.log1p(256)
    middling, awful = (Losses(np.full(300, x), blind.items, blind.guess) for x in (5.0, 6.0))
    found = signals_of(middling, awful)
    assert (found.target_wrong, found.reference_wrong) == (0.0, 1.0)
    assert signals_of(blind, blind).target_wrong == 0.0
    few = np.arange(300) % 10 == 0  # what could not be read is nobody's choice
    others = np.random.default_rng(300).choice(300, size=256, replace=False)
    assert pair_losses(ones, ones, few).guess == math.log(1 + few[others].sum())


@pytest.fixture
def cases():
    generator = np.random.default_rng(2)
    x = generator.standard_normal((40, 3))
    y = 2.0 * x[:, 0] - x[:, 1] + 0.1 * generator.standard_normal(40) + 5
    rows = [dict(zip("abc", row, strict=True)) for row in x]
    return rows, y, [str(n // 4) for n in range(40)]


def test_the_regression_is_sklearns(cases):
    rows, y, groups = cases
    made = fit_ridge(rows, y, groups, "abc")
    assert made.penalty in PENALTIES
    x = np.array([[row[name] for name in "abc"] for row in rows])
    z = (x - x.mean(0)) / x.std(0)
    twin = SklearnRidge(alpha=made.penalty).fit(z, y)
    np.testing.assert_allclose(made.coefficients, twin.coef_, rtol=1e-8)
    assert made.predict(rows[7]) == pytest.approx(twin.predict(z[7:8])[0])
    assert ridge_of(made.plain()) == made
    assert 0.08 < made.spread < 0.5  # noise of 0.1, and the outermost cases count as nearer ones
    edge = made.high[0]
    beyond = {"a": edge + 50, "b": 0.0, "c": 0.0}
    assert made.predict(beyond) == pytest.approx(made.predict({**beyond, "a": edge}))
    assert made.outside({"a": 99.0, "b": 0.0, "c": 0.0}) == ["a"]
    with pytest.raises(ValueError, match="no value of a, which"):
        made.predict({"a": math.nan, "b": 0.0, "c": 0.0})


def test_a_left_out_group_plays_no_part_in_its_own_prediction(cases):
    rows, y, groups = cases
    before = left_out(rows, y, groups, "abc")
    changed = y.copy()
    changed[:4] += 1000
    after = left_out(rows, changed, groups, "abc")
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.abs(before[4:] - after[4:]).max() > 1


def test_what_is_noise_is_not_foreseen(cases):
    rows, _, groups = cases
    noise = np.random.default_rng(3).standard_normal(40)
    value, low, high = rank_interval(left_out(rows, noise, groups, "abc"), noise, groups)
    assert low < value < high
    assert value < 0.4
    constant = [{"a": 1.0} for _ in rows]
    assert left_out(constant, noise, groups, "a") == pytest.approx(
        [noise[[g != group for g in groups]].mean() for group in groups]
    )


def test_shares_and_chances():
    wilson = binomtest(7, 9).proportion_ci(method="wilson")
    assert share_interval(7, 9) == pytest.approx((7 / 9, wilson.low, wilson.high))
    assert all(math.isnan(one) for one in share_interval(0, 0))
    odds = chances(0.02, 0.01, 0.005)
    assert sum(odds.values()) == pytest.approx(1.0)
    assert odds["helps"] == pytest.approx(1 - norm.cdf(0.005, 0.02, 0.01))
    assert verdict(odds) == "helps"
    assert verdict(chances(0.0, 0.01, 0.005)) == "open"
    assert verdict(chances(0.0, 0.001, 0.005)) == "no matter"
    assert odds["hurts"] == pytest.approx(norm.cdf(-0.005, 0.02, 0.01))


def test_a_gain_is_in_points_only_where_the_metric_is_a_share():
    assert [number(0.025, True), number(0.0449, True, "")] == ["+2.5", "4.5"]
    assert [number(2.5, False), number(2.5, False, "")] == ["+2.500", "2.500"]
    gains = {"drrho": Interval(2.5, 2.0, 3.0)}
    share, nats = (Combination("cell", "r", {}, gains, percent) for percent in (True, False))
    assert gain_table([share], gains).lines == [["cell, r", "+250.0 [+200.0, +300.0]"]]
    assert gain_table([nats], gains).lines == [["cell, r", "+2.500 [+2.000, +3.000]"]]
    judged = [Judged("drrho", {"ridge": {"spread": 1.5}}, *[np.array([2.0])] * 3, ["helps"])]
    table = judged_table(judged, [nats])
    assert (table.lines[0][6], "points" in table.note) == ("1.500", False)


def test_an_expected_gain_is_in_points_only_where_the_metric_is_a_share():
    ridge = fit_ridge([{"a": 1.0}, {"a": 2.0}], [1.0, 2.0], ["x", "y"], ["a"])
    about = {"plane": [], "gain": 2.5, "spread": 1.5, "verdict": "helps", "outside": []}
    about["chances"] = chances(2.5, 1.5, 0.005)
    for percent, says in ((True, "+250.0 ± 150.0"), (False, "+2.500 ± 1.500")):
        table = verdict_table({"r": {"drrho": about}}, percent, ridge.cases)
        assert (table.lines[0][3], "points" in table.note) == (says, percent)
