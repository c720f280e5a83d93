"""Intervals and speed-ups against closed forms, and against numbers by hand."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from steering.analysis.intervals import (
    Bootstrap,
    over_seeds,
    paired_difference,
    seeds_interval,
)
from steering.analysis.reach import reached, speedup
from steering.runs.record import Cost, Metric, RunRecord, Scores, write_scores

SHARE = {"m": Metric(of=("m",))}


def run(folder, key, scores, meaning=SHARE, **changes):
    """A record with scores on disk; a metric is what its meaning makes of them."""
    folder = folder / key
    folder.mkdir(parents=True)
    scores = {
        name: one if isinstance(one, Scores) else Scores(np.asarray(one, float), np.ones(len(one)))
        for name, one in scores.items()
    }
    write_scores(folder / "scores.npz", scores)
    metrics = {}
    for name, metric in meaning.items():
        mean = np.mean([scores[part].mean() for part in metric.of])
        metrics[name] = float(np.exp(mean) if metric.exp else mean)
    return RunRecord(key, "train", key, folder=folder, metrics=metrics, meaning=meaning, **changes)


def test_an_interval_over_seeds_is_students():
    values = [0.1, 0.4, 0.35, 0.2]
    found = seeds_interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert math.isnan(seeds_interval([1.0]).low)


def test_pairing_by_example_takes_out_what_is_common(tmp_path):
    """One seed, n examples: the width is that of the mean of the differences, not of the two
    scores."""
    generator, n = np.random.default_rng(0), 400
    common = 5 * generator.standard_normal(n)
    own = generator.standard_normal(n)
    a, b = run(tmp_path, "a", {"m": common + own}), run(tmp_path, "b", {"m": common})
    found = paired_difference({0: a}, {0: b}, "m", Bootstrap(4000))
    assert found.value == pytest.approx(own.mean())
    assert found.over == "examples"
    half = 1.96 * own.std() / math.sqrt(n)  # the bootstrap of a mean is nearly normal
    assert found.low == pytest.approx(own.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(own.mean() + half, abs=0.1 * half)


def test_seeds_and_examples_both_count(tmp_path):
    """d_si = a_s + e_i: half the width is that of Student's interval over the seeds and that of the
    examples, as independent errors add up."""
    generator, n, seeds = np.random.default_rng(1), 300, 8
    of_seed, of_example = generator.standard_normal(seeds) * 0.1, generator.standard_normal(n)
    plain = {s: run(tmp_path, f"b{s}", {"m": np.zeros(n)}) for s in range(seeds)}
    runs = {s: run(tmp_path, f"a{s}", {"m": of_seed[s] + of_example}) for s in range(seeds)}
    found = paired_difference(runs, plain, "m", Bootstrap(4000))
    of_seeds = stats.t.ppf(0.975, seeds - 1) * stats.sem(of_seed)
    of_examples = 1.96 * of_example.std() / math.sqrt(n)
    assert found.over == "seeds and examples"
    assert (found.high - found.low) / 2 == pytest.approx(math.hypot(of_seeds, of_examples), rel=0.1)


def test_few_seeds_are_covered_as_often_as_it_says(tmp_path):
    """200 studies without a difference, in which three seeds move a score by 10 points: 95 %, within
    four standard errors. Drawing seeds with replacement, too, covers four of five."""
    seeds, generator, n, covered = 3, np.random.default_rng(0), 300, 0
    for study in range(200):
        arms = []
        for arm in "ab":
            rates = 0.5 + 0.1 * generator.standard_normal(seeds)
            arms.append(
                {
                    s: run(tmp_path, f"{arm}{study}-{s}", {"m": (generator.random(n) < rate) * 1.0})
                    for s, rate in enumerate(rates)
                }
            )
        found = paired_difference(arms[0], arms[1], "m", Bootstrap(100))
        covered += found.low <= 0 <= found.high
    assert covered / 200 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 200)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_draws_of_means_over_seeds_are_as_wide_as_students_interval(seeds):
    """Drawing seeds with replacement, however stretched, has no more than three ends for two."""
    table = np.tile([0.1, 0.4, 0.35, 0.2, 0.3][:seeds], (20_000, 1))
    low, high = np.quantile(over_seeds(table), [0.025, 0.975])
    wanted = seeds_interval(table[0].tolist())
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=0.03)
    # What is common to the seeds of two tables stays so.
    assert over_seeds(table + 1) - over_seeds(table) == pytest.approx(1.0)
    assert np.array_equal(over_seeds(table[:, :1]), table[:, 0])


def test_equal_runs_differ_by_nothing_and_only_common_seeds_count(tmp_path):
    a = run(tmp_path, "a", {"m": [0, 1, 1]})
    found = paired_difference({0: a, 1: a}, {1: a, 2: a}, "m", Bootstrap(50))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert paired_difference({0: a}, {1: a}, "m", Bootstrap(50)) is None
    assert paired_difference({0: a}, {0: a}, "other", Bootstrap(50)) is None


def test_a_perplexity_is_drawn_as_one(tmp_path):
    """exp of the mean over domains of each domain's token mean; blocks are drawn, and count by
    their tokens."""
    meaning = {
        "ppl": Metric(percent=False, higher_is_better=False, of=("loss/a", "loss/b"), exp=True)
    }
    one = {
        "loss/a": Scores(np.array([1.0, 2.0]), np.array([3.0, 1.0])),
        "loss/b": Scores(np.full(5, 2.0), np.ones(5)),
    }
    a = run(tmp_path, "a", one, meaning)
    assert a.metrics["ppl"] == pytest.approx(math.exp((5 / 4 + 2) / 2))
    drawn = Bootstrap(2000).values(a, "ppl")
    possible = [
        math.exp((x + 2) / 2) for x in (1.0, 5 / 4, 2.0)
    ]  # block 1 twice, each once, block 2 twice
    assert sorted(set(np.round(drawn, 9))) == pytest.approx(possible)
    counts = [np.isclose(drawn, value).mean() for value in possible]
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_without_scores_the_interval_is_over_seeds_alone(tmp_path):
    def bare(key, value):
        return RunRecord(
            key,
            "train",
            key,
            folder=tmp_path / key,
            metrics={"ECE": value},
            meaning={"ECE": Metric()},
        )

    runs, plain = (
        {s: bare(f"a{s}", v) for s, v in enumerate((0.3, 0.5))},
        {s: bare(f"b{s}", 0.2) for s in range(2)},
    )
    found = paired_difference(runs, plain, "ECE", Bootstrap())
    expected = seeds_interval([0.1, 0.3])
    assert found.over == "seeds"
    assert (found.value, found.low, found.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    assert paired_difference({0: runs[0]}, plain, "ECE", Bootstrap()).over == ""


def test_other_numbers_of_examples_are_not_paired(tmp_path):
    a, b = run(tmp_path, "a", {"m": [0, 1, 1]}), run(tmp_path, "b", {"m": [0, 1]})
    assert paired_difference({0: a}, {0: b}, "m", Bootstrap(50)).over == ""


def test_a_single_example_has_no_interval_without_a_width(tmp_path):
    a, b = run(tmp_path, "a", {"m": [1]}), run(tmp_path, "b", {"m": [0]})
    found = paired_difference({0: a}, {0: b}, "m", Bootstrap(50))
    assert (found.value, found.over) == (1.0, "")
    assert math.isnan(found.low)


def curve(tmp_path, key, points, trained=100, flops=1000, better=True, **cost):
    """A run that was evaluated at steps, ten in all; (step, value, seconds)."""
    folder = tmp_path / key
    folder.mkdir()
    rows = [{"step": s, "train/seconds": t} for s, _, t in points] + [
        {"step": s, "eval/m": v} for s, v, _ in points
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = Cost(trained=trained, flops=flops, steps=10, seconds=points[-1][2], **cost)
    meaning = {"m": Metric(higher_is_better=better)}
    return RunRecord(
        key, "train", key, folder=folder, metrics={"m": points[-1][1]}, meaning=meaning, cost=whole
    )


def test_when_a_score_is_first_reached(tmp_path):
    a = curve(tmp_path, "a", [(2, 0.1, 1.0), (5, 0.4, 2.5), (10, 0.3, 5.0)])
    found = reached(a, "m", 0.35)
    assert (found.samples, found.seconds, found.flops) == (50, 2.5, 500)
    assert reached(a, "m", 0.5) is None
    loss = curve(tmp_path, "b", [(2, 0.9, 1.0), (5, 0.4, 2.5), (10, 0.3, 5.0)], better=False)
    assert reached(loss, "m", 0.5).samples == 50


def test_times_fewer_by_hand(tmp_path):
    plain = {s: curve(tmp_path, f"p{s}", [(10, 0.4, 8.0)]) for s in (0, 1)}
    fast = {
        0: curve(tmp_path, "f0", [(5, 0.4, 2.0), (10, 0.5, 4.0)], reference_flops=1, stored=100),
        1: curve(tmp_path, "f1", [(2, 0.6, 1.0), (10, 0.5, 4.0)], reference_flops=1, stored=100),
    }
    found = speedup(fast, plain, "m", {"f0": 400.0, "f1": 400.0})
    assert (found.reached, found.seeds) == (2, 2)
    assert found.samples.value == pytest.approx(math.sqrt(2 * 5))  # 100/50 and 100/20
    assert found.seconds.value == pytest.approx(math.sqrt(4 * 8))
    assert found.flops.value == pytest.approx(math.sqrt(2 * 5))
    assert found.with_reference.value == pytest.approx(
        math.sqrt(1000 / (500 + 500) * 1000 / (200 + 500))
    )
    slow = {0: curve(tmp_path, "s0", [(10, 0.3, 4.0)]), 1: fast[1]}
    assert (speedup(slow, plain, "m", {}).reached, speedup(slow, plain, "m", {}).seeds) == (1, 2)
    assert speedup(fast, {7: plain[0]}, "m", {}) is None
