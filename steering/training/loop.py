"""The training loop: load, select, forward, steered loss, step, observe. It knows no task, no
divergence and no reference by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from steering import distributed
from steering.errors import DivergedError
from steering.methods.registry import Step
from steering.storage import write_text
from steering.training.evaluate import evaluate
from steering.training.job import Job
from steering.training.loader import load
from steering.training.log import RunLog
from steering.training.observers.board import Board
from steering.training.observers.reports import Evaluate, Log, Save
from steering.training.recipes import set_rates
from steering.training.result import write_result
from steering.training.state import State
from steering.training.tryout import in_plain_words

# fp16 halves its scale, 2^16, at every overflow: here no scale would have helped.
SMALLEST_SCALE = 2.0**-10


def run(job: Job) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint in the folder if there is one.

    Returns:
        The content of result.json: metrics and what they mean; samples that were trained on, drawn,
        scored (by a forward pass of the target that is there for selection alone) and run through a
        live reference; seconds of training and of evaluations, steps, skipped; and the summaries of
        the method and of the observers. The scores of the last evaluation are in scores.npz.

    Raises:
        DivergedError: the loss or its gradient is not finite.
        SteeringError: the batch does not split evenly, or the folder holds a checkpoint of another
            run.
    """
    chosen = [options.observer() for options in job.train.observers]
    # The order is that of a step: checkpoints are last, since they hold what the others remember.
    state = State(job, [Log(), Evaluate(), Board(), *chosen, Save()])
    start = state.restore()
    try:
        _begin(state, start)
        for step, batch in enumerate(_batches(state, start), start):
            _set(state, step)
            with in_plain_words(job.train):
                result = state.gradient(batch)  # reference, target, steered loss, backward
            _descend(state, result)
            # Where a GPU is asked, it is asked before the clock stops: what the host has launched
            # so far is training, and counts.
            _require_finite(state, step + 1)
            state.clock.stop()
            for observer in state.observers:
                observer.after_step(state, step + 1, result)
            state.clock.go()
        # After the last checkpoint, so a run that dies in here has nothing to train again.
        found = evaluate(state, job.target, state.plan.steps, "eval")
        told = _told(state)
        return write_result(state, found, told)
    finally:
        for observer in state.observers:
            observer.close()
        if state.log is not None:
            state.log.close()


def _begin(state: State, start: int) -> None:
    """Open the log where the run goes on; what an interrupted run has written beyond is cut off."""
    if distributed.rank() == 0:
        unit = state.batch_size if state.job.train.board.axis == "samples" else 1
        state.log = RunLog(state.job.folder, start, state.plan.steps, unit)
        if state.job.config is not None:
            write_text(state.job.folder / "config.yaml", state.job.config)
    for observer in state.observers:
        observer.start(state, start)
    state.clock.go()


def _batches(state: State, start: int) -> Iterator[dict[str, Tensor]]:
    """What each step from `start` on trains on."""
    job, device = state.job, state.job.device
    keys = state.plan.batches(start, distributed.rank(), distributed.world_size())
    for batch in load(job.data, keys, job.train.workers, pin=device.type == "cuda"):
        # Read before the batch moves: of a GPU the number would have to be waited for.
        if "skipped" in batch:
            state.skipped += int(batch.pop("skipped"))
        moved = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
        # Only now, after the step before: the choice is by the target as it is.
        yield moved if state.selection is None else state.selection(moved)


def _set(state: State, step: int) -> None:
    """Everything that is a function of the step."""
    steps, epoch = state.plan.steps, state.plan.epoch(step)
    # A resumed run comes with −1, so a method hears of the epoch in which it goes on.
    if epoch != state.epoch:
        state.epoch = epoch
        state.method.start_epoch(epoch)
    state.method.at(step / steps)
    set_rates(state.optimizer, state.job.optimizer, step, steps)
    state.optimizer.zero_grad(set_to_none=True)


def _descend(state: State, result: Step) -> None:
    """One step of the optimiser along the gradients that stand."""
    # DDP has averaged the target's; the method's temperature is outside of it. Before the scaler
    # looks for overflows: ranks that found different ones would not skip the same steps.
    distributed.average_gradients(state.method)
    # Clipping is meant for gradients as they are, so fp16's scale goes first.
    state.scaler.unscale_(state.optimizer)
    # Without a limit the norm is asked for all the same: it tells whether a gradient is finite.
    limit = state.job.train.clip_norm
    norm = nn.utils.clip_grad_norm_(state.module.parameters(), math.inf if limit is None else limit)
    # With fp16 an overflow of the gradient is skipped, and expected now and then. What is not
    # finite stays so in a sum, and every small call is a part of a step's fixed cost.
    loss = result.loss.detach()
    state.broken += ~torch.isfinite(loss if state.scaler.is_enabled() else loss + norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()


def _require_finite(state: State, done: int) -> None:
    """End a run that is broken before anything of it is told or saved.

    Asking a GPU, or the other ranks, would make every step wait, so that happens with reports alone.
    """
    cheap = state.job.device.type == "cpu" and not distributed.active()
    if not (cheap or state.reports(done)):
        return
    scaler = state.scaler
    never_finite = scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE
    # All ranks get the same answer, and so end together; one that went on would wait for ever.
    if distributed.mean(state.broken).item() > 0 or never_finite:
        raise DivergedError(
            f"training: the loss or its gradient was not finite by step {done} of {state.plan.steps} in {state.job.folder}; "
            "lower optimizer.lr, raise method.tau, set train.clip_norm, or use train.precision=fp32",
            done,
        )


def _told(state: State) -> dict[str, Any]:
    """What the observers say at the end, for the summary."""
    found: dict[str, Any] = {}
    for observer in state.observers:
        found |= observer.finish(state)
    return found
