"""A try that diverges has lost; the study that tried it goes on and says so."""

import json
import math
from dataclasses import replace

import pytest
import torch
import toys

from steering.analysis.halves import Half
from steering.cli import main
from steering.commands.single import evaluate, train
from steering.commands.studies import study
from steering.config import config_of, load_config
from steering.errors import DivergedError, NotFiniteError, SteeringError
from steering.items import Units
from steering.methods.doremi import Doremi, DoremiOptions
from steering.methods.group_dro import GroupDro, GroupDroOptions
from steering.runs.ask import training
from steering.runs.store import Store
from steering.runs.transport import read_ask, write_ask
from steering.task import find_task

RATE = 1e30
WORDS = ["task.kind=units", "train.threads=1", "train.samples=64"]
TUNED = [
    "studies.tuned.methods={plain: {name: erm}, steered: {name: drrho}}",
    f"studies.tuned.ranges={{plain: {{optimizer.lr: [0.01]}}, steered: {{optimizer.lr: [{RATE}]}}}}",
    "studies.tuned.tries=2",
    "studies.tuned.seeds=1",
    "studies.tuned.report_seeds=2",
    "studies.tuned.metric=seen/likelihood",
]


def records(tmp_path):
    return {one.label: one for one in Store(tmp_path / "runs/study").all()}


def read(path):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_try_that_diverges_has_lost(tmp_path):
    config = load_config(toys.write_config(tmp_path), [*WORDS, *TUNED])
    study("tuned", config)
    found = records(tmp_path)
    lost = found["steered-try1-seed0"]
    assert "not finite by step" in lost.diverged
    assert not lost.metrics
    assert not lost.weights
    assert 0 < lost.cost.steps <= 4
    assert lost.cost.trained == 16 * lost.cost.steps
    assert [one for one in found.values() if one.diverged] == [lost]
    folder = tmp_path / "runs/study"
    rows = read(folder / "tuned.json")
    assert {
        (row["method"], row["try"]): row["tuning"] is None for row in rows if row["kind"] == "try"
    } == {("plain", 0): False, ("plain", 1): False, ("steered", 0): False, ("steered", 1): True}
    steered = next(row for row in rows if row["kind"] == "method" and row["method"] == "steered")
    assert steered["try"] == 0
    text = (folder / "tuned.md").read_text()
    assert "Diverged, and so lost: steered-try1-seed0." in text
    # Done, and not done again.
    before = (lost.folder / "record.json").read_bytes()
    study("tuned", config)
    assert (lost.folder / "record.json").read_bytes() == before
    assert (folder / "tuned.md").read_text() == text


def test_a_method_that_diverges_with_one_seed_has_no_mean_over_the_others(tmp_path):
    """Else it would be judged by the seeds that went well."""
    config = load_config(toys.write_config(tmp_path), [*WORDS, *TUNED, "studies.tuned.tries=1"])
    study("tuned", config)
    one = records(tmp_path)["steered-try0-seed2"]
    path = one.folder / "record.json"
    values = json.loads(path.read_text())
    values |= {"metrics": {}, "meaning": {}, "summary": {"diverged": "by step 3"}}
    path.write_text(json.dumps(values))
    (one.folder / "scores.npz").unlink()
    folder = tmp_path / "runs/study"
    assert main(["report", str(folder)]) == 0
    rows = {row["method"]: row for row in read(folder / "tuned.json") if row["kind"] == "method"}
    assert rows["steered"]["value"] is None
    assert rows["steered"]["gain"] == [None, None, None]
    scores = [
        records(tmp_path)[f"plain-try0-seed{seed}"].scores()["seen/likelihood"].values
        for seed in (1, 2)
    ]
    half = Half(0, tuning=False).mask(len(scores[0]))
    mean = sum(one[half].mean() for one in scores) / 2
    assert rows["plain"]["value"] == pytest.approx(mean)


def test_who_asks_for_that_run_alone_is_told(tmp_path):
    """A finished record is not a finished training: nothing can be built on it."""
    study("tuned", load_config(toys.write_config(tmp_path), [*WORDS, *TUNED]))
    lost = records(tmp_path)["steered-try1-seed0"]
    alone = config_of(lost.config(), "the config of the try")
    assert training(alone).key == lost.key
    both = replace(alone.compare, methods={"steered": {"name": "drrho"}}, seeds=[0])
    for ask in (lambda: train(alone), lambda: study("compare", replace(alone, compare=both))):
        with pytest.raises(SteeringError, match=r": training: .*not finite by step"):
            ask()
    with pytest.raises(SteeringError, match="no finished run of this config"):
        evaluate(alone)


def test_a_process_that_does_the_run_knows_that_it_may_diverge(tmp_path):
    """With `jobs` an ask goes through a file."""
    ask = training(load_config(toys.write_config(tmp_path), WORDS))
    for one in (ask, replace(ask, may_diverge=True)):
        write_ask(tmp_path / "ask.json", one)
        assert read_ask(tmp_path / "ask.json").may_diverge == one.may_diverge
        assert read_ask(tmp_path / "ask.json").key == one.key


def test_the_plane_and_the_recipes_go_on_too(tmp_path):
    plane = [
        "studies.plane={sharpness: [0, 1], trust: [0], shares: [0.5, 1.0], seeds: [1, 1], report_seeds: 1, "
        "metric: seen/likelihood, method: {}, unguided: {name: erm}}",
        f"optimizer.lr={RATE}",
        "reference={name: linear, train: {optimizer.lr: 0.02}}",
    ]
    study("plane", load_config(toys.write_config(tmp_path), [*WORDS, *plane, "name=plane"]))
    text = (tmp_path / "runs/plane/plane.md").read_text()
    assert "Diverged, and so lost" in text
    assert "nan" not in text.replace("nan_at", "")
    recipes = [
        "studies.recipes={recipes: {a: {}, b: {task.n: 32}}, proxy: {train.samples: 32}, "
        f"rates: [0.01, {RATE}], target_rates: [0.02, {RATE}], seeds: 2, target_seeds: 1, "
        "order0: false}",
    ]
    study("recipes", load_config(toys.write_config(tmp_path), [*WORDS, *recipes, "name=recipes"]))
    rows = read(tmp_path / "runs/recipes/recipes.json")
    # The target diverges; the proxy has two steps, and ends before it shows.
    assert {(row["scale"], row["rate"]) for row in rows if not row["metrics"]} == {("target", RATE)}
    assert {(row["scale"], row["rate"]) for row in rows if None in row["metrics"].values()} == {
        ("proxy", RATE)
    }


@pytest.mark.parametrize(
    "method", [GroupDro(GroupDroOptions(), "ab"), Doremi(DoremiOptions(), "ab")]
)
def test_weights_of_groups_leave_it_to_the_loop(method):
    """They refuse losses that are not finite; the loop must come to see them, and end the run."""
    losses, reference = torch.ones(4, requires_grad=True), torch.zeros(4)
    row, groups = torch.tensor(0), torch.tensor([0, 1, 0, 1])
    items = Units(losses, reference, row, groups=groups)
    method.train()
    assert method(items).loss.isfinite()
    broken = torch.tensor([1.0, math.nan, 1.0, 1.0], requires_grad=True)
    items = Units(broken, reference, row, groups=groups)
    assert method(items).loss.isnan()
    assert method.weights.log_q.isfinite().all()
    masked = Units(broken, reference, row, torch.tensor([True, False, True, True]), groups=groups)
    assert method(masked).loss.isfinite()
    # A reference that is not finite is a fault of its own, and is told as before.
    guide = reference.clone()
    guide[1] = -math.inf
    items = Units(losses, guide, row, groups=groups)
    if isinstance(method, Doremi):  # the other one has no use for it by default
        with pytest.raises(ValueError, match="losses of groups"):
            method(items)


def test_an_evaluation_that_is_not_finite_is_a_divergence(tmp_path, monkeypatch):
    def broken(*_):
        raise NotFiniteError("evaluation: the model's features are not finite")

    config = load_config(toys.write_config(tmp_path), WORDS)
    monkeypatch.setattr(type(find_task(config.task.name)(config.task)), "evaluate", broken)
    with pytest.raises(DivergedError, match="features are not finite after step 4 of 4"):
        train(config)


def test_where_all_have_lost_there_is_a_page_that_says_so(tmp_path):
    words = [
        *WORDS,
        *TUNED,
        f"optimizer.lr={RATE}",
        "studies.tuned.tries=1",
        "studies.tuned.shares={'0.5': {task.n: 32}}",
        "reference={name: linear, train: {optimizer.lr: 0.02}}",
    ]
    study("tuned", load_config(toys.write_config(tmp_path), words))
    folder = tmp_path / "runs/study"
    text = (folder / "tuned.md").read_text()
    assert "Diverged, and so lost: plain-try0-seed0, steered-try0-seed0." in text
    assert "by share" not in text
    assert [row["tuning"] for row in read(folder / "tuned.json")] == [None, None]
    assert not (folder / "tuned.png").exists()
    # Nobody trains with other seeds what has lost.
    assert {one.axes.get("stage", "") for one in Store(folder).all()} == {"tuning", ""}


def test_what_a_study_of_recipes_says_of_recipes_that_diverge(tmp_path):
    words = [
        "studies.recipes={recipes: {a: {}, b: {task.n: 32}, c: {task.n: 48, optimizer.lr: 1}}, "
        "proxy: {train.samples: 64}, rates: [0.01, 0.001], target_rates: [0.02], seeds: 2, "
        "target_seeds: 1, order0: false}",
    ]
    study("recipes", load_config(toys.write_config(tmp_path), [*WORDS, *words]))
    folder = tmp_path / "runs/study"
    for record in Store(folder).all():
        if record.axes.get("recipe") == "a":
            path = record.folder / "record.json"
            values = json.loads(path.read_text())
            values |= {"metrics": {}, "meaning": {}, "summary": {"diverged": "by step 3"}}
            path.write_text(json.dumps(values))
    assert main(["report", str(folder)]) == 0
    text = (folder / "recipes.md").read_text()
    assert "Inconclusive here: the target of a diverged at every rate." in text
    assert "Diverged, and so lost: proxy-a-lr0.01-seed0" in text
    assert "nan" not in text
    assert "recipe 'a', first" not in (folder / "recipes-winner.yaml").read_text()
