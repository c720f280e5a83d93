"""A scaling study's records as points, and the share of the data that suffices."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from steering.analysis.points import Point, cost_of, error_of, points_of
from steering.analysis.savings import savings
from steering.errors import ConfigError, SteeringError
from steering.runs.record import Cost, Metric, RunRecord


def run(share, seed, score, method="plain", samples=10):
    return Point(method, "", samples, share, seed, 1.0, 1 - score, score)


def curves(slope, seeds=4):
    """Scores that rise by the logarithm of the share: level 0.8 on all the data, or by `slope`
    points of the logarithm more."""
    generator = np.random.default_rng(0)
    luck = 0.002 * generator.standard_normal(seeds)
    return [
        run(share, seed, 0.8 + 0.1 * math.log10(share) + lift + luck[seed], method)
        for method, lift in (("plain", 0.0), ("steered", slope))
        for share in (0.01, 0.1, 1.0)
        for seed in range(seeds)
    ]


def test_the_share_that_suffices_is_that_of_the_closed_form():
    """A lift by 0.03 of scores that rise by 0.1 per decade is worth 10^0.3 of the data."""
    plain, steered = savings(curves(0.03), "plain")
    assert plain.share == pytest.approx(1.0)
    assert steered.share == pytest.approx(10**-0.3)
    assert steered.low == pytest.approx(steered.share)  # luck of a seed is common to both
    assert steered.reached == 1.0


def test_a_method_that_never_gets_there_says_so():
    _, steered = savings(curves(-0.01), "plain")
    assert math.isnan(steered.share)
    assert steered.reached == 0.0
    assert math.isnan(steered.low)


def noisy(generator, seeds, deviation=0.02, lift=0.03):
    """As `curves`, but each run has luck of its own."""
    return [
        run(r.share, r.seed, r.score + deviation * generator.standard_normal(), r.method)
        for r in curves(lift, seeds)
    ]


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_share_that_suffices_is_covered_as_often_as_it_says(seeds):
    """100 studies whose truth is 10^-0.3: 95 %, within three standard errors. Seeds drawn with
    replacement covered 39 and 86 of them."""
    generator, covered = np.random.default_rng(0), 0
    for _ in range(100):
        _, steered = savings(noisy(generator, seeds), "plain")
        assert steered.over == "seeds"
        covered += steered.low <= 10**-0.3 <= steered.high
    assert covered >= 89


def test_evaluated_examples_count_too():
    """The same runs, of which each was evaluated on few examples."""
    runs = noisy(np.random.default_rng(1), 4, 0.001)
    luck = {method: np.random.default_rng(n).normal(0, 0.01, 1000) for n, method in enumerate("ps")}
    drawn = [Point(**{**vars(one), "drawn": one.score + luck[one.method[0]]}) for one in runs]
    (_, plain), (_, wide) = savings(runs, "plain"), savings(drawn, "plain")
    assert (plain.over, wide.over) == ("seeds", "seeds and examples")
    assert wide.share == plain.share
    assert wide.high / wide.low > 1.2 * plain.high / plain.low


def test_one_seed_has_no_interval():
    _, steered = savings(curves(0.03, 1), "plain")
    assert steered.text() == "0.501"
    assert math.isnan(steered.reached)
    assert steered.over == ""


def test_draws_that_never_get_there_are_no_reason_to_be_sure():
    """A method that is as good as the baseline: one draw in two ends beyond the data that there
    are."""
    _, steered = savings(noisy(np.random.default_rng(2), 5, lift=0.0), "plain")
    assert 0.2 < steered.reached < 0.8
    assert steered.high == math.inf
    assert steered.text().endswith(", > 1]")
    assert " [< 1, " in steered.text(times=True)


def test_a_value_at_the_smallest_share_is_a_bound():
    _, steered = savings(curves(0.5), "plain")
    assert steered.text() == "≤ 0.01 [≤ 0.01, ≤ 0.01]"
    assert steered.text(times=True) == "≥ 100.00 [≥ 100.00, ≥ 100.00]"


def test_only_seeds_that_all_runs_have_are_paired():
    runs = [one for one in curves(0.03) if (one.share, one.seed) != (0.1, 2)]
    _, steered = savings(runs, "plain")
    assert steered.share == pytest.approx(10**-0.3)
    nan = [run(one.share, one.seed, math.nan, one.method) for one in runs]
    assert savings(nan, "plain") == []


def test_one_share_of_the_data_is_no_curve():
    assert savings([run(1.0, 0, 0.5)], "plain") == []


def record(key, cost, **more):
    axes = {"method": "a", "size": "", "samples": 8, "share": "1", "seed": 0}
    return RunRecord(key=key, kind="train", label=key, cost=cost, axes=axes, **more)


def test_costs():
    reference = record("r", Cost(flops=500))
    mine = record(
        "m",
        Cost(flops=90, forward_flops=3, trained=10, stored=4, reference_flops=5, parameters=7),
        parents={"reference": "r"},
    )
    by_key = {"r": reference, "m": mine}
    wanted = {
        "flops": 90,
        "flops_with_reference": 90 + 500 + 4 * 5,
        "forward": 30,
        "samples": 10,
        "parameters": 7,
    }
    assert {name: cost_of(mine, name, by_key) for name in wanted} == wanted
    with pytest.raises(SteeringError, match="the flops of z could not be counted"):
        cost_of(record("z", Cost(trained=3)), "flops", {})


def test_errors():
    assert error_of(0.75, Metric(), "accuracy") == 0.25
    assert error_of(3.0, Metric(percent=False, higher_is_better=False), "loss") == 3.0
    with pytest.raises(SteeringError, match="reward has no error"):
        error_of(3.0, Metric(percent=False), "reward")


def test_points_of_records():
    one = record("m", Cost(flops=9), metrics={"loss": 2.0})
    meaning = {"loss": Metric(percent=False, higher_is_better=False)}
    reference = RunRecord(key="r", kind="train", label="r", axes={"role": "reference"})
    made = RunRecord(**{**vars(one), "meaning": meaning})
    (point,) = points_of([reference, made], "loss", "flops")
    assert (point.error, point.score, point.cost) == (2.0, -2.0, 9.0)
    with pytest.raises(SteeringError, match="no 'accuracy'; the runs have loss"):
        points_of([made], "accuracy", "flops")
    wrong = SimpleNamespace(**vars(made))
    wrong.axes = {**made.axes, "share": "2"}
    with pytest.raises(ConfigError, match=r"expected a number in \(0, 1\], got '2'"):
        points_of([wrong], "loss", "flops")
