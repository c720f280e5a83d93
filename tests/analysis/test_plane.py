"""Halves of examples, successive halving, and the plane's choices, against numbers by hand."""

import math

import numpy as np
import pytest

from steering.analysis.halves import Half
from steering.analysis.halving import Round, halving
from steering.analysis.intervals import Bootstrap, paired_difference
from steering.analysis.plane import (
    BEST,
    FILTER,
    ORIGIN,
    PUBLISHED,
    RAY,
    SHARP,
    UNGUIDED,
    Cell,
    cell_of,
    choices,
    group,
)
from steering.analysis.trials import Trials
from steering.errors import SteeringError
from steering.runs.record import Metric, RunRecord, Scores, write_scores


def test_halves_are_two_and_an_example_keeps_its_side():
    tuning, report = (Half(3, tuning=one).mask(4000) for one in (True, False))
    assert (tuning != report).all()
    assert abs(tuning.mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert (Half(3, tuning=True).mask(100) == tuning[:100]).all()
    # Neither neighbours nor other seeds have anything to do with it.
    for other in (np.roll(tuning, 1), np.roll(tuning, 2), Half(4, tuning=True).mask(4000)):
        assert abs((tuning == other).mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_halving_by_hand():
    rounds = [Round(0.25, 1), Round(0.5, 1), Round(1.0, 1)]
    scores = {
        0.25: {"a": 1, "b": 5, "c": 4, "d": 2, "e": 3},
        0.5: {"b": 1, "c": 7, "e": 7},
        1.0: {"c": 0, "e": 9},
    }

    def score(who, one):
        return scores[one.share].get(who, math.nan)

    race = halving("abcde", rounds, score, 0.5)
    assert [[*one] for one in race.finished] == [[*"abcde"], [*"bce"], [*"ce"]]
    assert race.left == [*"ce"]
    assert [race.last(one) for one in "abcde"] == [0, 1, 2, 0, 2]
    assert race.best("abcde") == "e"
    assert race.best("ab") == "b"  # who came farther, though "a" may have scored more there
    assert race.best("") is None
    scores[1.0].pop("e")
    race = halving("abcde", rounds, score, 0.5)
    assert len(race.finished) == 2  # stands before the round that is not whole
    assert race.left == [*"ce"]


def test_each_family_keeps_its_share():
    scores = {"a1": 9, "a2": 8, "a3": 7, "b1": 1, "b2": 2, "c1": 0}
    rounds = [Round(0.5, 1), Round(1.0, 1)]
    race = halving([*scores], rounds, lambda who, _: scores[who], 0.5, lambda who: who[0])
    assert race.left == ["a1", "a2", "b2", "c1"]


def test_of_equal_ones_the_earlier_goes_on():
    race = halving("abc", [Round(0.5, 1), Round(1.0, 1)], lambda *_: 0.0, 0.4)
    assert race.left == [*"ab"]


@pytest.mark.parametrize(("share", "of", "left"), [(0.07, 100, 7), (0.55, 20, 11), (0.5, 5, 3)])
def test_a_share_that_is_a_whole_number_keeps_that_many(share, of, left):
    race = halving(range(of), [Round(0.5, 1), Round(1.0, 1)], lambda *_: 0.0, share)
    assert len(race.left) == left


def record(folder, label, values, **axes):
    folder = folder / label
    folder.mkdir(parents=True)
    values = np.asarray(values, dtype=float)
    write_scores(folder / "scores.npz", {"m": Scores(values, np.ones(len(values)))})
    return RunRecord(
        label,
        "train",
        label,
        axes=axes,
        folder=folder,
        metrics={"m": float(values.mean())},
        meaning={"m": Metric(of=("m",))},
    )


def test_a_difference_on_a_half_is_that_of_runs_with_these_examples_alone(tmp_path):
    generator, n = np.random.default_rng(0), 300
    half = Half(1, tuning=True)
    mask = half.mask(n)
    a, b = generator.standard_normal((2, n))
    whole = [record(tmp_path, name, one) for name, one in (("a", a), ("b", b))]
    alone = [record(tmp_path, f"{name}h", one[mask]) for name, one in (("a", a), ("b", b))]
    found = paired_difference({0: whole[0]}, {0: whole[1]}, "m", Bootstrap(half=half))
    assert found == paired_difference({0: alone[0]}, {0: alone[1]}, "m", Bootstrap())
    assert found.value == pytest.approx((a - b)[mask].mean())


def test_families_of_the_plane():
    assert group(ORIGIN) is None
    assert group(Cell(2.0, 2.0)) == RAY
    assert group(Cell(2.0, 0.0)) == SHARP
    assert group(Cell(0.0, 0.5)) == FILTER
    assert group(Cell(1.0, 0.5)) is None


GRID = [Cell(x, y) for x in (0.0, 1.0) for y in (0.0, 1.0)]
ROUNDS = [Round(0.5, 1), Round(1.0, 2)]


def trials_of(done, cells=GRID, metric="m"):
    return Trials(done, cell_of, cells, ROUNDS, 0.5, "here", metric)


def results(tmp_path, truths, report=None, n=400, noise=0.0, cells=GRID):
    """Records of a whole study: each example's score is the cell's truth, one on the tuning half
    and one on the other, plus luck that all cells share."""
    generator, mask = np.random.default_rng(5), Half(0, tuning=True).mask(n)
    common = generator.standard_normal(n)
    done = []
    stages = [("tuning", r.share, s) for r in ROUNDS for s in range(r.seeds)] + [
        ("report", 1.0, s) for s in (2, 3)
    ]
    for stage, share, seed in stages:
        for cell in cells:
            other = (report or truths)[cell]
            values = np.where(mask, truths[cell], other) + common
            values = values + noise * generator.standard_normal(n)
            label = f"{cell.name}-{stage}-{share}-{seed}"
            axes = {"x": cell.x, "y": cell.y, "stage": stage, "share": share, "seed": seed}
            done.append(record(tmp_path, label, values, **axes))
    return trials_of(done, cells)


def test_what_is_chosen_on_one_half_is_told_by_the_other(tmp_path):
    truths = dict(zip(GRID, [0.0, 0.3, 0.1, 0.2], strict=True))
    report = dict(zip(GRID, [0.0, -0.5, 0.1, 0.2], strict=True))
    found = results(tmp_path, truths, report)
    assert [[*one] for one in found.race.finished] == [GRID, [Cell(0.0, 1.0), Cell(1.0, 1.0)]]
    assert choices(found, 2.0) == {
        UNGUIDED: ORIGIN,
        PUBLISHED: Cell(2.0, 2.0),
        RAY: Cell(1.0, 1.0),
        SHARP: Cell(1.0, 0.0),
        FILTER: Cell(0.0, 1.0),
        BEST: Cell(0.0, 1.0),
    }
    assert PUBLISHED not in choices(found, None)
    assert found.gain(Cell(0.0, 1.0), ORIGIN).value == pytest.approx(0.3)
    behind = found.difference("report", Cell(0.0, 1.0), ORIGIN, 1.0)
    assert behind.value == pytest.approx(-0.5)  # and not the +0.3 that it was chosen for
    assert behind.over == "seeds and examples"
    assert found.region == [Cell(0.0, 1.0)]  # differences without noise are all certain


def test_the_region_holds_what_noise_does_not_tell_from_the_best(tmp_path):
    truths = dict(zip(GRID, [0.0, 1.0, 0.99, 0.0], strict=True))
    found = results(tmp_path, truths, noise=0.5)
    assert set(found.region) == {Cell(0.0, 1.0), Cell(1.0, 0.0)}
    assert found.race.best(GRID) in found.region


def test_what_diverged_is_not_among_the_best(tmp_path):
    truths = dict(zip(GRID, [0.0, 1.0, math.nan, 0.0], strict=True))
    found = results(tmp_path, truths, noise=0.5)
    assert found.region == [Cell(0.0, 1.0)]


def test_nothing_is_chosen_before_the_last_round(tmp_path):
    truths = dict.fromkeys(GRID, 0.0)
    found = results(tmp_path, truths)
    early = [one for one in found.done if one.axes["share"] == 0.5]
    assert choices(trials_of(early), 1.0) == {}
    assert trials_of([]).region == []


@pytest.mark.parametrize(
    ("metric", "n", "says"),
    [
        ("other", 10, "here.metric: no 'other'; the runs have m"),
        ("m", 1, "m is of 1 examples, too few for two halves"),
    ],
)
def test_a_metric_without_two_halves_is_refused(tmp_path, metric, n, says):
    one = record(tmp_path, "a", np.ones(n), stage="tuning", x=0.0, y=0.0, share=1.0, seed=0)
    with pytest.raises(SteeringError, match=says):
        trials_of([one], metric=metric)


def test_a_metric_that_is_no_mean_is_refused(tmp_path):
    one = record(tmp_path, "a", np.ones(10), stage="tuning", x=0.0, y=0.0, share=1.0, seed=0)
    worst = RunRecord(
        "b",
        "train",
        "b",
        axes=one.axes,
        folder=one.folder,
        metrics={"w": 1.0},
        meaning={"w": Metric()},
    )
    with pytest.raises(SteeringError, match="w is no mean over evaluated examples"):
        trials_of([worst], metric="w")
