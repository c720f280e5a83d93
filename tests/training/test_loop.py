"""A run in one process: what it writes, that it is deterministic, and how it ends when something is
wrong."""

import copy
import gc
import itertools
import json
import logging
import math
import weakref
from dataclasses import replace

import pytest
import torch
import toys
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from steering.errors import SteeringError
from steering.methods.registry import Step
from steering.runs.record import read_curves
from steering.storage import file_sha256
from steering.training.log import RunLog
from steering.training.loop import run
from steering.training.plan import Plan

VARYING = ("train/samples_per_second", "train/seconds")


def _rows(folder):
    """Rows of metrics.jsonl without the clock's numbers."""
    return [
        {k: v for k, v in row.items() if k not in VARYING}
        for row in read_curves(folder / "metrics.jsonl")
    ]


def _result(folder):
    stored = json.loads((folder / "result.json").read_text())
    return {k: v for k, v in stored.items() if k not in ("seconds", "evaluation_seconds")}


def _require_same(one, other):
    """Two finished runs are bit-identical: weights, the whole last checkpoint, rows and results."""
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    states = [
        torch.load(sorted((f / "checkpoints").glob("*.pt"))[-1], weights_only=True)
        for f in (one, other)
    ]
    for state in states:
        del state["seconds"], state["evaluation_seconds"]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert _rows(one) == _rows(other)
    assert _result(one) == _result(other)


# A run with everything that has a state: moving average, learned temperature, dropout,
# augmentation, moments of AdamW.
RICH = {
    "gamma": 0.4,
    "gamma_decay_epochs": 3,
    "radius": 0.3,
    "tau": 0.2,
    "dropout": 0.3,
    "augment": True,
}


class Killed(Exception):  # noqa: N818
    """The end of a process, simulated."""


def _after_call(job, change):
    """Let `change(call, losses, step)` replace what the method returns at its 1st, 2nd, ...
    call."""
    calls = itertools.count(1)
    job.method.register_forward_hook(lambda _, inputs, step: change(next(calls), inputs[0], step))
    return job


def _killed_at(job, call):
    def stop(number, _, step):
        if number == call:
            raise Killed
        return step

    return _after_call(job, stop)


def test_same_seed_same_bits(tmp_path):
    for name in "ab":
        torch.manual_seed(99 + len(name))  # what came before must not matter
        run(toys.make_job(tmp_path / name, **RICH))
    _require_same(tmp_path / "a", tmp_path / "b")
    run(toys.make_job(tmp_path / "c", seed=1, **RICH))
    assert (tmp_path / "a/model.safetensors").read_bytes() != (
        tmp_path / "c/model.safetensors"
    ).read_bytes()


def test_the_number_of_workers_changes_nothing(tmp_path):
    for workers in (0, 2):
        run(
            toys.make_job(
                tmp_path / str(workers), workers=workers, samples=128, unreadable=3, **RICH
            )
        )
    _require_same(tmp_path / "0", tmp_path / "2")
    assert _result(tmp_path / "2")["skipped"] == 2


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("call", [3, 13, 20])
def test_a_run_killed_anywhere_and_resumed_is_the_same(tmp_path, call, accumulation):
    options = RICH | {
        "save_every": 4,
        "eval_every": 5,
        "accumulation": accumulation,
        "unreadable": 3,
    }
    run(toys.make_job(tmp_path / "whole", **options))
    with pytest.raises(Killed):
        run(_killed_at(toys.make_job(tmp_path / "cut", **options), call))
    run(toys.make_job(tmp_path / "cut", **options))
    _require_same(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("moment", ["before the last evaluation", "after it"])
def test_a_run_killed_after_its_last_step_is_evaluated_once(tmp_path, moment, monkeypatch):
    run(toys.make_job(tmp_path / "whole", **RICH))
    job = toys.make_job(tmp_path / "cut", **RICH)

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        place = (
            (job.task, "evaluate")
            if moment == "before the last evaluation"
            else (RunLog, "figures")
        )
        patch.setattr(*place, die)
        with pytest.raises(Killed):
            run(job)
    assert not (tmp_path / "cut/result.json").exists()
    run(toys.make_job(tmp_path / "cut", **RICH))
    _require_same(tmp_path / "whole", tmp_path / "cut")


def test_a_restart_cuts_off_the_log_of_a_run_that_died_before_its_first_checkpoint(tmp_path):
    with pytest.raises(Killed):
        run(_killed_at(toys.make_job(tmp_path, log_every=1), 7))
    assert len(_rows(tmp_path)) == 6
    run(toys.make_job(tmp_path, log_every=1))
    assert [row["step"] for row in _rows(tmp_path)] == [*range(1, 21), 20]


def test_a_resumed_run_cuts_off_what_it_writes_again(tmp_path):
    with pytest.raises(Killed):
        run(_killed_at(toys.make_job(tmp_path, log_every=1, save_every=4, method="erm"), 7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')  # a line that was being written
    run(toys.make_job(tmp_path, log_every=1, save_every=4, method="erm"))
    assert [row["step"] for row in _rows(tmp_path)] == [*range(1, 21), 20]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [*range(1, 21)]


@pytest.mark.parametrize("damage", ["truncated", "altered", "without checksum"])
def test_a_damaged_checkpoint_falls_back_to_the_older_one(tmp_path, damage, caplog):
    run(toys.make_job(tmp_path / "whole", save_every=8, **RICH))
    run(toys.make_job(tmp_path / "hurt", save_every=8, **RICH))
    (tmp_path / "hurt/result.json").unlink()
    folder = tmp_path / "hurt/checkpoints"
    assert sorted(path.name for path in folder.glob("*.pt")) == [
        "step-000000016.pt",
        "step-000000020.pt",
    ]
    newest = folder / "step-000000020.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "without checksum":
        newest.with_suffix(".sha256").unlink()
    else:
        newest.write_bytes(content[:-100] if damage == "truncated" else content)
    caplog.clear()
    with caplog.at_level(logging.INFO, "steering"):
        run(toys.make_job(tmp_path / "hurt", save_every=8, **RICH))
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"checkpoint {newest} is incomplete or damaged; it is ignored"
    ]
    assert f"resuming {tmp_path / 'hurt'} at step 16" in caplog.text
    _require_same(tmp_path / "whole", tmp_path / "hurt")


def test_a_file_left_by_a_killed_write_is_cleared(tmp_path):
    stale = tmp_path / "checkpoints/.step-000000003.pt.abc"
    stale.parent.mkdir()
    stale.write_bytes(b"half a checkpoint")
    run(toys.make_job(tmp_path, save_every=4))
    names = sorted(path.name for path in stale.parent.iterdir())
    assert names == [f"step-0000000{step}.{end}" for step in (16, 20) for end in ("pt", "sha256")]


def test_a_checkpoint_of_another_run_is_refused_and_both_sides_are_named(tmp_path):
    mine = {"config": "1" * 64, "data": "2" * 64}
    run(replace(toys.make_job(tmp_path), identity=mine, config="train: {lr: 1, steps: 3}\n"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    other = replace(
        toys.make_job(tmp_path),
        identity=mine | {"config": "3" * 64},
        config="train: {lr: 2, steps: 3}\n",
    )
    with pytest.raises(SteeringError) as caught:
        run(other)
    assert "config: 111111111111 stored, 333333333333 wanted" in str(caught.value)
    assert "train.lr: 1 stored, 2 wanted" in str(caught.value)
    assert "data" not in str(caught.value)
    assert "steps" not in str(caught.value)
    assert {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()
    } == before  # config.yaml too


def test_result_and_weights(tmp_path):
    job = replace(
        toys.make_job(tmp_path, samples=330, unreadable=3),
        identity={"config": "abc"},
        config="seed: 0\n",
    )
    result = run(job)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["samples"] == 320
    assert result["steps"] == 20
    assert result["skipped"] == 5  # once in each of the five epochs
    assert result["identity"] == {"config": "abc"}
    assert 0 < result["seconds"] < 60
    assert result["metrics"] == job.task.evaluate(job.target, torch.device("cpu")).values()
    # The file has the temperature of the method as its logit scale, which the model in training
    # knows nothing of.
    state = dict(job.target.module.state_dict()) | {"logit_scale": torch.tensor(math.log(1 / 0.07))}
    torch.testing.assert_close(load_file(tmp_path / "model.safetensors"), state)
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"steering": '{"config": "abc"}'}


def test_training_reduces_the_loss(tmp_path):
    for kind in ("pairs", "units"):
        run(toys.make_job(tmp_path / kind, kind=kind, method="erm", samples=960))
        losses = [row["train/loss"] for row in _rows(tmp_path / kind) if "train/loss" in row]
        assert losses[-1] < 0.7 * losses[0]


def test_tensorboard_and_metrics_tell_the_same(tmp_path):
    run(toys.make_job(tmp_path, eval_every=10, unreadable=3, **RICH))
    events = EventAccumulator(str(tmp_path)).Reload()
    names = [
        "loss",
        "excess_mean",
        "excess_variance",
        "effective_sample_share",
        "tau",
        "learning_rate",
    ]
    names += ["samples_per_second", "seconds", "epoch", "skipped", "weight_sum", "strength"]
    metrics = [
        f"eval/{group}/image_to_text_R@{k}" for group in ("seen", "easy_split") for k in (1, 5)
    ]
    board = {"loss/objective", "loss/train_mean"} | {
        f"steer/{name}"
        for name in (
            "ess",
            "weight_max",
            "kl_spent",
            "excess_mean",
            "excess_std",
            "strength",
            "prior",
            "tau",
        )
    }
    # What depends on the machine and the hour is shown, and is no result.
    speed = {"perf/step_seconds", "perf/evaluation_share"}
    told = {f"train/{name}" for name in names} | set(metrics) | board
    assert told | speed == set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["picture"]
    assert [event.step for event in events.Images("picture")] == [10, 20]
    rows = read_curves(tmp_path / "metrics.jsonl")
    for tag in told:
        written = [(event.step, event.value) for event in events.Scalars(tag)]
        assert written == [
            (row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows if tag in row
        ]
    assert [row["step"] for row in rows] == [5, 10, 10, 15, 20, 20]
    assert [row["train/epoch"] for row in rows if "train/epoch" in row] == [1, 2, 3, 4]
    assert rows[-2]["train/learning_rate"] < 0.01 * 0.02


def test_evaluation_changes_nothing(tmp_path):
    run(toys.make_job(tmp_path / "rarely", **RICH))
    job = toys.make_job(tmp_path / "often", eval_every=1, **RICH)
    evaluate = job.task.evaluate

    def greedy(model, device):
        assert not model.module.training
        torch.rand(7)  # an evaluation may use random numbers
        return evaluate(model, device)

    job.task.evaluate = greedy
    run(job)
    assert (tmp_path / "rarely/model.safetensors").read_bytes() == (
        tmp_path / "often/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("kind", ["pairs", "units"])
def test_the_reference_stays_frozen(tmp_path, kind):
    """Fact 14."""
    job = toys.make_job(tmp_path, kind=kind, accumulation=2)
    module = job.reference.module
    before = copy.deepcopy(module.state_dict())
    start = copy.deepcopy(job.target.module.state_dict())
    run(job)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert not any(part.training for part in module.modules())
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    state = torch.load(tmp_path / "checkpoints/step-000000020.pt", weights_only=True)["optimizer"]
    trained = [p for p in job.target.module.parameters() if p.requires_grad]
    assert sum(len(group["params"]) for group in state["param_groups"]) == len(trained)
    assert all(
        not torch.equal(value, start[key])
        for key, value in job.target.module.state_dict().items()
        if value.ndim
    )
    if kind == "pairs":
        assert torch.equal(job.target.module.logit_scale, start["logit_scale"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_autocast_runs_and_losses_stay_float32(tmp_path, precision, accumulation):
    seen = []
    job = toys.make_job(tmp_path / precision, precision=precision, accumulation=accumulation)
    losses = job.task.risk.losses

    def watch(target, reference, batch):
        seen.extend([*target.values(), *reference.values()])
        return losses(target, reference, batch)

    job.task.risk.losses = watch
    forward = []
    job.target.module.text.register_forward_hook(
        lambda _module, _inputs, output: forward.append(output.dtype)
    )
    result = run(job)
    assert {value.dtype for value in seen} == {torch.float32}
    assert {torch.bfloat16 if precision == "bf16" else torch.float16} == set(
        forward[: 20 * accumulation]
    )
    assert all(torch.isfinite(value).all() for value in job.target.module.state_dict().values())
    exact = toys.make_job(tmp_path / "fp32")
    run(exact)
    near = {"rtol": 0.1, "atol": 0.05}
    torch.testing.assert_close(
        job.target.module.image[1].weight, exact.target.module.image[1].weight, **near
    )
    assert result["steps"] == 20


def test_clipping_bounds_the_update_and_null_means_none(tmp_path):
    weights = {}
    for clip in (None, 1e9, 1e-3):
        job = toys.make_job(
            tmp_path / str(clip), clip_norm=clip, eps=1.0, weight_decay=0.0
        )  # eps 1: AdamW is near SGD
        start = job.target.module.text.weight.detach().clone()
        run(job)
        weights[clip] = (job.target.module.text.weight.detach() - start).norm().item()
    assert weights[None] == weights[1e9]
    assert 0 < weights[1e-3] < 0.1 * weights[None]


def _nan_gradient_from(job, call):
    """A finite loss whose gradient is NaN from one call on: the root of zero."""

    def spoil(number, losses, step):
        return (
            step
            if number < call
            else Step(step.loss + (losses.image * 0).sum().sqrt(), step.metrics)
        )

    return _after_call(job, spoil)


def _no_nan_was_saved(folder):
    assert not (folder / "result.json").exists()
    assert not (folder / "model.safetensors").exists()
    for path in (folder / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in state["target"].values())


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("call", [7, 8, 20])
def test_a_nan_gradient_ends_the_run_at_its_step(tmp_path, clip_norm, call):
    job = _nan_gradient_from(toys.make_job(tmp_path, clip_norm=clip_norm, save_every=4), call)
    with pytest.raises(
        SteeringError,
        match=rf"the loss or its gradient was not finite by step {call} of 20 in .*lower",
    ):
        run(job)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == min(2, (call - 1) // 4)
    _no_nan_was_saved(tmp_path)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_nan_loss_ends_the_run_at_its_step(tmp_path, accumulation, precision):
    plan = Plan(n=64, batch_size=16, samples=320, seed=0)
    options = {"save_every": 1, "accumulation": accumulation, "precision": precision}
    job = toys.make_job(tmp_path, nan_at=int(plan.indices(3)[0]), **options)
    with pytest.raises(SteeringError, match="not finite by step 4 of 20"):
        run(job)
    assert len(list((tmp_path / "checkpoints").glob("*.pt"))) == 2
    _no_nan_was_saved(tmp_path)


def test_fp16_skips_an_overflow_but_not_for_ever(tmp_path):
    job = toys.make_job(tmp_path / "once", precision="fp16")
    _after_call(
        job, lambda number, _, step: Step(step.loss * (1e36 if number == 5 else 1.0), step.metrics)
    )
    assert run(job)["steps"] == 20
    assert all(torch.isfinite(value).all() for value in job.target.module.state_dict().values())
    job = _nan_gradient_from(toys.make_job(tmp_path / "always", precision="fp16", samples=1600), 3)
    with pytest.raises(SteeringError, match=r"not finite by step \d+ of 100"):
        run(job)
    _no_nan_was_saved(tmp_path / "always")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_error_speaks_for_itself(tmp_path, workers):
    with pytest.raises(SteeringError) as caught:
        run(toys.make_job(tmp_path, broken_at=5, workers=workers))
    assert str(caught.value) == "vectors.tar: example 5 is damaged"  # not a worker's traceback


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(
        SteeringError,
        match=r"train.batch_size: 16 does not split into equal parts for 1 processes times",
    ):
        run(toys.make_job(tmp_path, accumulation=3))


def test_a_method_without_reference_needs_none(tmp_path):
    job = toys.make_job(tmp_path, method="dro", guided=False)
    assert run(job)["steps"] == 20


def test_modules_are_in_train_mode_while_training(tmp_path):
    modes = []
    job = toys.make_job(tmp_path, dropout=0.1, eval_every=7)
    job.target.module.register_forward_hook(lambda module, *_: modes.append(module.training))
    run(job)
    assert modes.count(True) == 20
    assert modes.count(False) == 3
    assert isinstance(job.target.module.image[0], nn.Dropout)


def test_a_method_is_told_every_epoch_and_again_after_a_resume(tmp_path):
    def told(job):
        start, epochs = job.method.start_epoch, []
        job.method.start_epoch = lambda epoch: (epochs.append(epoch), start(epoch))
        return epochs

    job = _killed_at(toys.make_job(tmp_path, save_every=6), 14)  # four steps are an epoch
    epochs = told(job)
    with pytest.raises(Killed):
        run(job)
    assert epochs == [0, 1, 2, 3]
    job = toys.make_job(tmp_path, save_every=6)
    epochs = told(job)
    run(job)
    assert epochs == [3, 4]


@pytest.mark.parametrize("kind", ["pairs", "units"])
def test_a_run_that_is_over_keeps_no_memory(tmp_path, kind):
    """Without the help of the cycle collector, which does not know how much memory of a GPU hangs
    on a cycle."""
    run(toys.make_job(tmp_path / "first", kind=kind))  # what torch makes once and keeps
    gc.collect()
    gc.disable()
    try:
        job = toys.make_job(tmp_path / "second", kind=kind)
        run(job)
        target, method = weakref.ref(job.target.module), weakref.ref(job.method)
        del job
        assert target() is None
        assert method() is None
    finally:
        gc.enable()


def test_a_method_is_told_how_far_the_run_is_before_every_step_and_after_a_resume(tmp_path):
    def told(job):
        found = []
        job.method.at = found.append
        job.method.register_forward_pre_hook(lambda *_: found.append("step"))
        return found

    job = _killed_at(toys.make_job(tmp_path, save_every=6), 14)
    found = told(job)
    with pytest.raises(Killed):
        run(job)
    assert found == [entry for step in range(14) for entry in (step / 20, "step")]
    job = toys.make_job(tmp_path, save_every=6)
    found = told(job)
    run(job)
    assert found == [entry for step in range(12, 20) for entry in (step / 20, "step")]


def test_metrics_are_asked_for_where_they_are_logged_alone(tmp_path, monkeypatch):
    asked = []
    scalars = Step.scalars
    monkeypatch.setattr(Step, "scalars", lambda step: asked.append(1) or scalars(step))
    run(toys.make_job(tmp_path, log_every=5))
    assert len(asked) == 4


def test_the_rate_of_a_resumed_run_is_that_of_its_own_steps(tmp_path):
    job = _killed_at(toys.make_job(tmp_path, save_every=10, log_every=10), 12)
    with pytest.raises(Killed):
        run(job)
    checkpoint = tmp_path / "checkpoints/step-000000010.pt"
    state = torch.load(checkpoint, weights_only=True)
    state["seconds"] = 1e6  # a long history: it must not make the rest look slow
    torch.save(state, checkpoint)
    checkpoint.with_suffix(".sha256").write_text(file_sha256(checkpoint))
    result = run(toys.make_job(tmp_path, save_every=10, log_every=10))
    rate = [
        row["train/samples_per_second"] for row in read_curves(tmp_path / "metrics.jsonl")[-2:-1]
    ]
    assert rate[0] > 10
    assert 1e6 < result["seconds"] < 1e6 + 60
