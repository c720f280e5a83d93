"""What happens to a steer around the steps of a Hugging Face Trainer."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from steering.integrations.state import average_gradients, set_epoch, set_progress, start_alike

_LOG = logging.getLogger("steering")


class Steps(TrainerCallback):
    """What happens to the steer around the steps of the model."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if isinstance(self.trainer.steer, nn.Module):
            self.trainer.steer.train()
        model: Any = self.trainer.model  # model_init makes new ones
        self.trainer.example_losses.model = model
        self.trainer.require_moved()
        start_alike(self.trainer.own)
        self._forget()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        set_epoch(self.trainer.steer, int((state.epoch or 0) + 1e-6))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        set_progress(self.trainer.steer, state.global_step, state.max_steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        own = list(self.trainer.own.values())
        if own:
            average_gradients(own)
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(own, args.max_grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._forget()
        self.trainer.batches.end_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if count := self.trainer.batches.silent:
            _LOG.warning(
                "%d times an example without a label that counts was left out of the loss", count
            )

    def _forget(self) -> None:
        """The trainer clears the gradients of its model, not these."""
        for parameter in self.trainer.own.values():
            parameter.grad = None
