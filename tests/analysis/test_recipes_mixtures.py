"""The linear fit of losses on mixtures (RegMix): closed forms, and when it is on the page at all."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from steering.analysis.recipes_axis import Axis
from steering.analysis.recipes_mixtures import (
    best_penalty,
    fit,
    left_out_errors,
    mean_of_others,
    mixtures_of,
    ridge_slopes,
    rms,
)
from steering.analysis.recipes_page import by_weights
from steering.runs.record import Cost, Metric, RunRecord

BETA = np.array([0.4, -0.2, 0.1])


def shares(n=12, k=3, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(k), size=n)


def test_slopes_are_the_minimum_of_the_penalised_squares():
    w, y = shares(), np.random.default_rng(1).normal(size=12)
    stacked = np.vstack([np.column_stack([np.ones(12), w]), np.zeros((3, 4))])
    stacked[12:, 1:] = np.sqrt(0.7) * np.eye(3)
    wanted = np.linalg.lstsq(stacked, np.concatenate([y, np.zeros(3)]), rcond=None)[0]
    np.testing.assert_allclose(ridge_slopes(w, y, 0.7), wanted[1:], atol=1e-12)


def test_left_out_errors_are_those_of_fits_that_left_each_out():
    w, y = shares(), np.random.default_rng(1).normal(size=12)
    for penalty in (1e-6, 0.3):
        for i, found in enumerate(left_out_errors(w, y, penalty)):
            rest = np.arange(12) != i
            slopes = ridge_slopes(w[rest], y[rest], penalty)
            predicted = y[rest].mean() + (w[i] - w[rest].mean(0)) @ slopes
            assert found == pytest.approx(y[i] - predicted, abs=1e-9)


def test_linear_losses_are_found_and_told_for_mixtures_that_were_left_out():
    w = shares()
    y = 2 + w @ BETA
    found = fit(w, y)
    np.testing.assert_allclose(found.left_out, y, atol=1e-5)
    np.testing.assert_allclose(found.fitted, y, atol=1e-5)
    assert rms(mean_of_others(y) - y) > 0.05
    # Ten points more of a domain, the others in proportion: the loss of that mixture, less.
    for k in range(3):
        rest = found.middle * (np.arange(3) != k)
        moved = found.middle + 0.1 * (np.eye(3)[k] - rest / rest.sum())
        assert moved.sum() == pytest.approx(1)
        assert found.shift(0.1)[k] == pytest.approx((moved - found.middle) @ BETA, abs=1e-5)


def test_losses_that_have_nothing_to_do_with_the_weights_are_predicted_no_better_than_by_the_mean():
    worse = 0
    for seed in range(20):
        w, y = shares(seed=seed), np.random.default_rng([seed, 9]).normal(size=12)
        found = fit(w, y)
        worse += rms(found.left_out - y) >= rms(mean_of_others(y) - y)
    assert worse >= 10


def test_a_left_out_recipe_has_no_say_in_its_own_prediction():
    """Not by the penalty, either."""
    w, y = shares(), 2 + shares() @ BETA + 0.05 * np.random.default_rng(3).normal(size=12)
    other = y.copy()
    other[4] += 100
    assert best_penalty(w, y) != best_penalty(w, other)
    assert fit(w, y).left_out[4] == fit(w, other).left_out[4]


def test_one_domain_alone_has_no_room_to_grow():
    found = fit(np.ones((4, 1)), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.shift().tolist() == [0.0]
    np.testing.assert_allclose(found.left_out, [3, 8 / 3, 7 / 3, 2])


def records(tmp_path, changes):
    """Proxies and targets of mixtures of three domains; `changes` go into the configs."""
    found = []
    for number, row in enumerate(np.round(shares(6), 3)):
        mix = {name: float(10 * weight) for name, weight in zip("abc", row, strict=True)}
        loss = 2 + float(row / row.sum() @ BETA)
        for scale, rate in (("proxy", 0.001), ("proxy", 0.1), ("target", 0.1)):
            folder = tmp_path / f"{scale}-{number}-{rate}"
            folder.mkdir()
            config = {"task": {"name": "language", "data": {"mix": mix}}, "optimizer": {"lr": rate}}
            config["task"]["data"].update(changes.get(number, {}))
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            curve = [{"step": 1, "train/loss": 2.0}, {"step": 9, "train/loss": 1.0}]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
            found.append(
                RunRecord(
                    key=folder.name,
                    kind="train",
                    label=folder.name,
                    axes={"scale": scale, "recipe": f"r{number}", "rate": rate, "seed": 0},
                    folder=folder,
                    metrics={"loss": loss + (rate == 0.001)},
                    meaning={"loss": Metric(percent=False, higher_is_better=False)},
                    cost=Cost(flops=10),
                )
            )
    return found


def test_the_page_tells_slopes_and_the_error_on_left_out_recipes(tmp_path):
    axis = Axis(records(tmp_path, {}), "", 30.0)
    mixtures = mixtures_of(axis)
    assert mixtures.domains == ("a", "b", "c")
    np.testing.assert_allclose(mixtures.shares.sum(1), 1)
    (table,) = by_weights(axis)
    lines = {line[0]: line[1:] for line in table.lines}
    middle = mixtures.shares.mean(0)
    assert lines["error on a recipe left out"] == ["0.0000"] * 2
    assert lines["Spearman with the truth"] == ["1.00"] * 2
    assert lines["regret@1"] == ["0.0000"] * 2
    expected = 0.1 * (BETA - BETA @ middle) / (1 - middle)
    for domain, value in zip("abc", expected, strict=True):
        assert lines[f"10 points more of {domain}"] == [f"{value:+.4f}"] * 2
    assert table.header == ["", "proxy at 0.001", "proxy at 0.1"]
    assert "no better than the mean" not in table.note


def test_a_fit_that_is_no_better_than_the_mean_says_so(tmp_path):
    """A loss that is the same but for one recipe has nothing to do with the weights; the rates agree,
    so the first is both small and usual."""
    found = [
        replace(record, metrics={"loss": float(record.axes["recipe"] == "r1")})
        for record in records(tmp_path, {})
        if record.axes["scale"] == "proxy"
    ]
    (table,) = by_weights(Axis(found, "", 30.0))
    assert "At 0.001 the fit is no better than the mean" in table.note
    assert "regret@1" not in [line[0] for line in table.lines]


@pytest.mark.parametrize("change", [{"mix": {}}, {"corrupt": {"a": 0.1}}])
def test_recipes_that_differ_in_more_than_the_mix_have_no_fit(tmp_path, change):
    axis = Axis(records(tmp_path, {2: change}), "", 30.0)
    assert mixtures_of(axis) is None
    assert by_weights(axis) == []


def test_three_mixtures_are_too_few(tmp_path):
    few = [r for r in records(tmp_path, {}) if r.axes["recipe"] in ("r0", "r1", "r2")]
    assert mixtures_of(Axis(few, "", 30.0)) is None
