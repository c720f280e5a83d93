"""The study of data recipes: what it makes of records whose truth is known, and a small run of it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from steering.analysis.ranks import spearman
from steering.analysis.recipes_axis import Axis
from steering.analysis.recipes_page import by_metric, recommended, tables, verdict_of, winner_config
from steering.cli import main
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.runs.ask import reference_training
from steering.runs.record import Cost, Metric, RunRecord
from steering.studies.recipes import Recipes, RecipesOptions

CONFIG = Path(__file__).parents[2] / "configs/language/recipes.yaml"
DIGITS = CONFIG.parents[1] / "classification/digits.yaml"
RECIPES = ["a", "b", "c", "d", "e", "f"]
TRUTH = np.array([1.0, 1.1, 1.2, 1.4, 1.6, 2.0])
SCRAMBLED = np.array([1.6, 1.4, 2.0, 1.0, 1.1, 1.2])


def records(tmp_path, at_small, at_usual, noise=0.001, fall=0.5):
    """Proxies at two rates whose order of the recipes is given, and a tuned target."""
    rng = np.random.default_rng(0)
    found = []

    def add(scale, recipe, rate, seed, loss):
        folder = tmp_path / f"{scale}-{recipe}-{rate}-{seed}"
        folder.mkdir()
        curve = [{"step": 1, "train/loss": 2.0}, {"step": 9, "train/loss": 2.0 * (1 - fall)}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
        (folder / "config.yaml").write_text(f"name: {recipe}\nstudies: {{recipes: {{}}}}\n")
        axes = {"scale": scale, "recipe": recipe, "rate": rate, "seed": seed}
        metric = Metric(percent=False, higher_is_better=False)
        found.append(
            RunRecord(
                key=folder.name,
                kind="train",
                label=folder.name,
                axes=axes,
                folder=folder,
                metrics={"loss": float(loss + noise * rng.normal())},
                meaning={"loss": metric},
                cost=Cost(flops=10),
            )
        )

    for number, recipe in enumerate(RECIPES):
        for seed in range(3):
            add("proxy", recipe, 0.001, seed, 5 + at_small[number])
            add("proxy", recipe, 0.1, seed, 1 + at_usual[number])
        for seed in range(2):
            add("target", recipe, 0.1, seed, TRUTH[number])
            add("target", recipe, 1.0, seed, TRUTH[number] + 0.5)
    return found


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"at_small": TRUTH, "at_usual": SCRAMBLED}, "Supported here"),
        (
            {"at_small": SCRAMBLED, "at_usual": TRUTH},
            "ranks no better, or its first choice is worse",
        ),
        ({"at_small": TRUTH, "at_usual": TRUTH**2}, "no difference beyond chance"),
        ({"at_small": TRUTH, "at_usual": SCRAMBLED, "fall": 0.001}, "hardly falls"),
        ({"at_small": TRUTH, "at_usual": SCRAMBLED, "noise": 2.0}, "less than the seeds do"),
    ],
)
def test_the_verdict(tmp_path, case, expected):
    axis = Axis(records(tmp_path, **case), "", 30.0)
    assert (axis.small, axis.usual, axis.metric) == (0.001, 0.1, "loss")
    assert expected in verdict_of(axis)


@pytest.mark.parametrize(
    ("case", "rate", "first"),
    [
        ({}, 0.001, "d"),
        ({"fall": 0.001}, 0.1, "a"),
        ({"noise": 2.0}, 0.1, None),
    ],
)
def test_where_the_small_rate_cannot_rank_the_usual_one_chooses(tmp_path, case, rate, first):
    """SCRAMBLED has d first, TRUTH a."""
    axis = Axis(records(tmp_path, SCRAMBLED, TRUTH, **case), "", 30.0)
    assert recommended(axis) == rate
    named = winner_config(axis).partition("'")[2].partition("'")[0]
    assert first is None or named == first
    assert ("The usual rate chooses" in verdict_of(axis)) == (rate == 0.1)


def test_single_seeds_are_judged_apart(tmp_path):
    axis = Axis(records(tmp_path, TRUTH, SCRAMBLED, noise=0.0), "", 30.0)
    expected = spearman(SCRAMBLED, TRUTH)
    np.testing.assert_allclose(axis.alone(0.001), 1.0)
    np.testing.assert_allclose(axis.alone(0.1), expected)
    small, usual, *_ = tables(axis)[1].lines
    assert (small[6], usual[6]) == ("1.00, 3 of 3", f"{expected:.2f}, 0 of 3")
    gap = 1 - expected
    assert f"of one seed alone {gap:+.2f} [{gap:+.2f}, {gap:+.2f}] over seeds" in verdict_of(axis)


def test_the_target_is_tuned_for_each_recipe(tmp_path):
    axis = Axis(records(tmp_path, TRUTH, TRUTH), "loss", 30.0)
    np.testing.assert_allclose(axis.truth, TRUTH, atol=0.01)
    assert axis.ceiling() > 0.9
    assert axis.agreement(0.001).clear == 1.0
    # The rates are 0.1 and 1.0: the best of two is always at an edge, and that is said.
    assert axis.at_the_edge() == RECIPES
    one = [r for r in axis.targets + axis.proxies if r.axes["rate"] != 1.0]
    assert Axis(one, "loss", 30.0).at_the_edge() == []  # a single one was not searched
    ranking, text = tables(axis)[:2]
    assert "at the edge of `target_rates` for a, b" in text.note
    first = ranking.lines
    assert [line[0] for line in first] == RECIPES
    assert text.lines[0][0] == "0.001 (small)"
    assert text.lines[1][0] == "0.1 (usual)"
    assert text.lines[0][4] == "0.0000"


def test_a_rate_at_which_a_run_diverged_is_no_best_one(tmp_path):
    found = [
        replace(one, metrics={"loss": np.nan})
        if one.axes["rate"] == {"proxy": 0.001, "target": 1.0}[one.axes["scale"]]
        and one.axes["seed"] == 0
        else one
        for one in records(tmp_path, TRUTH, SCRAMBLED)
    ]
    axis = Axis(found, "", 30.0)
    assert axis.usual == 0.1
    np.testing.assert_allclose(axis.truth, TRUTH, atol=0.01)
    assert tables(axis)[1].lines[0][1] == "–"  # no order without numbers
    assert "at the small rate a proxy is no number. The usual rate chooses" in verdict_of(axis)


def test_one_seed_cannot_tell_the_recipes_from_luck(tmp_path):
    found = records(tmp_path, TRUTH, SCRAMBLED)
    one = [r for r in found if r.axes["seed"] == 0]
    axis = Axis(one, "", 30.0)
    assert "one seed of the proxy does not tell how far seeds differ" in verdict_of(axis)
    lines, note = tables(axis)[1].lines, tables(axis)[1].note
    assert [line[-2] for line in lines] == ["–", "–"]
    assert "nan" not in note


def test_a_mean_over_seeds_can_be_foreseen_better_than_one_seed(tmp_path):
    """Truth and noise of equal variance: two seeds correlate by ½, and a proxy that knows the truth
    correlates by √⅔ with their mean; ranks by a little less."""
    generator = np.random.default_rng(0)
    truth = generator.normal(size=2000)
    axis = Axis(records(tmp_path, TRUTH, TRUTH), "", 30.0)
    axis.tuned = truth[:, None] + generator.normal(size=(2000, 2))
    assert axis.ceiling() < 0.55
    assert axis.attainable() == pytest.approx(spearman(truth, axis.truth), abs=0.02)


def test_order_0_is_a_loss_also_beside_a_metric_of_which_more_is_better(tmp_path):
    found = [
        replace(one, metrics={"accuracy": -one.metrics["loss"]}, meaning={"accuracy": Metric()})
        for one in records(tmp_path, TRUTH, TRUTH)
    ]
    for number, recipe in enumerate(RECIPES):
        axes = {"scale": "order 0", "recipe": recipe, "rate": 0.0, "seed": 0}
        metrics = {"loss": 2.0 + TRUTH[number]}
        found.append(replace(found[0], kind="call", axes=axes, metrics=metrics, meaning={}))
    axis = Axis(found, "accuracy", 30.0)
    shown = tables(axis)
    assert [line[-1] for line in shown[0].lines] == [f"{2 + loss:.4f}" for loss in TRUTH]
    assert float(shown[0].lines[0][-2]) == pytest.approx(-1.0, abs=0.01)  # the target's accuracy
    assert shown[1].lines[-1][1].startswith("1.00")  # and it ranks as the target does


def test_a_rate_far_below_must_be_among_those_tried(tmp_path):
    every = records(tmp_path, TRUTH, TRUTH)
    assert Axis(every, "loss", 1e6).small == 0.001  # the smallest there is
    only = [record for record in every if record.axes["rate"] != 0.001]
    assert "no rate among `rates`" in verdict_of(Axis(only, "loss", 30.0))


@pytest.mark.parametrize(
    ("recipes", "proxy", "says"),
    [
        (
            {"as_is": {}, "same": {"train.log_every": 7}},
            {"train.batch_size": 8},
            "proxy-as_is-.*proxy-same-",
        ),
        ({"as_is": {}, "half": {"task.data.part": [0.0, 0.5]}}, {}, "proxy-as_is-.*target-as_is-"),
        (
            {"as_is": {}, "long": {"train.samples": 64}},
            {"train.batch_size": 8},
            "order0: order0-as_is and order0-long are the same run",
        ),
    ],
)
def test_two_names_of_one_run_are_refused(recipes, proxy, says):
    given = RecipesOptions(recipes, proxy, rates=[0.01], target_rates=[0.01], seeds=1)
    with pytest.raises(ConfigError, match=says):
        Recipes(given).wanted(load_config(DIGITS), [])


LESS, MORE = Metric(higher_is_better=False), Metric()
MEAN = Metric(of=("test/accuracy",))


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        ({"test/ECE": LESS, "test/accuracy": MEAN}, "test/accuracy"),
        ({"test/accuracy": MEAN, "test/ECE": LESS, "test/loss": LESS}, "test/loss"),
        ({"seconds": LESS, "perplexity/average": LESS}, "perplexity/average"),
        ({"seconds": LESS, "bits": Metric(higher_is_better=False, exp=True)}, "bits"),
        ({"worst_group_accuracy": MORE, "test/ECE": LESS}, "test/ECE"),
        ({"quality": MORE}, "quality"),
    ],
)
def test_recipes_are_compared_by_a_loss_or_an_accuracy_before_anything_else(meaning, expected):
    one = RunRecord(
        key="",
        kind="train",
        label="",
        axes={"scale": "proxy", "recipe": "a", "rate": 0.1, "seed": 0},
        metrics=dict.fromkeys(meaning, 0.25),
        meaning=meaning,
    )
    axis = Axis([one], "", 30.0)
    assert axis.metric == expected
    assert axis.sign == (-1 if meaning[expected].higher_is_better else 1)
    assert Axis([one], [*meaning][0], 30.0).metric == [*meaning][0]  # noqa: RUF015


def test_classifiers_that_are_trained_are_compared_by_their_accuracy(tmp_path):
    """More is better: the first is the one of the highest accuracy."""
    found = [
        replace(
            record,
            metrics={"test/ECE": 0.1, "test/accuracy": 1 - record.metrics["loss"] / 10},
            meaning={"test/ECE": LESS, "test/accuracy": MEAN},
        )
        for record in records(tmp_path, TRUTH, SCRAMBLED)
    ]
    axis = Axis(found, "", 30.0)
    assert axis.metric == "test/accuracy"
    frequencies = [
        replace(record, axes=record.axes | {"scale": "order 0"}, metrics={"loss": 2.3})
        for record in axis.proxies
    ]
    (ranking,) = tables(Axis([*axis.proxies, *frequencies], "", 30.0))
    assert [line[0] for line in ranking.lines] == RECIPES
    assert {line[-1] for line in ranking.lines} == {"2.3000"}  # a loss beside accuracies
    assert ranking.lines[0][1].startswith("0.")
    (others,) = by_metric(axis)
    assert [line[0] for line in others.lines] == ["test/accuracy", "test/ECE"]
    named = winner_config(axis).partition("'")[2].partition("'")[0]
    assert named == "a"


def test_the_validation_loss_of_the_log(tmp_path):
    """A classifier has it in its log alone; the last one counts."""
    found = [
        replace(record, metrics={"test/accuracy": 0.5}, meaning={"test/accuracy": MEAN})
        for record in records(tmp_path, TRUTH, SCRAMBLED)
    ]
    with pytest.raises(SteeringError, match=r"the log of proxy-a-0\.001-0 has no loss/validation"):
        Axis(found, "loss/validation", 30.0)
    expected = {}
    for number, record in enumerate(found):
        expected[record.label] = 1.0 + number / 100
        rows = [{"step": 1, "loss/validation": 9.0}]
        rows += [{"step": 2, "loss/validation": expected[record.label]}, {"step": 2, "x": 1.0}]
        with (record.folder / "metrics.jsonl").open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    axis = Axis(found, "loss/validation", 30.0)
    assert (axis.metric, axis.sign, axis.log) == ("loss/validation", 1.0, False)
    for record in axis.proxies + axis.targets:
        assert axis.loss(record) == expected[record.label]
    (others,) = by_metric(axis)
    assert [line[0] for line in others.lines] == ["loss/validation", "test/accuracy"]


def test_a_recipe_has_one_reference_whatever_the_size_and_the_rate():
    words = ["method=drrho", "reference.train={task.data.part: [0.0, 0.33]}"]
    config = load_config(DIGITS, words)
    recipes = {"as_is": {}, "blur": {"task.data.blur": 1.0}}
    proxy = {"target.options.width": 8, "train.samples": 640}
    given = RecipesOptions(recipes, proxy, rates=[0.01, 0.1], target_rates=[0.01, 0.1], seeds=2)
    asks = [ask for ask in Recipes(given).wanted(config, []) if ask.axes["scale"] != "order 0"]
    assert len(asks) == 2 * 2 * (2 + 2)
    used = {recipe: set() for recipe in recipes}
    for ask in asks:
        used[ask.axes["recipe"]].add(ask.parents["reference"].key)
    assert used["as_is"] == {reference_training(config).key}  # as the run itself would train it
    assert len(used["blur"]) == 1
    assert used["blur"] != used["as_is"]


def test_the_study_from_the_command_line(tmp_path):
    words = [
        "smoke=true",
        f"output={tmp_path}",
        "studies.recipes.seeds=1",
        "studies.recipes.target_seeds=1",
    ]
    assert main(["study", "recipes", str(CONFIG), *words]) == 0
    folder = tmp_path / "recipes-smoke"
    rows = json.loads((folder / "recipes.json").read_text())
    assert {row["scale"] for row in rows} == {"order 0", "proxy", "target"}
    winner = yaml.safe_load((folder / "recipes-winner.yaml").read_text())
    assert winner["task"]["name"] == "language"
    assert "studies" not in winner
    assert (
        main(
            [
                "train",
                str(folder / "recipes-winner.yaml"),
                "smoke=false",
                f"output={tmp_path}/again",
            ]
        )
        == 0
    )
    assert main(["study", "recipes", str(CONFIG), *words, "studies.recipes.recipes={}"]) == 2
