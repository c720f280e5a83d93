"""Micro-batches give the gradient of the whole batch, to rounding, for losses that do not split."""

import copy

import numpy as np
import pytest
import torch
import toys

from steering.reference import LiveReference
from steering.training.step import Gradient, random_state, set_random_state

CPU = torch.device("cpu")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _gradients(job, micro_batches, batch):
    """Loss and the gradient of every trained parameter of target and method, from fresh copies;
    float64."""
    target, method = copy.deepcopy(job.target.module), copy.deepcopy(job.method).double()
    step = Gradient(target, method, job.task.risk, job.reference, micro_batches)(batch)
    named = {**dict(target.named_parameters()), **dict(method.named_parameters())}
    return step.loss.detach(), {name: p.grad for name, p in named.items() if p.requires_grad}


def _batch(job, b=8):
    return {
        key: value for key, value in job.data.batch(np.arange(b), 0).items() if key != "skipped"
    }


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
@pytest.mark.parametrize("kind", ["pairs", "units"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("erm", {}),
        ("dro", {}),
        ("drrho", {"tau": 0.1}),
        ("drrho", {"radius": 0.5, "gamma": 0.5, "tau": 0.3}),
    ],
)
def test_gradient_is_that_of_the_whole_batch(tmp_path, kind, method, options, micro_batches):
    job = toys.make_job(
        tmp_path, kind=kind, method=method, dtype="float64", guided=method == "drrho", **options
    )
    batch = _batch(job)
    loss, expected = _gradients(job, 1, batch)
    found_loss, found = _gradients(job, micro_batches, batch)
    torch.testing.assert_close(found_loss, loss, **EXACT)
    assert found.keys() == expected.keys()
    learned = "radius" in options or (method, kind) == ("erm", "pairs")
    assert any(name.endswith("log_tau") for name in found if found[name] is not None) == learned
    for name, value in expected.items():
        assert value is None or value.abs().max() > 0
        torch.testing.assert_close(found[name], value, **EXACT)


def _draw(*_):
    """A method may use random numbers too; they must not be drawn again by the next step."""
    torch.rand(3)


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_dropout_is_replayed(tmp_path, micro_batches):
    """The oracle runs each micro-batch once, with a graph, and one backward pass through all of
    them."""
    job = toys.make_job(tmp_path, dtype="float64", dropout=0.5, tau=0.1)
    job.method.register_forward_hook(_draw)
    batch = _batch(job)
    torch.manual_seed(5)
    loss, found = _gradients(job, micro_batches, batch)
    after = random_state(CPU)[0]

    torch.manual_seed(5)
    target, risk = copy.deepcopy(job.target.module), job.task.risk
    size = 8 // micro_batches
    parts = [
        risk.outputs(target, {key: value[first : first + size] for key, value in batch.items()})
        for first in range(0, 8, size)
    ]
    outputs = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    step = copy.deepcopy(job.method).double()(
        risk.losses(outputs, job.reference.outputs(batch), batch)
    )
    step.loss.backward()

    torch.testing.assert_close(loss, step.loss.detach(), **EXACT)
    for name, parameter in target.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(found[name], parameter.grad, **EXACT)
    assert torch.equal(
        after, random_state(CPU)[0]
    )  # and the generator goes on as if each had been run once


def test_dropout_differs_between_micro_batches_and_steps(tmp_path):
    job = toys.make_job(tmp_path, dtype="float64", dropout=0.5)
    seen = []
    job.target.module.image[0].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output == 0)
    )
    gradient = Gradient(job.target.module, job.method.double(), job.task.risk, job.reference, 2)
    batch = _batch(job)
    gradient(batch)
    gradient(batch)
    first, second, again_first, again_second, next_first, *_ = seen
    assert torch.equal(first, again_first)
    assert torch.equal(second, again_second)
    assert not torch.equal(first, second)
    assert not torch.equal(first, next_first)


def test_the_reference_sees_its_own_view_part_by_part(tmp_path):
    job = toys.make_job(tmp_path, dtype="float64", tau=0.1)
    own = _batch(job)
    batch = own | {"reference_image": own["image"].flip(-1)}
    expected = job.task.risk.outputs(job.reference.module, own | {"image": own["image"].flip(-1)})
    torch.testing.assert_close(job.reference.outputs(batch), expected, rtol=0, atol=0)
    (loss, whole), (parts_loss, parts) = _gradients(job, 1, batch), _gradients(job, 4, batch)
    torch.testing.assert_close(parts_loss, loss, **EXACT)
    torch.testing.assert_close(parts, whole, **EXACT)
    assert abs(_gradients(job, 1, own)[0] - loss) > 1e-3


def test_gradients_add_up_over_calls(tmp_path):
    job = toys.make_job(tmp_path, dtype="float64", tau=0.1)
    gradient = Gradient(job.target.module, job.method.double(), job.task.risk, job.reference, 2)
    gradient(_batch(job))
    once = job.target.module.text.weight.grad.clone()
    gradient(_batch(job))
    torch.testing.assert_close(job.target.module.text.weight.grad, 2 * once, **EXACT)


def test_a_scaled_loss_scales_every_gradient_and_not_the_result(tmp_path):
    job = toys.make_job(tmp_path, dtype="float64", tau=0.1)
    batch = _batch(job)
    loss, plain = _gradients(job, 2, batch)
    target = copy.deepcopy(job.target.module)
    scaled = Gradient(
        target,
        copy.deepcopy(job.method).double(),
        job.task.risk,
        job.reference,
        2,
        scale=lambda x: 8 * x,
    )
    torch.testing.assert_close(scaled(batch).loss.detach(), loss, **EXACT)
    torch.testing.assert_close(target.text.weight.grad, 8 * plain["text.weight"], **EXACT)


def test_random_state_round_trip():
    state = random_state(CPU)
    first = torch.rand(3)
    set_random_state(CPU, state)
    assert torch.equal(torch.rand(3), first)


def test_a_live_reference_is_frozen_for_good(tmp_path):
    job = toys.make_job(tmp_path)
    module = job.task.build(toys.ModelSpec("linear", options={"dropout": 0.5})).module
    assert module.training
    reference = LiveReference(module, job.task.risk)
    assert not any(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    outputs = reference.outputs(_batch(job))
    assert not any(value.requires_grad for value in outputs.values())
