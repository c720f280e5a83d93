"""The study of tuned methods where a config leaves the ranges to the methods."""

import json
from pathlib import Path

import pytest
import toys

from steering.cli import main
from steering.commands.studies import study
from steering.config import load_config
from steering.errors import ConfigError
from steering.studies.tuned import Tuned, TunedOptions
from steering.typed import typed

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(
    path
    for path in (ROOT / "configs").glob("*/*.yaml")
    if "\n  tuned:\n" in path.read_text(encoding="utf-8")
)
TAU = {"low": 0.5, "high": 16.0, "log": True}
STRENGTH = {"low": 0.25, "high": 8.0, "log": True}
WORDS = [
    "task.kind=units",
    "train.threads=1",
    "train.samples=64",
    "studies.tuned.methods={plain: {name: erm}, other: {name: dro}, steered: {name: drrho}}",
    "studies.tuned.common={optimizer.lr: {low: 0.001, high: 0.1, log: true}}",
    "studies.tuned.tries=2",
    "studies.tuned.seeds=1",
    "studies.tuned.report_seeds=2",
    "studies.tuned.metric=seen/likelihood",
]


def config_of(tmp_path, *words):
    return load_config(toys.write_config(tmp_path), [*WORDS, *words])


def options_of(config):
    def fail(path: str, message: str) -> None:
        raise ConfigError(f"{path}: {message}")

    return typed(TunedOptions, config.studies["tuned"], "studies.tuned", fail)


def filled(tmp_path, *words):
    config = config_of(tmp_path, *words)
    return options_of(config).for_config(config)


def test_a_label_without_ranges_has_those_of_its_method(tmp_path):
    found = filled(tmp_path, "studies.tuned.ranges={other: {method.tau: [1.0, 2.0]}}")
    assert found.ranges == {
        "plain": {},
        "other": {"method.tau": [1.0, 2.0]},
        "steered": {"method.tau": TAU, "method.strength": STRENGTH},
    }
    assert found.documented == ["steered"]
    drawn = Tuned(found).settings
    assert [*drawn["plain", 1, "1"]] == ["optimizer.lr"]
    assert [*drawn["steered", 1, "1"]] == ["optimizer.lr", "method.tau", "method.strength"]


def test_none_but_the_common_ones_where_a_config_says_so(tmp_path):
    found = filled(tmp_path, "studies.tuned.ranges={other: {}, steered: {}}")
    assert found.ranges == {"plain": {}, "other": {}, "steered": {}}
    assert found.documented == []


@pytest.mark.parametrize(
    ("common", "left"),
    [
        ("method.tau: [1.0, 2.0]", ["method.strength"]),
        ("method.strength.start: [0.1, 0.2]", ["method.tau"]),
        ("method: [{name: drrho}, {name: dro}]", []),
        ("method.tau_min: [0.1, 0.2]", ["method.tau", "method.strength"]),
    ],
)
def test_a_common_key_stays_common(tmp_path, common, left):
    found = filled(tmp_path, f"studies.tuned.common={{{common}}}")
    assert [*found.ranges["steered"]] == left


def test_the_ranges_are_those_of_the_unit_and_of_the_selector(tmp_path):
    methods = "{plain: {name: erm}, chosen: {name: drrho, tau: 2.0, select: {name: rho_loss}}}"
    found = filled(tmp_path, f"studies.tuned.methods={methods}")
    keys = ["method.tau", "method.strength", "method.select.share"]
    assert [*found.ranges["chosen"]] == keys
    by_unit = {}
    for name, unit in (("corrupted_texts", "token"), ("corrupted_sequences", "sequence")):
        config = load_config(f"language/{name}")
        options = TunedOptions(methods={"steered": {"name": "drrho"}})
        by_unit[unit] = options.for_config(config).ranges["steered"]["method.tau"]["low"]
    assert by_unit == {"token": 0.5, "sequence": 0.05}


def test_the_page_says_whose_the_ranges_are_and_is_drawn_again_from_them(tmp_path):
    words = ["studies.tuned.ranges={other: {method.tau: [1.0, 2.0]}}"]
    study("tuned", config_of(tmp_path, *words))
    folder = tmp_path / "runs/study"
    text = (folder / "tuned.md").read_text()
    assert (
        "The ranges of steered are those that the methods document, all others the config's."
        in text
    )
    rows = json.loads((folder / "tuned.json").read_text())
    (drawn,) = [r["settings"] for r in rows if r["kind"] == "try" and r["method"] == "steered"][1:]
    assert 0.5 <= drawn["method.tau"] <= 16
    assert 0.25 <= drawn["method.strength"] <= 8
    (folder / "tuned.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "tuned.md").read_text() == text
    study("tuned", config_of(tmp_path, "studies.tuned.ranges={other: {}, steered: {}}"))
    assert "The ranges are the config's." in (folder / "tuned.md").read_text()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_run_of_a_committed_config_comes_from_a_documented_range(path, monkeypatch):
    """Their results are in the evidence, which a change of a documented range must not touch: a
    config writes its ranges out, or `{}`."""
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    options = options_of(config)
    found = options.for_config(config)
    assert found.documented == []
    assert Tuned(found).settings == Tuned(options).settings


def test_there_are_committed_configs_to_look_at():
    assert len(CONFIGS) >= 13
