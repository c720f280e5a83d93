"""The study of tuned methods, small: draws, tries, choice and report."""

import json
import math

import numpy as np
import pytest
import toys
from scipy import stats

from steering.analysis.halves import Half
from steering.analysis.points import flops_with_reference
from steering.analysis.signals import leading_terms
from steering.analysis.stored import Losses
from steering.cli import main
from steering.commands.studies import study
from steering.config import load_config
from steering.errors import ConfigError
from steering.runs.ask import reference_training
from steering.runs.store import Store
from steering.studies.search_space import settings
from steering.studies.tuned import Tuned, TunedOptions

LOG = {"low": 0.01, "high": 10.0, "log": True}


def test_draws_are_of_the_range_and_by_the_logarithm():
    found = [one["a"] for one in settings({"a": LOG}, 400, 0, "here")[1:]]
    assert min(found) >= 0.01
    assert max(found) <= 10.0
    logs = (np.log(found) - math.log(0.01)) / math.log(1000)
    assert stats.kstest(logs, "uniform").pvalue > 0.01
    plain = [one["a"] for one in settings({"a": {"low": 2, "high": 4}}, 60, 0, "here")[1:]]
    assert stats.kstest((np.array(plain) - 2) / 2, "uniform").pvalue > 0.01


def test_a_key_that_two_methods_share_has_the_same_values():
    one, other = (settings({"lr": LOG, key: LOG}, 5, 0, "here") for key in ("a", "b"))
    assert [s.get("lr") for s in one] == [s.get("lr") for s in other]
    assert one[1]["a"] != other[1]["b"]
    assert one != settings({"lr": LOG, "a": LOG}, 5, 1, "here")
    assert one == settings({"a": LOG, "lr": LOG}, 5, 0, "here")


def test_a_list_that_two_methods_share_has_the_same_values():
    """Also where one of them has equal draws, and the other none."""
    rates, tau = {"lr": [1, 2, 4, 8]}, {"tau": LOG}
    for seed in range(20):
        one, other = (settings(rates | more, 5, seed, "here") for more in ({}, tau))
        assert [s.get("lr") for s in one] == [s.get("lr") for s in other]
        assert sorted(s["lr"] for s in one[1:]) == [1, 2, 4, 8]
    # Of two short lists every pair comes before one comes again.
    both = settings({"a": [1, 2], "b": [1, 2, 3]}, 7, 0, "here")
    assert len({(s["a"], s["b"]) for s in both[1:]}) == 6


def test_settings_differ_and_the_first_is_the_section_as_it_stands():
    found = settings({"a": ["x", "y", "z"]}, 4, 0, "here")
    assert found[0] == {}
    assert sorted(one["a"] for one in found[1:]) == ["x", "y", "z"]
    with pytest.raises(ConfigError, match="here: too few different settings for 5 tries"):
        settings({"a": ["x", "y", "z"]}, 5, 0, "here")
    assert settings({}, 1, 0, "here") == [{}]
    with pytest.raises(ConfigError, match="here: nothing to search for 2 tries"):
        settings({}, 2, 0, "here")


@pytest.mark.parametrize(
    "given",
    [
        [],
        3,
        "low",
        {"low": 1},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 0, "high": math.inf},
        {"low": 0, "high": 1, "step": 1},
        {"low": False, "high": True},
    ],
)
def test_what_is_no_range_is_told(given):
    with pytest.raises(ConfigError, match=r"here\.a: expected a list, or \{low: a, high: b\}"):
        settings({"a": given}, 3, 0, "here")


WORDS = [
    "task.kind=units",
    "train.threads=1",
    "train.samples=64",
    "studies.tuned.methods={plain: {name: erm}, steered: {name: drrho}}",
    "studies.tuned.common={optimizer.lr: {low: 0.001, high: 0.1, log: true}}",
    "studies.tuned.ranges={steered: {method.tau: [0.5, 1.0, 2.0]}}",
    "studies.tuned.tries=3",
    "studies.tuned.report_seeds=2",
    "studies.tuned.metric=seen/likelihood",
]


def config_of(tmp_path, *words):
    return load_config(toys.write_config(tmp_path), [*WORDS, *words])


def test_tuned_on_one_half_and_reported_on_the_other(tmp_path):
    config = config_of(tmp_path)
    study("tuned", config)
    folder = tmp_path / "runs/study"
    records = {record.label: record for record in Store(folder).all()}

    def value(label, number, seeds, tuning):
        found = []
        for seed in seeds:
            scores = records[f"{label}-try{number}-seed{seed}"].scores()["seen/likelihood"].values
            found.append(scores[Half(0, tuning=tuning).mask(len(scores))].mean())
        return np.mean(found)

    rows = json.loads((folder / "tuned.json").read_text())
    tries = {(row["method"], row["try"]): row["settings"] for row in rows if row["kind"] == "try"}
    assert len(tries) == 2 * 3
    for (label, number), found in tries.items():  # what was drawn is what was run
        used = records[f"{label}-try{number}-seed0"].config()
        assert used["optimizer"]["lr"] == found.get("optimizer.lr", 0.02)
        if "method.tau" in found:
            assert used["method"]["tau"] == found["method.tau"]
    for row in (row for row in rows if row["kind"] == "method"):
        label, best = row["method"], row["try"]
        by_try = [value(label, number, (0, 1), tuning=True) for number in range(3)]
        assert best == int(np.argmax(by_try))
        mine = value(label, best, (2, 3), tuning=False)
        assert row["value"] == pytest.approx(mine)
        plain = next(r["try"] for r in rows if r["kind"] == "method" and r["method"] == "plain")
        gain = mine - value("plain", plain, (2, 3), tuning=False)
        assert row["gain"][0] == pytest.approx(gain)
    assert len(records) == 2 * 3 * 2 + 2 * 2  # the reference is plain training, and one of them

    text = (folder / "tuned.md").read_text()
    before = {path: path.read_bytes() for path in folder.glob("*/record.json")}
    study("tuned", config)
    (folder / "tuned.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "tuned.md").read_text() == text
    assert {path: path.read_bytes() for path in folder.glob("*/record.json")} == before
    assert "Every method had 3 tries" in text


def test_a_draw_that_changes_nothing_says_what_to_do(tmp_path):
    """A drawn rate may be the one that stands, which no reader of a config would guess."""
    words = ["studies.tuned.common={optimizer.lr: [0.02]}", "studies.tuned.tries=2"]
    says = "plain-try0-seed0 and plain-try1-seed0 are the same run; .*change studies.tuned.draw"
    with pytest.raises(ConfigError, match=says):
        study("tuned", config_of(tmp_path, *words))


FAMILIES = [
    "studies.tuned.methods={plain: {name: erm}, other: {name: dro, tau: 2.0}, steered: {name: drrho}}",
    "studies.tuned.families={unguided: [plain, other]}",
    "studies.tuned.tries=2",
    "studies.tuned.seeds=1",
    "studies.tuned.shares={'0.5': {task.n: 32}}",
    "studies.tuned.share_methods=[plain, other, steered]",
    "studies.tuned.also=[seen/likelihood]",
    "reference={name: linear, train: {optimizer.lr: 0.5}}",  # a run of its own
]


def test_all_tries_have_the_reference_of_the_config(tmp_path):
    config = config_of(tmp_path)
    asks = Tuned(TunedOptions(**config.studies["tuned"])).wanted(config, [])
    steered = [ask.parents["reference"].key for ask in asks if "reference" in ask.parents]
    assert len(steered) == 3 * 2
    assert {*steered} == {reference_training(config).key}
    rates = {ask.config.optimizer.lr for ask in asks if ask.axes.get("method") == "steered"}
    assert len(rates) == 3
    # What reference.train says itself stays, and a try may still vary it.
    words = [
        "reference={name: linear, train: {optimizer.lr: 0.5}}",
        "studies.tuned.common={optimizer: [{lr: 0.1}, {lr: 0.2}], reference.train.train.samples: [32, 48]}",
    ]
    config = config_of(tmp_path, *words)
    asks = Tuned(TunedOptions(**config.studies["tuned"])).wanted(config, [])
    found = [ask.parents["reference"].config for ask in asks if "reference" in ask.parents]
    assert {one.optimizer.lr for one in found} == {0.5}
    assert {one.train.samples for one in found} == {64, 32, 48}


def test_families_and_shares_of_the_data(tmp_path):
    config = config_of(tmp_path, *FAMILIES)
    study("tuned", config)
    folder = tmp_path / "runs/study"
    done = Store(folder).all()
    records = {record.label: record for record in done}
    rows = json.loads((folder / "tuned.json").read_text())
    tried = {(row["method"], row["try"]): row["tuning"] for row in rows if row["kind"] == "try"}
    of_method = {row["method"]: row for row in rows if row["kind"] == "method"}
    best = {label: row["try"] for label, row in of_method.items()}
    opponent = max(("plain", "other"), key=lambda label: tried[label, best[label]])
    # The share of the data has a reference of its own, and no row.
    (reference,) = [one for one in done if one.axes.get("role") == "reference"]

    def value(label, on=""):
        found = []
        for seed in (1, 2):
            run = records[f"{label}-try{best[label]}{on}-seed{seed}"]
            scores = run.scores()["seen/likelihood"].values
            found.append(scores[Half(0, tuning=False).mask(len(scores))].mean())
        return np.mean(found)

    for label, row in of_method.items():
        over = row["over"]["unguided"]
        assert over["method"] == opponent
        assert over["gain"][0] == pytest.approx(value(label) - value(opponent))
        guide = reference.scores()["seen/likelihood"].values
        guide = guide[Half(0, tuning=False).mask(len(guide))].mean()
        assert row["over_reference"]["reference"][0] == pytest.approx(value(label) - guide)
    by_share = {row["method"]: row for row in rows if row["kind"] == "share"}
    assert by_share.keys() == {"plain", "other", "steered"}
    for label, row in by_share.items():
        assert row["value"] == pytest.approx(value(label, "-share0.5"))
        gain = value(label, "-share0.5") - value(opponent, "-share0.5")
        assert row["gain"][0] == pytest.approx(gain)
    assert records[f"steered-try{best['steered']}-share0.5-seed1"].config()["task"]["n"] == 32
    text = (folder / "tuned.md").read_text()
    assert f"difference to {opponent}, the best of unguided" in text
    assert "## difference to the reference\n" in text
    assert "## data saved" in text
    # What a run costs with its reference: the reference's own training, and its outputs on 64.
    run = records[f"steered-try{best['steered']}-seed1"]
    by_key = {record.key: record for record in done}
    parent = by_key[run.parents["reference"]]
    whole = run.cost.flops + parent.cost.flops + run.cost.stored * run.cost.reference_flops
    assert flops_with_reference(run, by_key) == whole
    assert f"{whole:.2e}" in text
    # Without the loser's runs the same numbers of the others.
    config = config_of(tmp_path, *FAMILIES, "studies.tuned.losers=false")
    study("tuned", config)
    assert len(Store(folder).all()) == len(done)
    rows = json.loads((folder / "tuned.json").read_text())
    loser = ({"plain", "other"} - {opponent}).pop()
    assert of_method.pop(loser)
    assert {row["method"]: row for row in rows if row["kind"] == "method"} == of_method
    # The opponent alone on the other share: its score is known there, and nobody saves anything.
    words = [*FAMILIES, f"studies.tuned.share_methods=[{opponent}]"]
    study("tuned", config_of(tmp_path, *words))
    text = (folder / "tuned.md").read_text()
    assert "## by share of the data" in text
    assert "## data saved" not in text


def test_the_terms_of_the_bound_are_those_of_the_formula():
    random = np.random.default_rng(0)
    loss, guide = random.normal(size=(2, 3, 40))
    guide += loss
    own, excess = leading_terms(*(Losses(x.mean(1), x) for x in (loss, guide)), n=50)
    assert own == pytest.approx(math.sqrt(2 * loss.var(1).mean() / 50))
    assert excess == pytest.approx(math.sqrt(2 * (loss - guide).var(1).mean() / 50))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("studies.tuned.methods={}", "methods: empty"),
        ("studies.tuned.families={a: [other]}", "families.a: no such label in methods"),
        ("studies.tuned.families={a: []}", "families.a: empty; name at least one method"),
        ("studies.tuned.shares={'2': {}}", r"shares: expected a number in \(0, 1\], got '2'"),
        ("studies.tuned.shares={'1': {}}", "shares: 1 is the config's own"),
        ("studies.tuned.part=seen", "part: what the theory expects is drawn over shares"),
        ("studies.tuned.tries=0", "tries: expected at least 1, got 0"),
        ("studies.tuned.ranges={other: {}}", "ranges.other: no such label in methods"),
        ("studies.tuned.common={}", "ranges.plain: nothing to search for 3 tries"),
        ("studies.tuned.common={optimizer.lrr: [1, 2, 3]}", "unknown key 'optimizer.lrr'"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, word, says):
    with pytest.raises(ConfigError, match=says):
        study("tuned", config_of(tmp_path, word))
