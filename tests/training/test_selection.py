"""Selectors in the loop: what is drawn, scored and trained on, and the same run again."""

import json
import re
from dataclasses import dataclass, replace

import pytest
import torch
import toys
from torch import nn

from steering.cli import main
from steering.config import config_of, load_config, to_yaml
from steering.errors import ConfigError, SteeringError
from steering.methods.jest import JestOptions
from steering.methods.registry import Needs
from steering.methods.rho_loss import RhoLossOptions
from steering.methods.selection import Selector, SelectorOptions
from steering.runs.ask import needs_of, training
from steering.training.loop import run
from steering.training.selection import Selection, who_asks
from steering.training.step import Gradient

OPTIONS = {"method": "rho_loss", "kind": "units", "share": 0.25, "n": 256}


def weights(job) -> list[torch.Tensor]:
    return [value.clone() for value in job.target.module.state_dict().values()]


def test_counts_of_a_run(tmp_path):
    result = run(toys.make_job(tmp_path, **OPTIONS))
    assert (result["steps"], result["samples"], result["drawn"], result["scored"]) == (
        20,
        320,
        1280,
        1280,
    )
    assert result["reference_samples"] == 1280
    stored = json.loads((tmp_path / "result.json").read_text())
    assert (stored["drawn"], stored["summary"]) == (1280, {})


def test_counts_of_a_run_without_selection(tmp_path):
    result = run(toys.make_job(tmp_path, method="drrho", kind="units"))
    assert (result["samples"], result["drawn"], result["scored"], result["reference_samples"]) == (
        320,
        320,
        0,
        320,
    )
    bare = run(toys.make_job(tmp_path / "bare", method="erm", kind="units", guided=False))
    assert bare["reference_samples"] == 0


def test_keeping_all_is_plain_training_to_the_bit(tmp_path):
    all_of_them = toys.make_job(tmp_path / "rho", **{**OPTIONS, "share": 1.0})
    plain = toys.make_job(tmp_path / "erm", method="erm", kind="units", n=256)
    run(all_of_them)
    run(plain)
    for x, y in zip(weights(all_of_them), weights(plain), strict=True):
        assert torch.equal(x, y)


def gradient_of(job, batch, micro_batches=1, count=4):
    module, selector, risk = job.target.module, job.method.selector, job.task.risk
    asked, reference = who_asks(job.reference, selector)
    selection = Selection(module, selector, risk, asked, count, micro_batches)
    module.zero_grad()
    Gradient(module, job.method, risk, reference, micro_batches)(selection(batch))
    return [parameter.grad.clone() for parameter in job.target.module.parameters()]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_gradient_is_that_of_the_chosen_examples(tmp_path, micro_batches):
    job = toys.make_job(tmp_path, **OPTIONS, dtype="float64")
    batch = job.data.batch(torch.arange(16).numpy(), 0)
    found = gradient_of(job, batch, micro_batches)
    module, guide = job.target.module, job.reference.module
    label = batch["text"].argmax(-1)
    loss = nn.functional.cross_entropy(module(batch["image"]), label, reduction="none")
    excess = loss - nn.functional.cross_entropy(guide(batch["image"]), label, reduction="none")
    module.zero_grad()
    loss[excess.topk(4).indices].mean().backward()
    for gradient, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-12)


def test_drawn_examples_are_scored_in_eval_mode_and_without_gradient(tmp_path):
    job = toys.make_job(tmp_path, **OPTIONS)
    modes = []
    job.target.module.register_forward_hook(
        lambda module, _, out: modes.append((module.training, out.requires_grad, len(out)))
    )
    asked = []
    job.reference.module.register_forward_hook(lambda _module, _inputs, out: asked.append(len(out)))
    gradient_of(job, job.data.batch(torch.arange(16).numpy(), 0))
    assert sum(asked) == 16  # the reference sees what is drawn, and nothing twice
    assert modes == [(False, False, 4)] * 4 + [
        (True, True, 4)
    ]  # in parts no larger than the batch that trains
    assert job.target.module.training


def test_a_resumed_run_is_the_same(tmp_path):
    changes = {**OPTIONS, "method": "soft_rho", "save_every": 7}
    whole = toys.make_job(tmp_path / "whole", **changes)
    run(whole)
    part = toys.make_job(tmp_path / "part", **changes)

    calls, select = iter(range(1000)), part.method.selector.choose

    def killed(items, count):
        if next(calls) == 15:
            raise KeyboardInterrupt
        return select(items, count)

    part.method.selector.choose = killed
    with pytest.raises(KeyboardInterrupt):
        run(part)
    again = toys.make_job(tmp_path / "part", **changes)
    run(again)
    for x, y in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(x, y)


def test_jest_selects_pairs(tmp_path):
    result = run(
        toys.make_job(tmp_path, method="jest", share=0.5, chunks=4, n=128, reference_scale=20.0)
    )
    assert (result["samples"], result["drawn"]) == (320, 640)


def test_more_drawn_than_there_are(tmp_path):
    job = toys.make_job(tmp_path, **{**OPTIONS, "share": 0.05})
    with pytest.raises(
        SteeringError,
        match=r"method: share 0.05 selects a batch of 16 from 320 .* only 256 training examples",
    ):
        run(replace(job))


# ---- select, then steer
# ----------------------------------------------------------------------------------------------

STEERED = {"kind": "units", "n": 256, "select": RhoLossOptions(share=0.25)}


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_what_was_selected_is_steered_with_its_own_reference_losses(tmp_path, micro_batches):
    job = toys.make_job(
        tmp_path, **STEERED, dtype="float64", tau=0.5, gamma=1.0, estimator="moving_average"
    )
    batch = job.data.batch(torch.arange(16).numpy(), 0)
    found = gradient_of(job, batch, micro_batches)
    module, reference = job.target.module, job.reference.module
    label = batch["text"].argmax(-1)
    loss = nn.functional.cross_entropy(module(batch["image"]), label, reduction="none")
    excess = loss - nn.functional.cross_entropy(reference(batch["image"]), label, reduction="none")
    rows = excess.topk(4).indices
    weights = (excess[rows].detach() / 0.5).softmax(0)  # KL, τ = 1/2: p ∝ exp(h/τ)
    module.zero_grad()
    (weights * loss[rows]).sum().backward()
    for gradient, parameter in zip(found, module.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-7)


def test_the_reference_runs_once_on_each_drawn_example(tmp_path):
    job = toys.make_job(tmp_path, **STEERED)
    asked = []
    job.reference.module.register_forward_hook(lambda _module, _inputs, out: asked.append(len(out)))
    result = run(job)
    assert sum(asked) == result["reference_samples"] == result["drawn"] == 1280
    assert (result["samples"], result["scored"]) == (320, 1280)


@dataclass(frozen=True)
class HardestOptions(SelectorOptions):
    """The largest losses, whatever the reference says."""

    share: float = 0.25

    def needs(self) -> Needs:
        return Needs()

    def selector(self) -> Selector:
        return Hardest(self.share)


class Hardest(Selector):
    def __init__(self, share: float) -> None:
        super().__init__(share)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def choose(self, items, count):
        assert items.reference is None
        self.calls += 1
        return items.target.topk(count).indices


def test_a_selector_that_needs_no_reference_leaves_it_to_the_method(tmp_path):
    job = toys.make_job(tmp_path, **{**STEERED, "select": HardestOptions()})
    asked = []
    job.reference.module.register_forward_hook(lambda _module, _inputs, out: asked.append(len(out)))
    result = run(job)
    assert sum(asked) == result["reference_samples"] == result["samples"] == 320
    assert (result["drawn"], result["scored"]) == (1280, 1280)


def test_what_a_selector_remembers_is_saved_and_goes_on(tmp_path):
    changes = {**STEERED, "select": HardestOptions(), "save_every": 5}
    job = toys.make_job(tmp_path, **changes)
    choose = job.method.selector.choose
    job.method.selector.choose = lambda items, count: (
        choose(items, count) if job.method.selector.calls < 12 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        run(job)
    again = toys.make_job(tmp_path, **changes)
    run(again)
    assert again.method.selector.calls == 20


def test_a_method_that_selects_takes_no_second_selector(tmp_path):
    with pytest.raises(
        ConfigError, match=r"method \(rho_loss\): select: it selects examples itself"
    ):
        toys.make_job(tmp_path, **OPTIONS, select=RhoLossOptions(0.5))
    with pytest.raises(ConfigError, match=r"method \(drrho\): select: share must lie in \(0, 1\]"):
        toys.make_job(tmp_path, kind="units", select=RhoLossOptions(1.5))


def test_jest_before_a_steered_loss(tmp_path):
    result = run(toys.make_job(tmp_path, n=128, select=JestOptions(0.5, 4, reference_scale=20.0)))
    assert (result["samples"], result["drawn"], result["reference_samples"]) == (320, 640, 640)


def config_with(tmp_path, *overrides):
    return load_config(toys.write_config(tmp_path), ["task.kind=units", *overrides])


def test_a_config_says_select_of_any_method(tmp_path):
    config = config_with(tmp_path, "method.select={name: rho_loss, share: 0.5}")
    assert config.method.select == RhoLossOptions(0.5)
    assert config_of(to_yaml(config), "config.yaml") == config
    assert needs_of(config).reference
    plain = config_with(tmp_path, "method=erm", "method.select=rho_loss", "method.select.share=0.3")
    assert plain.method.select == RhoLossOptions(0.3)
    assert needs_of(plain).reference
    assert not needs_of(config_with(tmp_path, "method=erm")).reference
    keys = {training(one).key for one in (config, config_with(tmp_path), plain)}
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method.select=rho_los"], "method.select: no selector 'rho_los'; known: jest, rho_loss"),
        (["method.select={share: 0.5}"], "method.select.name is missing"),
        (["method.select={name: rho_loss, keep: 0.5}"], "unknown key 'method.select.keep'"),
        (["method.select={name: rho_loss, share: x}"], "method.select.share: expected float"),
        (["method.select=3"], "method.select: expected the name of a selector or a section"),
    ],
)
def test_a_wrong_select_is_told_by_its_key(tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_with(tmp_path, *overrides)


def test_a_selector_of_one_own_from_a_file_trains_by_command(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    line = ["train", str(path), "task.kind=units", "train.samples=32", "reference.cache=null"]
    select = f"method.select={{name: '{tmp_path}/mine.py:first', share: 0.5}}"
    assert main([*line, select]) == 0
    (record,) = [
        found
        for found in map(json.loads, (p.read_text() for p in tmp_path.rglob("record.json")))
        if found["label"] != "reference"
    ]
    assert (record["cost"]["drawn"], record["cost"]["trained"]) == (64, 32)
    capsys.readouterr()
    assert main(["train", str(path), "method.select=rho_loss"]) == 2  # pairs
    assert "chooses by losses of example or sequence, not of pair" in capsys.readouterr().err


OWN = """
from dataclasses import dataclass
import torch
from steering.methods.selection import SELECTORS, Selector, SelectorOptions


class First(Selector):
    def choose(self, items, count):
        return torch.arange(count)


@SELECTORS.register("first")
@dataclass(frozen=True)
class FirstOptions(SelectorOptions):
    share: float = 0.5

    def selector(self):
        return First(self.share)
"""
