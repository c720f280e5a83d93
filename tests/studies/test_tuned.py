"""The study of tuned methods, small: draws, tries, choice and report."""

import json
import math

import numpy as np
import pytest
import toys
from scipy import stats

from steering.analysis.halves import Half
from steering.cli import main
from steering.commands.studies import study
from steering.config import load_config
from steering.errors import ConfigError
from steering.runs.store import Store
from steering.studies.search_space import settings

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


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("studies.tuned.methods={}", "methods: empty"),
        ("studies.tuned.tries=0", "tries: expected at least 1, got 0"),
        ("studies.tuned.ranges={other: {}}", "ranges.other: no such label in methods"),
        ("studies.tuned.common={}", "ranges.plain: nothing to search for 3 tries"),
        ("studies.tuned.common={optimizer.lrr: [1, 2, 3]}", "unknown key 'optimizer.lrr'"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path, word, says):
    with pytest.raises(ConfigError, match=says):
        study("tuned", config_of(tmp_path, word))
