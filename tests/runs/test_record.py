"""Records: what was written is read, damage and newer versions are told, and reading needs no
torch."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from steering.errors import SteeringError
from steering.runs.record import (
    Cost,
    Metric,
    RunRecord,
    Scores,
    read_curves,
    read_record,
    write_record,
    write_scores,
)
from steering.runs.store import Store, require_same_found, stores

METRIC = Metric(percent=False, higher_is_better=False, of=("loss/a", "loss/b"), exp=True)


def make(folder, key="a" * 64, **changes):
    values = {
        "label": "one",
        "metrics": {"m": 0.5},
        "meaning": {"m": METRIC},
        "cost": Cost(trained=3, flops=10**15),
    }
    return RunRecord(
        key, "train", folder=folder, created="2026-01-01T00:00:00+00:00", **(values | changes)
    )


def test_a_record_is_read_as_it_was_written(tmp_path):
    record = make(
        tmp_path,
        axes={"method": "x", "seed": None},
        found={"task: data": "f"},
        summary={"mix": {"a": 0.5}},
    )
    write_record(record)
    again = read_record(tmp_path)
    assert again == record
    assert again.folder == tmp_path
    assert again.meaning["m"].of == ("loss/a", "loss/b")
    assert json.loads((tmp_path / "record.json").read_text())["schema"] == 1
    assert again.asked_as("two", {"seed": 1}).metrics == record.metrics


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": 1}', "null"])
def test_a_damaged_record_is_told(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(SteeringError, match=r"record.json is damaged .*delete its folder"):
        read_record(tmp_path)


def test_a_record_of_a_newer_version_is_refused_and_no_record_is_told(tmp_path):
    with pytest.raises(SteeringError, match="no finished run in"):
        read_record(tmp_path)
    write_record(make(tmp_path))
    path = tmp_path / "record.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(SteeringError, match="schema 2 is newer than this version's 1"):
        read_record(tmp_path)


def test_scores_keep_values_weights_and_names(tmp_path):
    scores = {
        "seen/R@1": Scores(np.array([0.0, 1.0, 1.0]), np.ones(3)),
        "loss/a b": Scores(np.array([2.0, 1.0]), np.array([3.0, 1.0])),
    }
    write_scores(tmp_path / "scores.npz", scores)
    found = make(tmp_path).scores()
    assert [*found] == [*scores]
    for name, score in scores.items():
        assert np.array_equal(found[name].values, score.values)
        assert np.array_equal(found[name].weights, score.weights)
    assert found["seen/R@1"].mean() == pytest.approx(2 / 3)
    assert found["loss/a b"].mean() == 7 / 4
    assert make(tmp_path / "nothing").scores() == {}


def test_curves_leave_out_an_unfinished_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a": 2}\n{"step": 2, "a"')
    assert read_curves(tmp_path / "metrics.jsonl") == [{"step": 1, "a": 2}]
    assert read_curves(tmp_path / "none") == []


def test_a_store_finds_by_key_whatever_the_label(tmp_path):
    store = Store(tmp_path)
    one, two = "a" * 64, "a" * 12 + "b" * 52  # one short name
    folder = store.begin(one, "train", "drrho τ=0.5/seed 0")
    assert folder.name == "drrho_τ=0.5_seed_0"
    assert (
        store.place(two, "drrho τ=0.5/seed 0").name == "drrho_τ=0.5_seed_0-aaaaaaaaaaaa"
    )  # the label is taken
    assert store.place(one, "another label") == folder
    assert store.find(one) is None
    assert [started.label for started in store.unfinished()] == ["drrho τ=0.5/seed 0"]
    write_record(make(folder, one))
    assert store.find(one) is not None
    assert store.find(two) is None
    assert store.unfinished() == []
    assert Store(tmp_path).find(one) is not None
    (tmp_path / "mine").mkdir()
    assert store.place(two, "mine").name == "mine"
    (tmp_path / "mine/notes.txt").write_text("x")
    assert (
        store.place(two, "mine").name == "mine-aaaaaaaaaaaa"
    )  # a folder of somebody's own is left alone
    assert [record.key for record in store.all()] == [one]
    assert tmp_path in [found.folder for found in stores(tmp_path.parent)]


def test_what_was_found_must_be_what_the_others_found(tmp_path):
    record = make(
        tmp_path, asked={"task": "t"}, found={"task: data": "0" * 64, "target: inputs": "x"}
    )
    require_same_found(
        [record], {"task": "t"}, {"task: data": "0" * 64, "target: inputs": "y"}, "here"
    )
    require_same_found([record], {"task": "other"}, {"task: data": "1" * 64}, "here")
    with pytest.raises(
        SteeringError, match=r"here: task: data: 000000000000 found by one, 111111111111 now"
    ):
        require_same_found([record], {"task": "t"}, {"task: data": "1" * 64}, "here")


def test_reading_and_drawing_import_neither_torch_nor_a_task(tmp_path):
    """The record side stands on a laptop that has neither."""
    code = """
import sys
import steering.runs.record, steering.runs.store, steering.runs.sources, steering.studies.compare
import steering.analysis.report, steering.analysis.intervals, steering.analysis.reach, steering.analysis.page
import steering.analysis.events, steering.commands.studies, steering.cli
bad = {"torch", "torchvision", "open_clip", "transformers", "steering_tasks", "omegaconf"} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path.parent)


def test_a_metric_is_what_it_says():
    assert math.isclose(float(np.exp(np.mean([2.0, 4.0]))), math.exp(3))
    from steering.analysis.intervals import value_of

    assert float(value_of(METRIC, [2.0, 4.0])) == pytest.approx(math.exp(3))
    assert float(value_of(Metric(of=("a",)), [0.25])) == 0.25
