"""Runs that are functions of a study's own: keys, parents, records, and what is refused."""

import pytest
import torch
import toys

from steering.config import load_config
from steering.errors import SteeringError
from steering.runs.call import Outcome, calling, find_function
from steering.runs.driver import carry_out, least_used, visible_gpus
from steering.runs.execute import execute
from steering.runs.record import read_record
from steering.runs.store import Store
from steering.runs.transport import read_ask, write_ask
from steering.runs.workshop import Workshop
from steering.studies import find_study
from steering.training.session import session

OWN = """
import numpy as np
from dataclasses import dataclass
from steering.analysis.page import Report
from steering.runs.call import Outcome
from steering.runs.record import Cost, Metric, Scores
from steering.studies import study


def double(call):
    before = call.parent("before")
    value = 2.0 * (call.options["value"] if before is None else before.metrics["value"])
    call.write("note.txt", f"{value}")
    scores = {"value": Scores(np.full(3, value), np.ones(3))}
    return Outcome({"value": value}, {"value": Metric(percent=False, of=("value",))}, scores,
                   Cost(seconds=1.0, flops=7), {"said": "so"}, {"task: what": "met"})


@dataclass(frozen=True)
class Options:
    steps: int = 2


@study("doubling", Options)
class Doubling:
    def __init__(self, options):
        self.options = options

    def wanted(self, base, done):
        from steering.runs.call import calling

        found = []
        for number in range(self.options.steps):
            parents = {"before": found[-1]} if found else {}
            found.append(calling(base, f"{__file__}:double", {"value": 1}, f"step-{number}",
                                 {"step": number}, **parents))
        return found

    def report(self, done, title):
        return Report("doubling", title, "", rows=[dict(one.metrics) for one in done])
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path, load_config(toys.write_config(tmp_path), ["method=erm", "reference=null"])


def asked(place, value=1, **changes):
    folder, config = place
    return calling(config, f"{folder}/own.py:double", {"value": value}, "double", **changes)


def test_a_function_becomes_a_record(place):
    folder, _ = place
    ask = asked(place)
    with session("cpu", None) as device:
        workshop = Workshop(Store(folder / "runs"), device)
        record = execute(ask, workshop)
        child = execute(asked(place, before=ask), workshop)
    again = read_record(record.folder)
    assert again == record
    assert (again.kind, again.metrics, again.summary) == ("call", {"value": 2.0}, {"said": "so"})
    assert (again.cost.flops, again.found) == (7, {"task: what": "met"})
    assert again.scores()["value"].values.tolist() == [2.0] * 3
    assert (again.folder / "note.txt").read_text() == "2.0"
    assert child.metrics == {"value": 4.0}
    assert child.parents == {"before": record.key}


def test_the_key_is_the_function_its_options_its_files_and_its_parents(place):
    folder, _ = place
    data = folder / "data.txt"
    data.write_text("a")
    first = asked(place).key
    assert asked(place, axes={"name": "plays no part"}).key == first
    with_file = asked(place, files=[str(data)]).key
    keys = {first, asked(place, 2).key, with_file, asked(place, before=asked(place)).key}
    data.write_text("bb")
    keys.add(asked(place, files=[str(data)]).key)
    (folder / "own.py").write_text(OWN.replace("2.0 *", "3.0 *"))
    keys.add(asked(place).key)
    assert len(keys) == 6
    path = folder / "ask.json"
    write_ask(path, asked(place, before=asked(place)))
    assert read_ask(path).key == asked(place, before=asked(place)).key


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_of_functions(place, jobs):
    folder, _ = place
    config = load_config(
        toys.write_config(folder),
        ["method=erm", "reference=null", f"jobs={jobs}", "train.threads=1"],
    )
    entry = find_study(f"{folder}/own.py:doubling")
    with session("cpu", 1) as device:
        workshop = Workshop(Store(folder / "runs"), device)
        report = carry_out(
            f"{folder}/own.py:doubling",
            entry.make(entry.options()),
            entry.options(),
            config,
            workshop,
        )
    assert [row["value"] for row in report.rows] == [2.0, 4.0]


def test_what_is_no_function_is_told(place):
    folder, _ = place
    for name, said in {
        f"{folder}/own.py:gone": "has no function 'gone'",
        f"{folder}/none.py:double": "no such file",
        "no_module_of_ours:double": "cannot import 'no_module_of_ours'",
    }.items():
        with pytest.raises(SteeringError, match=said):
            find_function(name)
    assert find_function(f"{folder}/own.py:double").__name__ == "double"
    assert Outcome().metrics == {}


def test_a_job_gets_the_gpu_that_has_least_to_do(monkeypatch):
    """By the names that the user left visible, and not by how many jobs run."""
    assert least_used([], []) is None
    gpus = ["2", "GPU-3f"]
    assert least_used(gpus, []) == "2"
    assert least_used(gpus, ["2"]) == "GPU-3f"
    assert least_used(gpus, ["GPU-3f"]) == "2"  # the first job has ended, the second runs
    assert least_used(gpus, ["2", "GPU-3f", "2"]) == "GPU-3f"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))
    assert visible_gpus(torch.device("cuda")) == gpus
    assert visible_gpus(torch.device("cpu")) == []
    # A device with a number is that one alone, by the number that the user gave.
    assert visible_gpus(torch.device("cuda:1")) == ["GPU-3f"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert visible_gpus(torch.device("cuda")) == ["0", "1", "2", "3"]
    assert visible_gpus(torch.device("cuda:2")) == ["2"]
