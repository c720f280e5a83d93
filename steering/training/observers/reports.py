"""The observers that every run has: log, evaluations, checkpoints."""

from __future__ import annotations

import torch

from steering import distributed
from steering.dro.online.watch import warnings
from steering.methods.registry import Step
from steering.training.board.look import look_at
from steering.training.board.scalars import SHARED, board_scalars
from steering.training.evaluate import evaluate
from steering.training.log import ProgressLine
from steering.training.observers.observer import Observer
from steering.training.state import State


class Log(Observer):
    """Scalars to TensorBoard and metrics.jsonl, warnings, and the progress line."""

    progress: ProgressLine | None = None

    def start(self, run: State, step: int) -> None:
        shown = distributed.rank() == 0
        self.progress = ProgressLine(run.job.title, run.plan.steps, step, shown)
        self.told, self.seconds = step, run.clock.seconds  # of the last entry

    def after_step(self, run: State, done: int, step: Step) -> None:
        if not run.reports(done):
            # A terminal is redrawn by now and then; a step may take a millisecond.
            if done % 5 == 0:
                self._move(done)
            return
        values = self._scalars(run, done, step)
        speed = self._speed(run, done)
        # All ranks have taken part in the means; rank 0 writes them.
        if run.log is not None:
            run.log.scalars(done, values)
            run.log.speed(done, speed)
            run.log.warn(done, warnings(run.method))
        self._move(done, f"loss {values['train/loss']:.4g}")
        self.told, self.seconds = done, run.clock.seconds

    def _scalars(self, run: State, done: int, step: Step) -> dict[str, float]:
        """The method's numbers, averaged over the ranks, and the loop's own."""
        values = {"loss": step.loss, **step.scalars()}
        # One transfer and one reduction for all of them.
        numbers = torch.stack([value.detach().double() for value in values.values()])
        means = distributed.mean(numbers).tolist()
        told = dict(zip(values, means, strict=True))
        passed = run.clock.seconds - self.seconds
        own = {f"train/{name}": value for name, value in told.items() if name not in SHARED}
        shared = board_scalars(step, look_at(step), told, run.wrong, run.job.task.groups)
        return (
            own
            | shared
            | {
                "train/learning_rate": run.optimizer.param_groups[0]["lr"],
                "train/samples_per_second": (done - self.told) * run.batch_size / max(passed, 1e-9),
                "train/seconds": run.clock.seconds,
                "train/epoch": float(run.epoch),
                "train/skipped": float(run.all_skipped()),
            }
        )

    def _speed(self, run: State, done: int) -> dict[str, float]:
        steps = max(done - self.told, 1)
        total = run.clock.seconds + run.evaluation_seconds
        found = {
            "perf/step_seconds": (run.clock.seconds - self.seconds) / steps,
            "perf/evaluation_share": run.evaluation_seconds / max(total, 1e-9),
        }
        if run.job.device.type == "cuda":
            found["perf/gpu_gib"] = torch.cuda.max_memory_allocated(run.job.device) / 2**30
        return found

    def _move(self, done: int, note: str = "") -> None:
        if self.progress is not None:
            self.progress.update(done, note)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


class Evaluate(Observer):
    """Evaluations on the way; that of the end belongs to the run's result."""

    def after_step(self, run: State, done: int, step: Step) -> None:  # noqa: ARG002
        if run.evaluates(done):
            evaluate(run, run.job.target, done, "eval")


class Save(Observer):
    """Checkpoints; the last of the observers, as they hold what the others have to remember."""

    def after_step(self, run: State, done: int, step: Step) -> None:  # noqa: ARG002
        if run.due(done, run.job.train.save_every) or done == run.plan.steps:
            run.save(done)
