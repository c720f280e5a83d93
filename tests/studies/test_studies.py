"""Studies as a whole: rounds, kills, several at a time, what is found again and what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toys
from safetensors.torch import load_file, save_file

from steering.cli import main
from steering.commands.single import train
from steering.commands.studies import compare, study
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.studies import find_study

HERE = Path(__file__).parent
OWN = f"{HERE / 'lr_study.py'}:lr"


def records(folder):
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/record.json")}


def pages(folder):
    """What a reader sees, but for what a clock has measured."""
    rows = json.loads((folder / "compare.json").read_text())
    for row in rows:
        row.pop("seconds")
        row.pop("cache_seconds", None)
    text = (folder / "compare.md").read_text()
    return rows, [part for part in text.split("## ") if not part.startswith(("cost", "until"))]


def test_a_study_of_ones_own_asks_in_two_rounds(tmp_path):
    assert len((HERE / "lr_study.py").read_text().splitlines()) <= 60
    path = toys.write_config(tmp_path)
    config = load_config(
        path, ["method=erm", "reference=null", "studies={lr: {rates: [0.001, 0.02], seeds: 2}}"]
    )
    study(OWN, config)
    folder = tmp_path / "runs/study"
    rows = json.loads((folder / "lr.json").read_text())
    assert [(row["rate"], row["seed"]) for row in rows] == [(0.001, 0), (0.02, 0), (0.02, 1)]
    before = records(folder)
    assert len(before) == 3
    study(OWN, config)  # nothing to do
    assert records(folder) == before
    text = (folder / "lr.md").read_text()
    (folder / "lr.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "lr.md").read_text() == text


def test_the_command_line_knows_studies(tmp_path, capsys):
    path = str(toys.write_config(tmp_path))
    words = ["method=erm", "reference=null", "studies.lr.rates=[0.02]", "studies.lr.seeds=1"]
    assert main(["study", OWN, path, *words]) == 0
    assert "best learning rate" in capsys.readouterr().out
    assert main(["study", "no-such", path]) == 2
    assert "no study 'no-such'; known: " in capsys.readouterr().err
    assert main(["study", OWN, path, "studies.lr.rats=[1]"]) == 2
    assert (
        "unknown key 'studies.lr.rats'; did you mean 'studies.lr.rates'?" in capsys.readouterr().err
    )
    assert main(["runs", str(tmp_path)]) == 0
    assert "lr0.02-seed0" in capsys.readouterr().out
    assert main(["runs", str(tmp_path / "none")]) == 1
    assert main(["report", str(tmp_path)]) == 1
    assert "no study in" in capsys.readouterr().err


def test_several_at_a_time_give_the_same_report(tmp_path, capsys):
    words = [
        "compare.seeds=[0]",
        "train.threads=1",
        "compare.methods={plain: {name: erm}, drrho: {name: drrho}}",
    ]
    for name, jobs in {"one": 1, "two": 2}.items():
        (tmp_path / name).mkdir()
        compare(load_config(toys.write_config(tmp_path / name), [*words, f"jobs={jobs}"]))
    assert pages(tmp_path / "one/runs/study") == pages(tmp_path / "two/runs/study")
    shown = capsys.readouterr().out
    assert shown.count("started ") == shown.count("finished ") == 3


def test_a_failing_run_of_several_is_told_and_the_finished_ones_stay(tmp_path):
    methods = "compare.methods={plain: {name: erm}, steered: {name: drrho}}"
    words = [
        methods,
        "compare.seeds=[0]",
        "jobs=2",
        "train.threads=1",
        "reference.train={train.samples: 64, task.nan_at: null}",
    ]
    with pytest.raises(SteeringError, match=r"seed0: steering: error|seed0: .*not finite.*log: "):
        compare(load_config(toys.write_config(tmp_path), [*words, "task.nan_at=1"]))
    assert [*records(tmp_path / "runs/study")] == ["reference"]


def test_kills_at_random_moments_change_nothing(tmp_path):
    """kill -9 five times in the middle of a study of six runs: the report is that of one that
    nobody killed."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    words = ["train.threads=1", "train.save_every=5", "train.eval_every=10", "compare.seeds=[0, 1]"]
    compare(load_config(toys.write_config(tmp_path / "whole"), words))
    path, folder = toys.write_config(tmp_path / "killed"), tmp_path / "killed/runs/study"
    command = [sys.executable, "-m", "steering", "compare", str(path), *words]
    draw, killed = random.Random(5), 0
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = min(len(list(folder.glob("*/ask.json"))) + 1, 7)
        while process.poll() is None and len(list(folder.glob("*/ask.json"))) < wanted:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        if killed == 5:
            break
    assert killed == 5
    compare(load_config(path, words))
    assert pages(folder) == pages(tmp_path / "whole/runs/study")


def test_other_weights_under_the_same_path_are_another_run(tmp_path):
    path = toys.write_config(tmp_path)
    compare(load_config(path, ["compare.seeds=[0]"]))
    folder = tmp_path / "runs/study"
    weights = tmp_path / "given.safetensors"
    weights.write_bytes((toys.folder_of(folder, "reference") / "model.safetensors").read_bytes())
    given = ["compare.seeds=[0]", f"reference={{name: linear, checkpoint: {weights}}}"]
    compare(load_config(path, given))
    before = {*records(folder)}
    compare(load_config(path, given))
    assert {*records(folder)} == before
    save_file({key: value + 0.5 for key, value in load_file(weights).items()}, weights)
    compare(load_config(path, given))
    new = sorted(
        name.rpartition("-")[0] for name in {*records(folder)} - before
    )  # their labels are taken
    assert new == ["drrho-seed0", "reference"]  # whoever uses the weights, and nobody else


def test_a_run_whose_trained_reference_was_changed_is_refused(tmp_path):
    path = toys.write_config(tmp_path)
    compare(load_config(path, ["compare.seeds=[0]"]))
    weights = toys.folder_of(tmp_path / "runs/study", "reference") / "model.safetensors"
    save_file({key: value + 0.5 for key, value in load_file(weights).items()}, weights)
    with pytest.raises(
        SteeringError,
        match=r"has changed since the run finished \(weights: \w{12} written, \w{12} found\)",
    ):
        compare(load_config(path, ["compare.seeds=[0, 1]"]))


@pytest.fixture
def with_file(tmp_path):
    """A config whose task reads a file, and that file."""
    path, numbers = tmp_path / "run.yaml", tmp_path / "numbers.txt"
    numbers.write_text("1\n")
    path.write_text(
        f"name: s\noutput: {tmp_path}/runs\ntask: {{name: '{HERE}/file_task.py:FileTask', path: {numbers}}}\ntarget: linear\n"
        "method: erm\ntrain: {samples: 64, batch_size: 16}\ndevice: cpu\ncompare: {methods: {plain: {name: erm}}}\n"
    )
    return path, numbers


def test_a_changed_file_of_data_is_refused_naming_both(with_file):
    """When runs are added, and when there is nothing to do."""
    path, numbers = with_file
    compare(load_config(path))
    compare(load_config(path))
    os.utime(numbers, (1, 1))  # touched, not changed
    compare(load_config(path))
    numbers.write_text("2\n")
    for seeds in ("[0]", "[0, 1]"):
        with pytest.raises(
            SteeringError, match=r"task: data: \w{12} found by plain-seed0, \w{12} now"
        ):
            compare(load_config(path, [f"compare.seeds={seeds}"]))


def test_changed_held_out_data_are_refused_too(tmp_path):
    """A method that joins later would be compared on other examples."""
    generator = np.random.default_rng(0)
    image, label = generator.integers(0, 255, (40, 4, 4)).astype(np.uint8), np.arange(40) % 2
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", image=image, label=label)
    data = f"{{source: arrays, path: {tmp_path}/train.npz, test_path: {tmp_path}/test.npz}}"
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: s\noutput: {tmp_path}/runs\ntask: {{name: classification, data: {data}}}\n"
        "target: linear\nmethod: erm\ntrain: {samples: 64, batch_size: 16}\ndevice: cpu\n"
        "compare: {methods: {plain: {name: erm}}}\n"
    )
    compare(load_config(path))
    compare(load_config(path))
    np.savez(tmp_path / "test.npz", image=image, label=1 - label)
    for seeds in ("[0]", "[0, 1]"):
        with pytest.raises(SteeringError, match=r"task: test data: \w{12} found by plain-seed0"):
            compare(load_config(path, [f"compare.seeds={seeds}"]))


def test_an_unfinished_run_that_met_other_data_is_refused(with_file, tmp_path):
    """Its checkpoint says what it met; the config is the same, and so is the folder."""
    path, numbers = with_file
    train(load_config(path))
    folder = toys.folder_of(tmp_path / "runs/s", "erm-seed0")
    (folder / "record.json").unlink()
    numbers.write_text("2\n")
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    with pytest.raises(
        SteeringError, match=r"holds another run \(task: data: \w{12} stored, \w{12} wanted"
    ):
        train(load_config(path))
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    numbers.write_text("1\n")
    train(load_config(path))
    assert (folder / "record.json").is_file()


def test_several_references_by_name(tmp_path):
    path = toys.write_config(tmp_path)
    references = (
        "references={long: {name: linear, cache: auto, train: {train.samples: 160}}, "
        "short: {name: linear, train: {train.samples: 32}}}"
    )
    methods = (
        "compare.methods={plain: {name: erm}, by_long: {name: drrho, reference: long}, "
        "by_short: {name: drrho, reference: short}}"
    )
    compare(load_config(path, ["reference=null", references, methods, "compare.seeds=[0]"]))
    rows = json.loads((tmp_path / "runs/study/compare.json").read_text())
    assert [row["method"] for row in rows] == [
        "reference-long",
        "reference-short",
        "plain",
        "by_long",
        "by_short",
    ]
    assert [row["samples"] for row in rows[:2]] == [160, 32]
    assert [row["reference_samples"] for row in rows[3:]] == [0, 320]  # one is stored, one lives
    with pytest.raises(
        ConfigError,
        match=r"compare.methods.x.reference: no reference 'lang' in references; did you mean 'long'",
    ):
        load_config(path, [references, "compare.methods={x: {name: drrho, reference: lang}}"])


def test_a_run_starts_from_another_ones_weights(tmp_path):
    path, folder = toys.write_config(tmp_path), tmp_path / "runs/study"
    base = ["method=erm", "reference=null"]
    assert main(["train", str(path), *base]) == 0
    start = toys.folder_of(folder, "erm-seed0")
    assert main(["train", str(path), *base, f"start={start}", "optimizer.lr=0.0", "seed=7"]) == 0
    moved = toys.folder_of(folder, "erm-seed7")
    one, two = (load_file(place / "model.safetensors") for place in (start, moved))
    moved_not = one.keys() - {
        "logit_scale"
    }  # which is the method's temperature, learned in the first run
    assert all((one[key] == two[key]).all() for key in moved_not)  # a rate of zero moves nothing
    assert "start: weights" in json.loads((moved / "record.json").read_text())["found"]
    nowhere = load_config(path, [*base, f"start={tmp_path / 'none'}"])
    with pytest.raises(SteeringError, match="start: no weights in"):
        train(nowhere)


def test_a_base_config_lies_below(tmp_path):
    path = toys.write_config(tmp_path)
    (tmp_path / "sub").mkdir()
    over = tmp_path / "sub/over.yaml"
    own = (
        "name: over\nmethod: erm\ntrain: {samples: 64}\ncompare: {methods: {plain: {name: erm}}}\n"
    )
    over.write_text(f"base: ../toy.yaml\n{own}")
    config = load_config(over)
    assert (config.name, config.method.name, config.train.samples, config.train.batch_size) == (
        "over",
        "erm",
        64,
        16,
    )
    assert [*config.compare.methods] == ["plain"]
    assert config.compare.seeds == load_config(path).compare.seeds
    over.write_text("base: over.yaml\n")
    with pytest.raises(ConfigError, match="base: expected another config file"):
        load_config(over)


def test_two_files_may_use_one_name_and_the_page_shows_this_one(tmp_path):
    code = (HERE / "lr_study.py").read_text()
    (tmp_path / "other.py").write_text(code.replace("seeds: int = 3", "seeds: int = 7"))
    assert find_study(OWN).options().seeds == 3
    assert find_study(f"{tmp_path / 'other.py'}:lr").options().seeds == 7
    assert find_study(OWN).options().seeds == 3
    assert code in (HERE.parents[1] / "docs/guide-study.md").read_text()


def test_unknown_studies_are_told_with_the_known_ones():
    with pytest.raises(SteeringError, match=r"study: no study 'x'; known: .*compare"):
        find_study("x")
    with pytest.raises(SteeringError, match="registers no study 'x'"):
        find_study(f"{HERE / 'lr_study.py'}:x")
