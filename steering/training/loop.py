"""The training loop: load, forward, steered loss, step, log. It knows no task, no divergence and no
reference by name."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.row_table import merged, split_state
from steering.dro.online.watch import warnings
from steering.errors import SteeringError
from steering.methods.registry import Step
from steering.reference.frozen import LiveReference
from steering.runs.record import SCORES, WEIGHTS, write_scores
from steering.storage import write_text
from steering.task import Evaluation
from steering.training.checkpoint import (
    load_newest,
    load_parts,
    require_same_run,
    save_checkpoint,
    save_part,
    save_weights,
    write_json,
)
from steering.training.job import Job
from steering.training.loader import load
from steering.training.log import ProgressLine, RunLog
from steering.training.optim import build_optimizer, learning_rate_factor, set_learning_rate
from steering.training.plan import Plan, require_even_parts
from steering.training.selection import Selection, examples_drawn, who_asks
from steering.training.step import (
    Gradient,
    all_random_states,
    autocast_to,
    data_parallel,
    set_random_state,
)
from steering.training.tryout import first_part, freeze_unused, in_plain_words

_LOG = logging.getLogger("steering")
SMALLEST_SCALE = (
    2.0**-10
)  # fp16 halves its scale, 2^16, at every overflow: here no scale would have helped


def run(job: Job) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint in the folder if there is one.

    Returns:
        The content of result.json: metrics and what they mean; samples that were trained on, drawn,
        scored (by a forward pass of the target that is there for selection alone) and run through a
        live reference; seconds of training and of evaluations, steps, skipped; and the method's own
        summary. The scores of the last evaluation are in scores.npz.

    Raises:
        SteeringError: the loss or its gradient is not finite, the batch does not split evenly, or
            the folder holds a checkpoint of another run.
    """
    state = _State(job)
    start = state.restore()
    plan = state.plan
    log = RunLog(job.folder, start, plan.steps) if distributed.rank() == 0 else None
    if distributed.rank() == 0 and job.config is not None:
        write_text(job.folder / "config.yaml", job.config)
    progress = ProgressLine(job.title, plan.steps, start, shown=distributed.rank() == 0)
    try:
        state.train(start, log, progress)
        return state.finish(state.evaluate(plan.steps, log))
    finally:
        progress.close()
        if log is not None:
            log.close()


class _State:
    """A run under way: what a checkpoint holds, and the steps that change it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        require_even_parts(job.train)
        self.batch_size = job.train.batch_size
        self.drawn = examples_drawn(job.train, job.method.selector, len(job.data))
        steps = job.train.samples // self.batch_size
        self.plan = Plan(len(job.data), self.drawn, steps * self.drawn, job.seed)
        self.module = job.target.module.to(job.device).train()
        self.method = job.method.to(job.device).train()
        self.optimizer = build_optimizer(
            self.module,
            self.method,
            lr=job.optimizer.lr,
            weight_decay=job.optimizer.weight_decay,
            betas=job.optimizer.betas,
            eps=job.optimizer.eps,
            temperature_lr=job.optimizer.temperature_lr,
        )
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=job.train.precision == "fp16")
        autocast = partial(
            autocast_to, job.train.precision, job.device.type
        )  # a bound method would keep the run alive
        if distributed.active():
            batch = first_part(job.data, self.plan, job.train, job.device)
            with in_plain_words(job.train):
                freeze_unused(self.module, job.task.risk, batch, autocast)
        self.selects = self.drawn > self.batch_size
        selector = self.method.selector if self.selects else None
        asked, reference = who_asks(job.reference, selector)
        self.selection = selector and Selection(
            self.module,
            selector,
            job.task.risk,
            asked,
            self.batch_size // distributed.world_size(),
            job.train.accumulation,
            autocast,
        )
        self.gradient = Gradient(
            data_parallel(self.module, job.device),
            self.method,
            job.task.risk,
            reference,
            job.train.accumulation,
            autocast,
            self.scaler.scale,
        )
        self.seconds, self.evaluation_seconds, self.skipped = 0.0, 0.0, 0
        self.broken = torch.zeros(
            (), device=job.device
        )  # counts steps whose loss or gradient was not finite

    def train(self, start: int, log: RunLog | None, progress: ProgressLine) -> None:
        job, plan, epoch = self.job, self.plan, -1
        clock, clocked = time.monotonic(), start
        for step, batch in enumerate(self._batches(start), start):
            if plan.epoch(step) != epoch:
                epoch = plan.epoch(step)
                self.method.start_epoch(epoch)
            done = step + 1
            result = self._step(step, batch)
            due = [
                every and done % every == 0
                for every in (job.train.log_every, job.train.eval_every, job.train.save_every)
            ]
            if (
                any(due)
                or done == plan.steps
                or (job.device.type == "cpu" and not distributed.active())
            ):
                self._require_finite(done)
            if any(due) or done == plan.steps:
                passed = time.monotonic() - clock
                self.seconds += passed
                rate = (done - clocked) * self.batch_size / max(passed, 1e-9)
                values = self._scalars(result, rate, epoch)
                if log is not None:
                    log.scalars(done, values)
                    log.warn(done, warnings(self.method))
                progress.update(done, f"loss {values['train/loss']:.4g}")
                if due[1] and done < plan.steps:
                    self.evaluate(done, log)
                if due[2] or done == plan.steps:
                    self.save(done)
                clock, clocked = time.monotonic(), done
            elif not done % 5:
                progress.update(done)

    def _batches(self, start: int) -> Iterator[dict[str, Tensor]]:
        job = self.job
        keys = self.plan.batches(start, distributed.rank(), distributed.world_size())
        for batch in load(job.data, keys, job.train.workers, pin=job.device.type == "cuda"):
            self.skipped += int(batch.pop("skipped", torch.zeros(())))
            moved = {key: value.to(job.device, non_blocking=True) for key, value in batch.items()}
            yield moved if self.selection is None else self.selection(moved)

    def _step(self, step: int, batch: dict[str, Tensor]) -> Step:
        config = self.job.optimizer
        factor = learning_rate_factor(
            step, self.plan.steps, config.warmup, config.schedule, config.final_lr
        )
        set_learning_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        with in_plain_words(self.job.train):
            result = self.gradient(batch)
        distributed.average_gradients(self.method)
        self.broken += ~torch.isfinite(result.loss.detach())
        self.scaler.unscale_(self.optimizer)
        limit = self.job.train.clip_norm
        norm = nn.utils.clip_grad_norm_(
            self.module.parameters(), math.inf if limit is None else limit
        )
        if (
            not self.scaler.is_enabled()
        ):  # with fp16 an overflow is skipped, and expected now and then
            self.broken += ~torch.isfinite(norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return result

    def _require_finite(self, done: int) -> None:
        never_finite = self.scaler.is_enabled() and self.scaler.get_scale() < SMALLEST_SCALE
        if distributed.mean(self.broken).item() > 0 or never_finite:
            raise SteeringError(
                f"training: the loss or its gradient was not finite by step {done} of {self.plan.steps} in {self.job.folder}; "
                "lower optimizer.lr, raise method.tau, set train.clip_norm, or use train.precision=fp32"
            )

    def _scalars(self, result: Step, rate: float, epoch: int) -> dict[str, float]:
        """What is logged of a step: the method's numbers, averaged over the ranks, and the loop's
        own."""
        values = {"loss": result.loss, **result.scalars()}
        means = distributed.mean(
            torch.stack([value.detach().double() for value in values.values()])
        ).tolist()
        return {f"train/{name}": mean for name, mean in zip(values, means, strict=True)} | {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/samples_per_second": rate,
            "train/seconds": self.seconds,
            "train/epoch": float(epoch),
            "train/skipped": float(self._all_skipped()),
        }

    def _all_skipped(self) -> int:
        """Unreadable examples met by all ranks."""
        mine = torch.tensor(self.skipped, dtype=torch.float64, device=self.job.device)
        return round(distributed.mean(mine).item() * distributed.world_size())

    def evaluate(self, done: int, log: RunLog | None) -> Evaluation:
        """On every rank, each with its share of the examples; the random state is left as it
        was."""
        job, start = self.job, time.monotonic()
        self.module.eval()
        with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
            found = job.task.evaluate(job.target, job.device)
        self.module.train()
        if not isinstance(found, Evaluation):
            raise SteeringError(
                f"task: {type(job.task).__name__}.evaluate must return a steering.task.Evaluation"
            )
        if log is not None:
            log.scalars(done, {f"eval/{name}": value for name, value in found.values().items()})
            log.figures(done, found.figures)
        distributed.barrier()
        self.evaluation_seconds += time.monotonic() - start
        return found

    def save(self, done: int) -> None:
        rng, skipped = all_random_states(self.job.device), self._all_skipped()
        method, own = split_state(self.method)
        if own:
            save_part(self.job.folder / "checkpoints", done, own)
            distributed.barrier()
        if distributed.rank() == 0:
            state = {
                "identity": self.job.identity,
                "target": self.module.state_dict(),
                "method": method,
                "parts": distributed.world_size() if own else 0,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": rng,
                "seconds": self.seconds,
                "evaluation_seconds": self.evaluation_seconds,
                "skipped": skipped,
            }
            save_checkpoint(self.job.folder / "checkpoints", done, state)
        distributed.barrier()

    def restore(self) -> int:
        """Step to start from: 0, or that of the newest checkpoint, whose state is taken over."""
        found = load_newest(self.job.folder / "checkpoints", torch.device("cpu"))
        if found is None:
            torch.manual_seed(self.job.seed + distributed.rank())
            return 0
        step, state = found
        require_same_run(self.job.folder, state["identity"], self.job.identity, self.job.config)
        self.module.load_state_dict(state["target"])
        parts = load_parts(self.job.folder / "checkpoints", step, state.get("parts", 0))
        self.method.load_state_dict(state["method"] | (merged(parts, self.method) if parts else {}))
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.seconds, self.evaluation_seconds = (
            state["seconds"],
            state.get("evaluation_seconds", 0.0),
        )
        self.skipped = state["skipped"] if distributed.rank() == 0 else 0
        if len(state["random"]) == distributed.world_size():
            set_random_state(self.job.device, state["random"][distributed.rank()])
        else:
            _LOG.warning(
                "resuming on another number of processes: random numbers (dropout) will differ"
            )
        _LOG.info("resuming %s at step %d", self.job.folder, step)
        return step

    def finish(self, found: Evaluation) -> dict[str, Any]:
        skipped, drawn = self._all_skipped(), self.plan.steps * self.drawn
        # A selector that needs no reference leaves it to run on what is trained on alone.
        early = self.selection is not None and self.selection.reference is not None
        referred = drawn if early else self.plan.steps * self.batch_size
        live = isinstance(self.job.reference, LiveReference)
        result: dict[str, Any] = {
            "metrics": found.values(),
            "meaning": {
                name: asdict(one) | {"of": [*one.of]}
                for name, one in found.meanings(self.job.task.metrics).items()
            },
            "samples": self.plan.steps * self.batch_size,
            "drawn": drawn,
            "scored": drawn if self.selects else 0,
            "reference_samples": referred if live else 0,
            "seconds": round(self.seconds, 2),
            "evaluation_seconds": round(self.evaluation_seconds, 2),
            "steps": self.plan.steps,
            "skipped": skipped,
            "summary": self.method.summary(),
            "identity": self.job.identity,
        }
        # Trained pairs are read with the method's temperature, which so far the model knows nothing
        # of.
        scale = self.method.logit_scale() if self.job.task.risk.unit == "pair" else None
        learned = {} if scale is None else {"logit_scale": math.log(scale)}
        if distributed.rank() == 0:
            write_scores(self.job.folder / SCORES, found.scores)
            save_weights(self.job.folder / WEIGHTS, self.module, self.job.identity, learned)
            write_json(self.job.folder / "result.json", result)
            if skipped:
                _LOG.warning(
                    "%s: %d unreadable examples were replaced by others", self.job.folder, skipped
                )
        distributed.barrier()
        return result
