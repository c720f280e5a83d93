"""An exponential moving average of the target, with an evaluation and weights of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from steering.methods.registry import Step
from steering.training.evaluate import evaluate
from steering.training.observers.observer import Observer
from steering.training.observers.options import EmaOptions
from steering.training.result import save_model
from steering.training.state import State
from steering.training.wraps import load_whole_state, whole_state

EMA_WEIGHTS = "model-ema.safetensors"


class Ema(Observer):
    """θ̄ ← d·θ̄ + (1 − d)·θ after every step, from the weights before the first one. Buffers are
    those of the target, as they are.

    The target is evaluated as before, the average when it is, under `eval_ema/`. The weights of the
    end stand in model-ema.safetensors, the average of the way in every checkpoint.
    """

    def __init__(self, options: EmaOptions) -> None:
        self.options = options
        self.average: nn.Module

    def begin(self, run: State) -> None:
        # Of the bare module, not of what DDP has wrapped: it is evaluated and written, never trained.
        self.average = copy.deepcopy(run.module).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, run: State, done: int, step: Step) -> None:  # noqa: ARG002
        # A function of the step alone, so that a resumed run needs nothing but the weights.
        decay = self.options.decay
        if self.options.warm:
            decay = min(decay, (1 + done) / (10 + done))
        for mean, now in zip(self.average.parameters(), run.module.parameters(), strict=True):
            mean.lerp_(now, 1 - decay)
        # Means of counters and masks mean nothing; batch statistics are running means already.
        for mine, theirs in zip(self.average.buffers(), run.module.buffers(), strict=True):
            mine.copy_(theirs)
        if run.evaluates(done):
            self._evaluate(run, done)

    def _evaluate(self, run: State, done: int) -> dict[str, float]:
        model = replace(run.job.target, module=self.average)
        return evaluate(run, model, done, "eval_ema").values()

    def finish(self, run: State) -> dict[str, Any]:
        metrics = self._evaluate(run, run.plan.steps)
        save_model(run, run.job.folder / EMA_WEIGHTS, self.average)
        return {"ema": {"decay": self.options.decay, "metrics": metrics}}

    def state_dict(self) -> dict[str, Any]:
        return whole_state(self.average)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_whole_state(self.average, state)
