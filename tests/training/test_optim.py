"""Learning rates and parameter groups."""

import math

import pytest
import torch
import toys
from adversaries import options_of
from torch import nn

from steering.methods import build_method
from steering.training.optim import build_optimizer, learning_rate_factor, set_learning_rate


def _factors(steps, warmup, schedule="cosine", final=0.0):
    return [learning_rate_factor(step, steps, warmup, schedule, final) for step in range(steps)]


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
    assert learning_rate_factor(10, 10, 0, "cosine", 0.1) == pytest.approx(0.1)
    assert learning_rate_factor(5, 10, 0, "cosine", 0.1) == pytest.approx(0.55)


def test_constant_schedule():
    assert _factors(6, warmup=2, schedule="constant") == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_a_warmup_longer_than_the_run_never_divides_by_zero():
    assert _factors(3, warmup=5) == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def _optimizer(target, method_name="erm", **changes):
    method = build_method(method_name, options_of(method_name, **changes), 8)
    options = {
        "lr": 0.1,
        "weight_decay": 0.3,
        "betas": (0.8, 0.9),
        "eps": 1e-5,
        "temperature_lr": 0.01,
    }
    return method, build_optimizer(target, method, **options)


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


def test_set_learning_rate_scales_each_groups_peak():
    _, optimizer = _optimizer(nn.Linear(2, 2))
    for factor in (0.5, 0.2):
        set_learning_rate(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [0.1 * factor] * 2 + [0.01 * factor]
        )
