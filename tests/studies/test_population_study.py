"""The study of populations at the size of a test, and a change of cycles by itself."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file

from steering.analysis.population import Arm, Arms, drawn_means
from steering.analysis.population_crossing import crossing, data_worth
from steering.cli import main
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.population.noise import noise_scale, perturb
from steering.runs.ask import REFERENCE, START, training, with_parents_first
from steering.runs.execute import execute
from steering.runs.prepare import prepare
from steering.runs.record import Scores
from steering.runs.store import Store
from steering.runs.transport import read_ask, write_ask
from steering.runs.workshop import Workshop
from steering.schema import RestartConfig
from steering.studies.population import Population, PopulationOptions
from steering.studies.population_arms import ArmAsks
from steering.studies.population_asks import (
    PRESETS,
    Allocation,
    allocation_of,
    cells_of,
    cycling,
    more_of,
    seed_of,
    trajectory,
)
from steering.task import find_task
from steering.training import loop
from steering.training import plan as order
from steering.training.recipes import AdamW, Muon, carry_over, set_rates
from steering_tasks.classification import ClassificationOptions
from steering_tasks.classification.options import ClassificationData
from steering_tasks.language import LanguageOptions
from steering_tasks.language.data import NEUTRAL
from steering_tasks.language.task import LanguageData

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs/classification/population.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study of the classification config, as a user tries it."""
    folder = tmp_path_factory.mktemp("population")
    words = ["smoke=true", f"output={folder}", "target.options={width: 8}"]
    assert main(["study", "population", str(DIGITS), *words]) == 0
    return folder / "population-digits-smoke"


def test_every_arm_is_in_the_table(study):
    page = (study / "population.md").read_text()
    for name in (
        "best single, stopped early",
        "one long single",
        "independent models, learned weights",
        "snapshots + learned prior",
        "snapshots + chain: top 2, learned",
        "weights averaged, one trajectory",
        "one model distilled from the mixture",
        "| 2x2, learned |",
    ):
        assert name in page
    rows = json.loads((study / "population.json").read_text())
    assert {row["arm"] for row in rows} == {
        "single",
        "independent",
        "snapshots",
        "chain",
        "average",
        "average-one",
        "distilled",
    }


def test_a_mixture_is_no_worse_than_its_members_are_on_average(study):
    for record in Store(study).all():
        if "arm" not in record.axes:
            continue
        losses = np.array([one["test"] for one in record.summary["members"]])
        for plan, weights in record.summary["weights"].items():
            assert sum(weights) == pytest.approx(1)
            assert record.metrics[f"{plan}/nll"] <= np.dot(weights, losses) + 1e-6
            assert record.scores()[f"{plan}/nll"].mean() == pytest.approx(
                record.metrics[f"{plan}/nll"]
            )
        fit = np.array([one["fit"] for one in record.summary["members"]])
        assert record.summary["weights"]["best"] == np.eye(len(fit))[fit.argmin()].tolist()
        assert record.metrics["last/nll"] == pytest.approx(losses[-1])
        assert record.metrics["learned/fit_gap"] < 1e-3


def test_one_trajectory_is_a_chain_of_runs_whose_noise_is_not_in_their_files(study):
    runs = {
        record.label.partition("-seed")[2]: record
        for record in Store(study).all()
        if record.axes.get("role") == "chain"
    }
    assert len(runs) == 2
    for record in runs.values():
        parent = record.parents[START]
        assert record.parents[REFERENCE] == parent
        assert record.config()["restart"]["optimizer"] is True
        teacher = next(one for one in Store(study).all() if one.key == parent)
        # What was met are the weights of the file, before the noise, by both.
        assert record.found["start: weights"] == record.found["reference: weights"]
        assert teacher.parents == {}


def test_the_report_needs_no_runs_again(study, capsys):
    before = (study / "population.md").read_text()
    (study / "population.md").unlink()
    assert main(["report", str(study)]) == 0
    assert (study / "population.md").read_text() == before
    assert "best single" in capsys.readouterr().out


def test_flops_are_of_all_training_behind_an_arm(study):
    arms = Arms(Store(study).all())  # axes as they were first asked
    done = {record.key: record for record in arms.all.values()}
    chain = arms.arm("2x2", "chain", "uniform")
    member_flops = {
        key: done[key].cost.flops for role, key in chain.runs[0].parents.items() if "member" in role
    }
    assert arms.flops(chain) == sum(member_flops.values())
    # The teacher's forward passes are in it.
    plain = arms.arm("2x2", "snapshots", "uniform")
    assert arms.flops(chain) > arms.flops(plain) > 0
    assert chain.forwards() == 4
    assert arms.arm("2x2", "single", "last").forwards() == 1


# A change of cycles.


def asked(tmp_path, *words):
    path = toys.write_config(tmp_path)
    base = ["method=erm", "reference=null", "task.kind=units", "target.name=linear"]
    return load_config(path, [*base, *words])


@pytest.fixture
def workshop(tmp_path):
    return Workshop(Store(tmp_path / "runs/study"), torch.device("cpu"))


def test_a_cycle_goes_on_with_the_moments_and_none_of_the_noise_is_saved(tmp_path, workshop):
    """Two cycles at constant rates without noise are one run of both, but for the order."""
    config = asked(tmp_path, "optimizer.schedule=constant", "optimizer.warmup=0")
    first = training(config, "first")
    execute(first, workshop)
    folder = workshop.finished(first).folder
    weights = load_file(folder / "model.safetensors")
    restart = {"optimizer": True, "noise": 0.5}
    second = training(
        replace(config, seed=5, restart=type(config.restart)(**restart)), "second", start=first
    )
    prepared = prepare(second, workshop)
    noisy = prepared.opened.task.build(config.target).module
    noisy.load_state_dict(weights)
    perturb(noisy, 0.5, seed=5)
    for name, value in prepared.target.module.state_dict().items():
        assert torch.equal(value, noisy.state_dict()[name])
    assert not torch.equal(noisy.weight, weights["weight"])
    execute(second, workshop)
    after = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    state = torch.load(sorted((folder / "checkpoints").glob("step-*.pt"))[-1], weights_only=True)
    torch.testing.assert_close(prepared.optimizer, state["optimizer"])


def test_without_noise_two_cycles_are_two_halves_of_one_optimisation(tmp_path, workshop):
    """Full batches and constant rates: the steps do not depend on the order, so the two runs must
    end where one of both lengths does, and do not where the moments are forgotten."""
    words = ["optimizer.schedule=constant", "optimizer.warmup=0", "train.batch_size=64"]
    half = asked(tmp_path, *words, "train.samples=640")
    whole = training(asked(tmp_path, *words, "train.samples=1280"), "whole")
    first = training(half, "first")
    kept, lost = (
        training(
            replace(half, restart=type(half.restart)(optimizer=keep)), f"next-{keep}", start=first
        )
        for keep in (True, False)
    )
    for ask in (whole, kept, lost):
        execute(ask, workshop)
    one, same, other = (
        load_file(workshop.finished(ask).folder / "model.safetensors")["weight"]
        for ask in (whole, kept, lost)
    )
    torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-5)
    assert (other - one).abs().max() > 1e-3


@pytest.mark.parametrize(
    "words",
    [
        ["units", "method={name: drrho, tau: 0.5, estimator: {name: moving_average, gamma: 0.3}}"],
        ["pairs", "method={name: drrho, tau: 0.5, estimator: mirror_descent}"],
        ["pairs", "method={name: drrho, tau: 0.5, radius: 0.3, estimator: moving_average}"],
    ],
    ids=["moving average", "mirror descent", "learned temperature"],
)
def test_two_cycles_with_the_methods_memory_are_one_run_cut_in_two(
    tmp_path,
    workshop,
    monkeypatch,
    words,  # the kind of the toy task, and the method
):
    """Bit for bit, where rates are constant and every epoch has the same order."""
    monkeypatch.setattr(order, "shuffled", lambda position, n, *_: position % n)
    kind, method = words
    path = toys.write_config(tmp_path)

    def wanted(samples, **restart):
        rates = ["optimizer.schedule=constant", "optimizer.warmup=0", f"train.samples={samples}"]
        config = load_config(path, [*rates, f"task.kind={kind}", method])
        return replace(config, restart=RestartConfig(**restart))

    first = training(wanted(128), "first")
    asks = {
        "whole": training(wanted(256), "whole"),
        "kept": training(wanted(128, optimizer=True, method=True), "kept", start=first),
        "lost": training(wanted(128, optimizer=True), "lost", start=first),
    }
    ends = {}
    for name, ask in asks.items():
        execute(ask, workshop)
        folder = workshop.finished(ask).folder
        path = sorted((folder / "checkpoints").glob("step-*.pt"))[-1]
        weights = load_file(folder / "model.safetensors")
        ends[name] = weights | torch.load(path, weights_only=True)["method"]
    assert ends["kept"].keys() == ends["whole"].keys()
    assert all(torch.equal(ends["kept"][name], value) for name, value in ends["whole"].items())
    assert any(not torch.equal(ends["lost"][name], ends["whole"][name]) for name in ends["whole"])


def test_a_memory_of_another_method_or_of_other_examples_is_refused(tmp_path, workshop):
    plain = training(asked(tmp_path, "train.samples=64"), "plain")
    execute(plain, workshop)
    for word, message in {
        "method={name: dro, estimator: mirror_descent}": "is of another method",
        "task.n=32": "was trained on other examples",
    }.items():
        ask = training(asked(tmp_path, word, "restart.method=true"), "next", start=plain)
        with pytest.raises(SteeringError, match=rf"restart\.method: .*{message}"):
            execute(ask, workshop)


def test_a_cycle_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """With the moments of the cycle before, noise, and rates that move within the cycle."""

    class StoppedError(Exception):
        pass

    def cycles(folder):
        config = cycling(asked(tmp_path, "train.save_every=2"), 0.08, 0.3, 0.7)
        given = Allocation(1, 2, 1.0, {"name": "drrho", "tau": 1.0})
        workshop = Workshop(Store(folder), torch.device("cpu"))
        return [*trajectory(config, given, 0, 0, [0.25, 0.05], chained=True)][-1], workshop

    def weights(ask, workshop):
        return load_file(workshop.finished(ask).folder / "model.safetensors")["weight"]

    ask, workshop = cycles(tmp_path / "whole")
    execute(ask, workshop)
    whole = weights(ask, workshop)
    assert workshop.finished(ask).cost.steps >= 6

    ask, workshop = cycles(tmp_path / "stopped")
    execute(ask.parents[START], workshop)
    steps, real = itertools.count(1), loop._descend

    def stopping(state, result):
        if next(steps) == 5:
            raise StoppedError
        real(state, result)

    monkeypatch.setattr(loop, "_descend", stopping)
    with pytest.raises(StoppedError):
        execute(ask, workshop)
    monkeypatch.setattr(loop, "_descend", real)
    ask, workshop = cycles(tmp_path / "stopped")
    execute(ask, workshop)
    assert torch.equal(weights(ask, workshop), whole)


@pytest.mark.parametrize("recipe", [AdamW(lr=0.1), Muon(lr=0.1)])
def test_moments_are_carried_and_rates_are_not(recipe):
    def made(lr):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, type(recipe)(lr=lr).build(model, torch.nn.Module())

    model, first = made(0.1)
    for step in range(3):
        set_rates(first, recipe, step, 10)
        model(torch.ones(2, 3)).sum().backward()
        first.step()
    _, second = made(0.7)
    carry_over(second, first.state_dict())
    assert {group["peak_lr"] for group in second.param_groups} == {0.7}
    mine, theirs = (
        [s for part in getattr(one, "parts", [one]) for s in part.state.values()]
        for one in (second, first)
    )
    assert len(mine) == len(theirs) == 4
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(SteeringError, match=r"restart\.optimizer: the state is of another"):
        carry_over(AdamW().build(torch.nn.Linear(2, 2), torch.nn.Module()), {"state": {}})


def test_a_restart_from_nothing_is_refused(tmp_path, workshop):
    config = asked(tmp_path, "restart.noise=0.1")
    with pytest.raises(SteeringError, match="restart: there is nothing to go on from; set start"):
        execute(training(config), workshop)
    with pytest.raises(ConfigError, match=r"restart\.noise: expected at least 0"):
        asked(tmp_path, "restart.noise=-1")
    plain = asked(tmp_path)
    first = training(plain, "first")
    execute(first, workshop)
    for path in (workshop.finished(first).folder / "checkpoints").iterdir():
        path.unlink()
    going_on = training(asked(tmp_path, "restart.optimizer=true", "seed=3"), "next", start=first)
    with pytest.raises(SteeringError, match=r"restart\.optimizer: no intact checkpoint beside"):
        execute(going_on, workshop)


def test_a_restart_is_part_of_the_key_and_its_default_is_not(tmp_path):
    first = training(asked(tmp_path), "first")
    keys = {
        training(asked(tmp_path, *words), "next", start=first).key
        for words in ([], ["restart.noise=0.0"], ["restart.noise=0.1"], ["restart.optimizer=true"])
    }
    assert len(keys) == 3


# What the study asks for.


def base(*words):
    return load_config(DIGITS, words)


def test_rate_and_decay_are_anticorrelated_within_a_cycle():
    config = cycling(base(), floor=0.08, decay=1.3, decay_share=0.7)
    model = torch.nn.Linear(3, 2)
    optimizer = config.optimizer.build(model, torch.nn.Module())
    rates = []
    for step in range(50):
        set_rates(optimizer, config.optimizer, step, 50)
        rates.append([optimizer.param_groups[0][key] for key in ("lr", "weight_decay")])
    lr, wd = np.array(rates).T
    peak = config.optimizer.lr
    assert lr[0] == pytest.approx(peak)
    assert lr[-1] == pytest.approx(peak * (0.08 + 0.92 / 50))
    assert wd[0] == pytest.approx(0.7 * 1.3)
    assert np.corrcoef(lr, wd)[0, 1] == pytest.approx(-1)
    x = lr / peak
    np.testing.assert_allclose(wd, 1.3 * (0.7 + 0.3 * (1 - x) / (1 - 0.08)))
    flat = cycling(base(), 0.08, 1.3, 1.0).optimizer.weight_decay
    assert {flat(x) for x in (0.0, 0.3, 1.0)} == {1.3}


def test_a_trajectory_has_noise_between_cycles_and_the_chain_where_it_is_told():
    given = Allocation(2, 5, 0.5, chain_from=3)
    asks = [*trajectory(base(), given, 1, 4, [0.25, 0.05], chained=True)]
    assert [ask.config.seed for ask in asks] == [seed_of(4, 1, cycle) for cycle in range(5)]
    assert [ask.config.train.samples for ask in asks] == [96] * 5
    noise = [ask.config.restart.noise for ask in asks]
    assert noise == [0.0, *(noise_scale(k, 5, 0.25, 0.05) for k in range(1, 5))]
    assert [REFERENCE in ask.parents for ask in asks] == [False, False, True, True, True]
    # The chain's first link cannot go on with what plain training remembers.
    assert [ask.config.restart.method for ask in asks] == [False, True, False, True, True]
    assert [ask.config.method.name for ask in asks] == ["erm", "erm", *["distillation"] * 3]
    for before, ask in itertools.pairwise(asks):
        assert ask.parents[START] is before
    plain = [*trajectory(base(), given, 1, 4, [0.25, 0.05], chained=False)]
    assert [ask.key for ask in plain[:2]] == [ask.key for ask in asks[:2]]
    fresh = [*trajectory(base(), replace(given, fresh=True), 1, 4, [0.25, 0.05], chained=True)]
    assert all(START not in ask.parents and not ask.config.restart.noise for ask in fresh)
    assert fresh[3].parents[REFERENCE] is fresh[2]


def test_a_long_chain_is_asked_for_and_sent_in_no_time(tmp_path):
    """Each run has the one before as start and as reference: 2^30 ways lead to the first."""
    given = Allocation(1, 30, 1.0)
    last = [*trajectory(base(), given, 0, 0, [0.25, 0.05], chained=True)][-1]
    assert len(with_parents_first([last])) == 30
    write_ask(tmp_path / "ask.json", last)
    assert read_ask(tmp_path / "ask.json").key == last.key


def test_no_two_runs_have_one_seed():
    seeds = {seed_of(s, p, c) for s in range(3) for p in range(20) for c in range(100)}
    assert len(seeds) == 3 * 20 * 100


def test_budgets_are_equal():
    options = PopulationOptions(independents=4, singles=[1.0, 500.0])
    asks = ArmAsks(base(), options, Allocation(3, 4, 2.0), "a", 0)
    assert sum(ask.axes["epochs"] for ask in asks._independents()) == 24
    assert [ask.axes["epochs"] for ask in asks._singles()] == [1.0, 24.0]
    assert len(asks._snapshots(True)) == 12
    assert asks._by_cycles() == {
        "6": [0, 4, 8],
        "12": [0, 1, 4, 5, 8, 9],
        "18": [0, 1, 2, 4, 5, 6, 8, 9, 10],
    }
    assert asks._by_models() == {"6": [0], "12": [0, 1], "18": [0, 1, 2]}


def test_allocations_are_checked_and_presets_can_be_changed():
    record = allocation_of("r", {"preset": "slowrun-90", "cycles": 12})
    assert (record.trajectories, record.cycles, record.epochs, record.chain_from) == (5, 12, 2, 9)
    assert PRESETS["slowrun-90"].budget == 960
    for section, message in {
        "preset: no preset 'x'": {"preset": "x"},
        "unknown key 'cycle'; known: preset, trajectories": {"cycle": 2},
        "cycles: expected a whole number of at least 1, got 0": {"cycles": 0},
        "epochs: expected a number above 0": {"epochs": 0},
        "chain_from: expected at least 2": {"chain_from": 1},
    }.items():
        with pytest.raises(ConfigError, match=section):
            allocation_of("r", message)
    with pytest.raises(ConfigError, match="noise: expected two numbers"):
        Population(PopulationOptions(noise=[0.1]))
    with pytest.raises(ConfigError, match="independents: expected at least 1, got 0"):
        Population(PopulationOptions(independents=0))


def test_a_task_without_the_part_says_what_to_set(tmp_path, capsys):
    words = [
        "smoke=true",
        f"output={tmp_path}",
        "task.data.reserved=0",
        "target.options={width: 8}",
    ]
    assert main(["study", "population", str(DIGITS), *words]) != 0
    assert "no part 'reserved', only test; set task.data.reserved=0.1" in capsys.readouterr().err


# Documents that are kept from training.


def test_reserved_documents_are_whole_and_never_in_the_training_text(tmp_path):
    for name in "ab":
        text = "\n--\n".join(f"<{name}{n:03d}{'.' * n}>" for n in range(40))
        (tmp_path / f"{name}.txt").write_text(text)
    data = {
        "source": "files",
        "paths": {name: str(tmp_path / f"{name}.txt") for name in "ab"},
        "separator": "\n--\n",
    }

    def texts(**more):
        options = LanguageOptions(data=LanguageData(**data, **more), length=16)
        return find_task("language")(options)._texts

    train, validation, nothing = texts()
    assert nothing == {}
    kept_train, kept_validation, reserved = texts(reserved=0.25)
    assert kept_validation == validation
    for name in "ab":
        assert len(reserved[name]) == round(0.25 * len(train[name]))
        assert {*reserved[name]} & {*kept_train[name]} == set()
        assert sorted([*reserved[name], *kept_train[name]]) == sorted(train[name])
        # Drawn at random, not the head of the file.
        assert reserved[name] != train[name][: len(reserved[name])]
    assert texts(reserved=0.25, seed=1)[2] != reserved


def test_reserved_examples_are_not_trained_on():
    def task(**more):
        return find_task("classification")(ClassificationOptions(data=ClassificationData(**more)))

    whole, split = task(part=[0.0, 0.5]), task(part=[0.0, 0.5], reserved=0.2)
    kept, away = split.part.numbers, split.reserved.numbers
    assert {*kept} & {*away} == set()
    assert sorted([*kept, *away]) == sorted(whole.part.numbers)
    assert 0.1 < len(away) / len(whole.part.numbers) < 0.3
    model = split.build(base().target)
    assert [*split.held_out_data(model)] == ["test", "reserved"]
    assert [*whole.held_out_data(model)] == ["test"]
    with pytest.raises(SteeringError, match=r"reserved: expected a number in \[0, 1\)"):
        ClassificationData(reserved=1.0)


def test_curves_cross_where_the_line_between_their_points_does():
    assert crossing([2, 4, 8], [3.0, 2.0, 1.0], 1.5) == 6
    assert crossing([2, 4, 8], [3.0, 2.0, 2.5], 2.0) == 4
    assert crossing([2, 4, 8], [3.0, 2.0, 1.0], 3.5) == 2
    assert crossing([2, 4, 8], [3.0, 2.0, 1.0], 0.5) == math.inf


def arm(shift, seeds=2, n=40):
    """An arm whose loss is the same noise as any other's, and a shift."""
    runs = {}
    for seed in range(seeds):
        noise = np.random.default_rng(seed).normal(size=n)
        score = Scores(noise - noise.mean() + shift, np.ones(n))
        runs[seed] = SimpleNamespace(
            metrics={"p/nll": score.mean()}, scores=lambda score=score: {"p/nll": score}
        )
    return Arm("an arm", runs, "p")


def test_the_worth_in_data_is_read_off_the_curve_of_the_single_models():
    curve = [(1.0, arm(3.0)), (2.0, arm(2.5)), (4.0, arm(2.0))]
    for shift, worth in {2.25: 2**1.5, 2.5: 2.0, 3.2: 1.0, 1.9: math.inf}.items():
        found = data_worth(curve, arm(shift), draws=50)
        # The noise is common to all, so every draw of seeds and examples says the same.
        assert [found.value, found.low, found.high] == pytest.approx([worth] * 3)


def test_neighbours_are_drawn_together():
    generator = np.random.default_rng(0)
    weights = generator.uniform(0.5, 1.5, size=103)
    score = Scores(generator.normal(size=103), weights)
    starts = range(0, 103, 4)
    means = [np.average(score.values[i : i + 4], weights=weights[i : i + 4]) for i in starts]
    joined = Scores(np.array(means), np.array([weights[i : i + 4].sum() for i in starts]))
    np.testing.assert_allclose(drawn_means(score, 20, block=4), drawn_means(joined, 20))
    # Where four neighbours are one and the same, a draw of single ones thinks itself twice as sure.
    alike = Scores(np.repeat(generator.normal(size=200), 4), np.ones(800))
    ratio = drawn_means(alike, 2000, block=4).std() / drawn_means(alike, 2000).std()
    assert ratio == pytest.approx(2, rel=0.1)


def test_a_grid_is_every_pair_at_one_budget():
    found = cells_of({"budget": 24, "trajectories": [1, 3], "cycles": [2, 4], "chain_from": 3})
    assert list(found) == ["1x2x12", "1x4x6", "3x2x4", "3x4x2"]
    assert {cell.budget for cell in found.values()} == {24}
    assert {cell.chain_from for cell in found.values()} == {3}
    study = Population(
        PopulationOptions(allocations={}, grid={"budget": 4, "trajectories": [2], "cycles": [1]})
    )
    assert study.allocations == {"2x1x2": Allocation(2, 1, 2.0)}
    for grid, message in {
        "expected budget, trajectories and cycles": {"budget": 4},
        "expected lists": {"budget": 4, "trajectories": 2, "cycles": [1]},
        "budget: expected a number above 0": {"budget": 0, "trajectories": [2], "cycles": [1]},
        r"grid\.0x1\.trajectories: expected": {"budget": 4, "trajectories": [0], "cycles": [1]},
    }.items():
        with pytest.raises(ConfigError, match=grid):
            cells_of(message)


def test_arms_that_are_left_out_are_not_asked_for():
    options = PopulationOptions(arms=["chain"], independents=2)
    asks = with_parents_first(ArmAsks(base(), options, Allocation(2, 2, 1.0), "a", 0).all())
    assert {ask.axes.get("role") for ask in asks} == {"cycle", "chain", None}
    assert [ask.axes["arm"] for ask in asks if "arm" in ask.axes] == ["chain"]
    with pytest.raises(ConfigError, match=r"arms: no arm 'soup'; known: single, independent"):
        Population(PopulationOptions(arms=["soup"]))


def test_more_data_are_a_wider_part_whose_models_are_compared_on_the_same_test_part():
    config = base("task.data.part=[0.1, 0.3]")
    wider = more_of(config, 4)
    assert list(wider.task.data.part) == pytest.approx([0.1, 0.9])
    assert wider.train.samples == 4 * config.train.samples
    options = PopulationOptions(singles=[1.0, 500.0], arms=["single"])
    asks = ArmAsks(config, options, Allocation(1, 1, 2.0), "a", 0, {4.0: wider}).all()
    assert [ask.axes["arm"] for ask in asks] == ["single", "data-4"]
    # What was reserved of the narrow part may be training data of the wide one.
    assert asks[1].config.task.data.part == wider.task.data.part
    assert asks[1].axes["lengths"] == [4.0, 2000.0]
    with pytest.raises(ConfigError, match=r"5 times task\.data\.part .* ends beyond 1"):
        more_of(config, 5)
    with pytest.raises(ConfigError, match="more_data: expected numbers above 1"):
        Population(PopulationOptions(more_data=[1.0]))


def test_an_objective_from_a_file_counts_by_its_text(tmp_path):
    file = tmp_path / "mine.py"
    given = PopulationOptions(objective=f"{file}:nll")

    def key():
        asks = ArmAsks(base(), given, Allocation(1, 2, 1.0), "a", 0)
        return asks._mix("chain", asks._snapshots(True), {}).key

    file.write_text("from steering.population.prior import nll\n")
    before = key()
    assert key() == before
    file.write_text("from steering.population.prior import nll  # another\n")
    assert key() != before


def test_reserved_blocks_have_the_tag_of_held_out_ones(tmp_path):
    (tmp_path / "a.txt").write_text("\n--\n".join(f"<{n:03d}{'.' * 40}>" for n in range(40)))
    data = LanguageData(
        source="files",
        paths={"a": str(tmp_path / "a.txt")},
        separator="\n--\n",
        reserved=0.25,
        tags=True,
    )
    task = find_task("language")(LanguageOptions(data=data, length=16))
    parts = task.held_out_data(None)
    first = {name: set(part.tokens[:, 0].tolist()) for name, part in parts.items()}
    assert first["reserved"] == first["validation"] == {NEUTRAL}
