"""Methods that choose among candidates, in the loop: what is drawn, scored and trained on, and the
same run again."""

import json
from dataclasses import replace

import pytest
import torch
import toys
from torch import nn

from steering.errors import SteeringError
from steering.training.loop import run
from steering.training.step import Gradient

OPTIONS = {"method": "rho_loss", "kind": "units", "keep": 0.25, "n": 256}


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
    all_of_them = toys.make_job(tmp_path / "rho", **{**OPTIONS, "keep": 1.0})
    plain = toys.make_job(tmp_path / "erm", method="erm", kind="units", n=256)
    run(all_of_them)
    run(plain)
    for x, y in zip(weights(all_of_them), weights(plain), strict=True):
        assert torch.equal(x, y)


def gradient_of(job, batch, micro_batches=1, chosen=4):
    step = Gradient(
        job.target.module, job.method, job.task.risk, job.reference, micro_batches, chosen=chosen
    )
    job.target.module.zero_grad()
    step(batch)
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


def test_candidates_are_scored_in_eval_mode_and_without_gradient(tmp_path):
    job = toys.make_job(tmp_path, **OPTIONS)
    modes = []
    job.target.module.register_forward_hook(
        lambda module, _, out: modes.append((module.training, out.requires_grad, len(out)))
    )
    asked = []
    job.reference.module.register_forward_hook(lambda _module, _inputs, out: asked.append(len(out)))
    gradient_of(job, job.data.batch(torch.arange(16).numpy(), 0))
    assert sum(asked) == 16  # the reference sees the candidates, and nothing twice
    assert modes == [(False, False, 4)] * 4 + [
        (True, True, 4)
    ]  # in parts no larger than the batch that trains
    assert job.target.module.training


def test_a_resumed_run_is_the_same(tmp_path):
    changes = {**OPTIONS, "method": "soft_rho", "save_every": 7}
    whole = toys.make_job(tmp_path / "whole", **changes)
    run(whole)
    part = toys.make_job(tmp_path / "part", **changes)

    calls, select = iter(range(1000)), part.method.select

    def killed(losses, count):
        if next(calls) == 15:
            raise KeyboardInterrupt
        return select(losses, count)

    part.method.select = killed
    with pytest.raises(KeyboardInterrupt):
        run(part)
    again = toys.make_job(tmp_path / "part", **changes)
    run(again)
    for x, y in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(x, y)


def test_jest_selects_pairs(tmp_path):
    result = run(
        toys.make_job(tmp_path, method="jest", keep=0.5, chunks=4, n=128, reference_scale=20.0)
    )
    assert (result["samples"], result["drawn"]) == (320, 640)


def test_more_candidates_than_examples(tmp_path):
    job = toys.make_job(tmp_path, **{**OPTIONS, "keep": 0.05})
    with pytest.raises(
        SteeringError, match=r"method.keep: 0.05 of 320 candidates .* only 256 training examples"
    ):
        run(replace(job))
