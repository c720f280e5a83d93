"""An evaluation while a run trains."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from steering import distributed
from steering.errors import DivergedError, NotFiniteError, SteeringError
from steering.task import Evaluation, Model
from steering.training.board.pictures import worst_figure
from steering.training.state import State

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def evaluate(run: State, model: Model, done: int, prefix: str) -> Evaluation:
    """Evaluate the target, or a model like it, after `done` steps and log what is found.

    On every rank, each with its share of the examples; the random state is left as it was.

    Args:
        prefix: of the scalars in the log: "eval" for the target.
    """
    job, start, training = run.job, time.monotonic(), model.module.training
    model.module.eval()
    # An evaluation may draw random numbers, and must not move those that training draws next.
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        try:
            found = job.task.evaluate(model, job.device)
        except NotFiniteError as error:
            raise DivergedError(f"{error} after step {done} of {run.plan.steps}", done) from error
    model.module.train(training)
    if not isinstance(found, Evaluation):
        raise SteeringError(
            f"task: {type(job.task).__name__}.evaluate must return a steering.task.Evaluation"
        )
    if run.log is not None:
        values = {f"{prefix}/{name}": value for name, value in found.values().items()}
        if prefix == "eval" and found.loss is not None:
            values["loss/validation"] = found.loss
        run.log.scalars(done, values)
        run.log.figures(done, found.figures, "" if prefix == "eval" else f"{prefix}/")
        if _shows(run, done):
            run.log.figures(done, _worst(run, found), f"{prefix}/")
    # Rank 0 writes figures; the others must not start a step, and with it a collective, without it.
    distributed.barrier()
    run.evaluation_seconds += time.monotonic() - start
    return found


def _shows(run: State, done: int) -> bool:
    """Whether this evaluation is the last, or the first after another `pictures_every` steps."""
    train, board = run.job.train, run.job.train.board
    every, before = board.pictures_every, max(done - train.eval_every, 0)
    due = every > 0 and (done == run.plan.steps or done // every > before // every)
    return due and board.examples > 0


def _worst(run: State, found: Evaluation) -> dict[str, Figure]:
    """The picture of the evaluated examples with the highest losses, where a task shows them."""
    if found.judged is None:
        return {}
    try:
        figure = worst_figure(found.judged, run.job.train.board.examples)
    except SteeringError:  # data that are gone
        return {}
    return {} if figure is None else {"worst": figure}
