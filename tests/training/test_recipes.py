"""Recipes: learning rates, weight decay, parameter groups, optimisers."""

import math

import pytest
import torch
import toys
from torch import nn

from steering.methods import build_method, find_method
from steering.methods.erm import ErmOptions
from steering.schedules import Constant, Linear
from steering.training.decay import CosineDecay, LinearDecay, NoDecay, learning_rate_factor
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
    method = build_method(method_name, find_method(method_name).options(**changes), 8)
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
    optimizer = recipe.build(target, build_method("erm", ErmOptions(), 8))
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
    method = build_method("erm", ErmOptions(), 8)
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
    target, method = Words(), build_method("erm", ErmOptions(), 8)
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
