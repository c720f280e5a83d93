"""What looks on while a run trains: the moving average, and observers from outside."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import toys
from safetensors.torch import load_file

from steering.cli import main
from steering.config import config_of, load_config, to_yaml
from steering.errors import ConfigError
from steering.runs.ask import training
from steering.runs.record import read_curves
from steering.training.loop import run
from steering.training.observers import EmaOptions, Observer, ObserverOptions

EMA = {"observers": (EmaOptions(decay=0.8),), "dropout": 0.3, "augment": True}


class Killed(Exception):  # noqa: N818
    """The end of a process, simulated."""


class Recorder(Observer, ObserverOptions):
    """The target's weights before the first step and after each one."""

    def __init__(self, stop_at=None):
        self.weights, self.stop_at = [], stop_at

    def observer(self):
        return self

    def start(self, run, step):  # noqa: ARG002
        self.weights.append(self.copied(run))

    def after_step(self, run, done, step):  # noqa: ARG002
        self.weights.append(self.copied(run))
        if done == self.stop_at:
            raise Killed

    def copied(self, run):
        return {key: value.double().clone() for key, value in run.module.state_dict().items()}


@pytest.mark.parametrize("warm", [True, False])
def test_the_average_by_hand(tmp_path, warm):
    recorder = Recorder()
    options = EmaOptions(decay=0.8, warm=warm)
    run(toys.make_job(tmp_path, kind="units", dtype="float64", observers=(recorder, options)))
    mean = recorder.weights[0]
    assert len(recorder.weights) == 21
    for step, now in enumerate(recorder.weights[1:], 1):
        decay = min(0.8, (1 + step) / (10 + step)) if warm else 0.8
        mean = {key: decay * mean[key] + (1 - decay) * now[key] for key in mean}
    found = load_file(tmp_path / "model-ema.safetensors")
    torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-12)
    last = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(found["weight"], last["weight"])


def test_the_average_changes_nothing_and_has_its_own_evaluation(tmp_path):
    plain = {key: value for key, value in EMA.items() if key != "observers"}
    run(toys.make_job(tmp_path / "plain", eval_every=10, **plain))
    result = run(toys.make_job(tmp_path / "ema", eval_every=10, **EMA))
    one, other = (tmp_path / name / "model.safetensors" for name in ("plain", "ema"))
    assert one.read_bytes() == other.read_bytes()
    rows = read_curves(tmp_path / "ema/metrics.jsonl")
    name = "seen/image_to_text_R@1"
    assert [row["step"] for row in rows if f"eval_ema/{name}" in row] == [10, 20]
    assert [row["step"] for row in rows if f"eval/{name}" in row] == [10, 20]
    told = result["summary"]["ema"]
    assert told["metrics"][name] == rows[-1][f"eval_ema/{name}"]
    assert told["decay"] == 0.8
    # The file is read as that of the target: with the temperature of the method.
    scale = load_file(tmp_path / "ema/model-ema.safetensors")["logit_scale"]
    assert scale.item() == pytest.approx(math.log(1 / 0.07))


def test_batch_statistics_are_those_of_the_target(tmp_path):
    job = toys.make_job(tmp_path, kind="units", observers=(EmaOptions(0.9),))
    module = torch.nn.Sequential(job.target.module, torch.nn.BatchNorm1d(toys.WIDTH))
    run(replace(job, target=replace(job.target, module=module)))
    found, target = (load_file(tmp_path / f"model{end}.safetensors") for end in ("-ema", ""))
    for key in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        assert torch.equal(found[key], target[key])
    assert not torch.equal(found["1.weight"], target["1.weight"])


@pytest.mark.parametrize("killed", [3, 13, 20])
def test_a_resumed_run_has_the_same_average(tmp_path, killed):
    options = {**EMA, "save_every": 4, "eval_every": 5}
    ema = options.pop("observers")
    run(toys.make_job(tmp_path / "whole", observers=(*ema, Recorder()), **options))
    with pytest.raises(Killed):
        run(toys.make_job(tmp_path / "cut", observers=(*ema, Recorder(killed)), **options))
    run(toys.make_job(tmp_path / "cut", observers=(*ema, Recorder()), **options))
    for name in ("model.safetensors", "model-ema.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    rows = [
        [
            {key: value for key, value in row.items() if key.startswith(("eval", "step"))}
            for row in read_curves(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


def test_observers_are_closed_when_the_run_fails(tmp_path):
    closed = []
    recorder = Recorder(stop_at=2)
    recorder.close = lambda: closed.append(True)
    with pytest.raises(Killed):
        run(toys.make_job(tmp_path, observers=(recorder,)))
    assert closed == [True]


# ---- in a config
# ----------------------------------------------------------------------------------------------


def config_with(tmp_path, *overrides):
    return load_config(toys.write_config(tmp_path), ["reference.cache=null", *overrides])


def test_a_reference_is_trained_without_the_targets_observers(tmp_path):
    with_ema = training(config_with(tmp_path, "train.observers=[ema]"))
    assert (
        with_ema.parents["reference"].key
        == training(config_with(tmp_path)).parents["reference"].key
    )


def test_a_config_lists_observers(tmp_path):
    config = config_with(tmp_path, "train.observers=[ema, {name: ema, decay: 0.9}]")
    assert config.train.observers == (EmaOptions(), EmaOptions(0.9))
    assert config_of(to_yaml(config), "config.yaml") == config
    # A run with an average leaves more behind than one without: it is another run.
    others = [config_with(tmp_path), config_with(tmp_path, "train.observers=[ema]")]
    assert len({training(one).key for one in (config, *others)}) == 3
    assert training(config_with(tmp_path, "train.observers=[]")).key == training(others[0]).key


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[em]", r"train\.observers\[0\]: no observer 'em'; known: ema"),
        ("[{decay: 0.9}]", r"train\.observers\[0\]\.name is missing"),
        ("[ema, {name: ema, decy: 1}]", r"unknown key 'train\.observers\[1\]\.decy'; did you mean"),
        (
            "[{name: ema, decay: 1.0}]",
            r"train\.observers\[0\]: decay: expected a number in \[0, 1\)",
        ),
        ("ema", r"train\.observers: expected a list of observers, got 'ema'"),
        ("[7]", r"train\.observers\[0\]: expected the name of an observer or a section, got 7"),
    ],
)
def test_a_wrong_observer_is_told_by_its_place(tmp_path, value, words):
    with pytest.raises(ConfigError, match=words):
        config_with(tmp_path, f"train.observers={value}")


OWN = """
from dataclasses import dataclass
from pathlib import Path
from steering.training.observers import OBSERVERS, Observer, ObserverOptions


class Norms(Observer):
    def __init__(self, every):
        self.every, self.norms = every, []

    def after_step(self, run, done, step):
        if done % self.every == 0:
            self.norms.append(sum(float(p.detach().norm()) for p in run.module.parameters()))

    def finish(self, run):
        return {"norms": self.norms}

    def state_dict(self):
        return {"norms": self.norms}

    def load_state_dict(self, state):
        self.norms = list(state["norms"])


@OBSERVERS.register("norms")
@dataclass(frozen=True)
class NormsOptions(ObserverOptions):
    every: int = 1

    def observer(self):
        return Norms(self.every)
"""


def test_an_observer_of_ones_own_from_a_file(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    observers = f"train.observers=[{{name: '{tmp_path}/mine.py:norms', every: 5}}, ema]"
    assert main(["train", str(path), "reference.cache=null", observers]) == 0
    records = [json.loads(found.read_text()) for found in tmp_path.rglob("record.json")]
    (record,) = [found for found in records if found["label"] != "reference"]
    assert len(record["summary"]["norms"]) == 4
    assert record["summary"]["ema"]["metrics"].keys() == record["metrics"].keys()
    assert [*Path(tmp_path).rglob("model-ema.safetensors")]
    capsys.readouterr()
