"""Recipes: learning rates, weight decay, parameter groups, optimisers."""

import math
import re

import pytest
import torch
import toys
from torch import nn

from steering.cli import main
from steering.config import config_of, load_config, to_yaml
from steering.errors import ConfigError
from steering.methods import build_method, find_method
from steering.methods.erm import ErmOptions
from steering.runs.ask import training
from steering.runs.record import read_curves
from steering.schedules import Constant, Linear
from steering.schema import optimizer_content
from steering.training.decay import CosineDecay, LinearDecay, NoDecay, learning_rate_factor
from steering.training.loop import run
from steering.training.recipes import Adam, AdamW, Muon, Sgd, set_rates

COSINE = CosineDecay()


def _factors(steps, warmup, decay=COSINE, final=0.0):
    return [learning_rate_factor(step, steps, warmup, decay, final) for step in range(steps)]


def test_warmup_in_steps_then_a_cosine():
    factors = _factors(10, warmup=4)
    assert factors[:5] == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5, 1])
    assert factors[4:] == pytest.approx([(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)])


def test_a_warmup_below_one_is_a_share_of_the_steps():
    assert _factors(20, warmup=0.2) == _factors(20, warmup=4)
    assert _factors(20, warmup=0.0) == pytest.approx(
        [(1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    )


def test_the_cosine_ends_at_final():
    assert learning_rate_factor(10, 10, 0, CosineDecay(), 0.1) == pytest.approx(0.1)
    assert learning_rate_factor(5, 10, 0, CosineDecay(), 0.1) == pytest.approx(0.55)


def test_constant_schedule():
    assert _factors(6, warmup=2, decay=NoDecay()) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_a_warmup_longer_than_the_run_never_divides_by_zero():
    assert _factors(3, warmup=5) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


RECIPE = AdamW(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-5, temperature_lr=0.01, warmup=0)


def _optimizer(target, method_name="erm", **changes):
    method = build_method(method_name, find_method(method_name).options(**changes), 8, unit="pair")
    return method, RECIPE.build(target, method)


def test_matrices_decay_vectors_do_not_and_the_temperature_has_its_own_rate():
    target = toys.Towers(0.0, torch.float32)
    method, optimizer = _optimizer(target)
    matrices, vectors, temperature = optimizer.param_groups
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [p.ndim for p in vectors["params"]] == [1, 1]
    assert [*map(id, temperature["params"])] == [*map(id, method.parameters())]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.0]
    assert [group["peak_lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.01]
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {
        ((0.8, 0.9), 1e-5)
    }


def test_frozen_parameters_such_as_the_logit_scale_are_not_in_the_optimizer():
    target = toys.Towers(0.0, torch.float32)
    _, optimizer = _optimizer(target)
    inside = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert id(target.logit_scale) not in inside
    assert len(inside) == 5


def test_a_fixed_temperature_makes_no_group():
    _, optimizer = _optimizer(nn.Linear(2, 2), "drrho")
    assert len(optimizer.param_groups) == 2
    _, optimizer = _optimizer(nn.Linear(2, 2), "drrho", radius=0.5)
    assert len(optimizer.param_groups) == 3


def test_rates_scale_each_groups_peak():
    _, optimizer = _optimizer(nn.Linear(2, 2))
    for step in (0, 3):
        set_rates(optimizer, RECIPE, step, 6)
        factor = (1 + math.cos(math.pi * step / 6)) / 2
        found = [group["lr"] for group in optimizer.param_groups]
        assert found == pytest.approx([0.1 * factor] * 2 + [0.01 * factor])


def test_a_cycle_starts_anew_from_the_peak():
    cosine = _factors(12, 0, CosineDecay(cycles=3), final=0.2)
    one = [0.2 + 0.8 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert cosine == pytest.approx(one * 3)
    assert learning_rate_factor(12, 12, 0, CosineDecay(3), 0.2) == pytest.approx(0.2)
    linear = _factors(8, 0, LinearDecay(cycles=2), final=0.5)
    assert linear == pytest.approx([1, 0.875, 0.75, 0.625] * 2)


def test_a_weight_decay_that_moves_stays_off_vectors_and_temperatures():
    recipe = AdamW(weight_decay=Linear(0.01, 0.1, cycles=2))
    target = nn.Linear(2, 2)
    optimizer = recipe.build(target, build_method("erm", ErmOptions(), 8, unit="pair"))
    found = []
    for step in range(8):
        set_rates(optimizer, recipe, step, 8)
        found.append([group["weight_decay"] for group in optimizer.param_groups])
    cycle = [0.01, 0.0325, 0.055, 0.0775]
    assert [decay for decay, *_ in found] == pytest.approx(cycle * 2)
    assert all(rest == [0.0, 0.0] for _, *rest in found)


def test_a_number_in_python_is_a_constant():
    assert AdamW(weight_decay=0.3).weight_decay == Constant(0.3)
    assert AdamW(schedule="constant").schedule == NoDecay()


def _trained_by(optimizer, weight):
    """Three steps along the gradient of ½·‖w‖²."""
    for _ in range(3):
        optimizer.zero_grad()
        weight.grad = weight.detach().clone()
        optimizer.step()
    return weight.detach().clone()


@pytest.mark.parametrize(
    ("recipe", "by_hand"),
    [
        (Sgd(0.1, 0.01, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.01)),
        (
            Sgd(0.1, momentum=0.5, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.1, 0.5, nesterov=True),
        ),
        (Adam(0.1, 0.2), lambda p: torch.optim.Adam(p, 0.1, (0.9, 0.98), 1e-6, 0.2)),
        (AdamW(0.1, 0.2), lambda p: torch.optim.AdamW(p, 0.1, (0.9, 0.98), 1e-6, 0.2)),
        (
            Muon(0.1, 0.2),
            lambda p: torch.optim.Muon(p, 0.1, 0.2, adjust_lr_fn="match_rms_adamw"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_matrix_is_trained_as_torch_trains_it(recipe, by_hand):
    torch.manual_seed(0)
    layer = nn.Linear(4, 3, bias=False)
    twin = nn.Parameter(layer.weight.detach().clone())
    method = build_method("erm", ErmOptions(), 8, unit="pair")
    found = _trained_by(recipe.build(layer, method), layer.weight)
    assert torch.equal(found, _trained_by(by_hand([twin]), twin))
    assert not torch.equal(found, torch.zeros_like(found))


class Words(nn.Module):
    """One of each kind: a table of embeddings, a matrix, a convolution, a vector."""

    def __init__(self):
        super().__init__()
        self.table, self.map = nn.Embedding(5, 4), nn.Linear(4, 3)
        self.image = nn.Conv2d(1, 2, 3, bias=False)


def test_muon_takes_the_matrices_of_layers_alone():
    target, method = Words(), build_method("erm", ErmOptions(), 8, unit="pair")
    optimizer = Muon(lr=0.1, weight_decay=0.3, temperature_lr=0.01).build(target, method)
    muon, adamw = optimizer.parts
    assert isinstance(muon, torch.optim.Muon)
    assert [[*group["params"]] for group in muon.param_groups] == [[target.map.weight]]
    decaying, vectors, temperature = ([*g["params"]] for g in adamw.param_groups)
    assert {*decaying} == {target.table.weight, target.image.weight}
    assert vectors == [target.map.bias]
    assert temperature == [*method.parameters()]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0, 0.0]
    assert [group["peak_lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1, 0.01]


class Killed(Exception):  # noqa: N818
    """The end of a process, simulated."""


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
def test_a_run_resumed_in_the_middle_of_a_cycle_is_the_same(tmp_path, optimizer):
    options = {
        "optimizer": optimizer,
        "schedule": CosineDecay(cycles=3),
        "weight_decay": Linear(0.01, 0.3, cycles=2),
        "radius": 0.3,  # a learned temperature, in a group of its own
        "save_every": 3,
    }
    run(toys.make_job(tmp_path / "whole", **options))
    job = toys.make_job(tmp_path / "cut", **options)
    calls = iter(range(100))

    def stop(*_):
        if next(calls) == 10:
            raise Killed

    job.method.register_forward_pre_hook(stop)
    with pytest.raises(Killed):
        run(job)
    run(toys.make_job(tmp_path / "cut", **options))
    states = [
        torch.load(sorted((tmp_path / name / "checkpoints").glob("*.pt"))[-1], weights_only=True)
        for name in ("whole", "cut")
    ]
    for state in states:
        del state["seconds"], state["evaluation_seconds"]
        for part in state["optimizer"].get("parts", []):
            for group in part["param_groups"]:
                group.pop("adjust_lr_fn", None)  # a word, which assert_close cannot compare
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_training_by_every_optimizer_reduces_the_loss(tmp_path):
    for name, lr in (("adam", 0.02), ("sgd", 0.5), ("muon", 0.02)):
        job = toys.make_job(
            tmp_path / name, optimizer=name, lr=lr, kind="units", method="erm", samples=960
        )
        run(job)
        rows = read_curves(tmp_path / name / "metrics.jsonl")
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses[-1] < 0.7 * losses[0], name


# ---- in a config
# ----------------------------------------------------------------------------------------------


def config_with(tmp_path, *overrides):
    return load_config(toys.write_config(tmp_path), overrides)


def test_a_config_names_an_optimizer(tmp_path):
    config = config_with(
        tmp_path,
        "optimizer={name: sgd, lr: 0.5, momentum: 0.8}",
        "optimizer.schedule={name: cosine, cycles: 4}",
        "optimizer.weight_decay={name: linear, start: 0.01, end: 0.1, cycles: 4}",
    )
    expected = Sgd(0.5, Linear(0.01, 0.1, cycles=4), schedule=CosineDecay(4), momentum=0.8)
    assert config.optimizer == expected
    assert config_of(to_yaml(config), "config.yaml") == config
    assert config_with(tmp_path, "optimizer=muon", "optimizer.lr=0.1").optimizer == Muon(0.1)
    assert config_with(tmp_path).optimizer == AdamW(0.02)  # a section without a name


def test_an_optimizer_is_part_of_a_runs_key_and_adamw_as_it_was(tmp_path):
    names = ("adamw", "adam", "sgd", "muon")
    keys = {training(config_with(tmp_path, f"optimizer.name={name}")).key for name in names}
    assert len(keys) == 4
    assert training(config_with(tmp_path)).key in keys
    assert optimizer_content(AdamW(0.02)) == {"lr": 0.02}
    assert optimizer_content(AdamW(schedule="constant", weight_decay=0.0)) == {
        "schedule": "constant",
        "weight_decay": 0.0,
    }
    assert optimizer_content(AdamW(weight_decay=0.1)) == {}
    assert optimizer_content(Adam()) == {"name": "adam"}
    assert optimizer_content(AdamW(schedule=CosineDecay(2))) == {
        "schedule": {"name": "cosine", "cycles": 2}
    }


def test_two_optimizers_train_two_references(tmp_path):
    parents = [
        training(config_with(tmp_path, f"optimizer={name}")).parents["reference"].key
        for name in ("adam", "adamw")
    ]
    assert parents[0] != parents[1]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer=adamm"], "optimizer: no optimizer 'adamm'; known: adam, adamw, muon, sgd"),
        (["optimizer.momentum=0.9"], "unknown key 'optimizer.momentum'"),
        (["optimizer={name: sgd, betas: [0.5, 0.5]}"], "'optimizer.betas'; known: optimizer.lr"),
        (["optimizer=sgd", "optimizer.momentum=1"], "optimizer.momentum: expected a number in [0"),
        (["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"], "nesterov: needs"),
        (["optimizer.schedule.cycles=0"], "optimizer.schedule: cycles must be at least 1, got 0"),
        (["optimizer.weight_decay={name: linear, start: -1, end: 0}"], "weight_decay: expected at"),
        (["optimizer.weight_decay=much"], "optimizer.weight_decay: no schedule 'much'; known: con"),
    ],
)
def test_a_wrong_optimizer_is_told_by_its_key(tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        config_with(tmp_path, *overrides)


OWN = """
from dataclasses import dataclass
import torch
from steering.training.recipes import OPTIMIZERS, Recipe, parameter_groups


@OPTIMIZERS.register("rms")
@dataclass(frozen=True)
class Rms(Recipe):
    alpha: float = 0.9

    def build(self, target, method):
        return torch.optim.RMSprop(parameter_groups(target, method, self), self.lr, self.alpha)
"""


def test_an_optimizer_of_ones_own_from_a_file(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    optimizer = f"optimizer={{name: '{tmp_path}/mine.py:rms', lr: 0.001, alpha: 0.8}}"
    assert main(["train", str(path), "reference.cache=null", optimizer]) == 0
    (state,) = [
        torch.load(found, weights_only=True)["optimizer"]
        for found in tmp_path.rglob("step-000000020.pt")
        if "drrho" in str(found)
    ]
    assert state["param_groups"][0]["alpha"] == 0.8
    capsys.readouterr()
