"""Steering in a Hugging Face `Trainer`: another class name, two more arguments.

    steer = steering.DRRho(num_examples=len(train_set), tau=1.0)
    trainer = SteeringTrainer(model, args, train_dataset=train_set, steer=steer,
    reference_losses=found)

Needs `pip install 'model-steering[hf]'`. The data set's items must carry "index", their own number,
0 .. n − 1.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from steering import distributed
from steering.errors import SteeringError
from steering.integrations import hf_checks
from steering.integrations.hf_losses import ExampleLosses, LossOf, PerExample, example_losses
from steering.integrations.hf_reference import NO_INDEX, reference_losses
from steering.integrations.numbers import (
    check_column,
    checked_count,
    checked_index,
    checked_reference,
)
from steering.integrations.state import (
    average_gradients,
    missing_parameters,
    own_parameters,
    require_whole,
    restore,
    saved,
    set_epoch,
    start_alike,
)
from steering.reading import report_once

__all__ = ["STATE", "ExampleLosses", "SteeringTrainer", "example_losses", "reference_losses"]

STATE = "steering.pt"
_LOG = logging.getLogger("steering")


class SteeringTrainer(Trainer):
    """A `Trainer` that descends a steered loss. Evaluation is unchanged: the model's own loss.

    Args:
        steer: `steering.DRRho`, or anything called as steer(losses, reference losses or None,
            index); a module or a function. Its state is saved in every checkpoint, as
            `steering.pt`, and restored with it; so it is with the best model
            (`load_best_model_at_end`). Parameters of its own get a group of the optimizer, without
            weight decay; their gradients are averaged over the ranks and clipped by their own norm.
        reference_losses: (n,), by example number; None for a `steer` that uses no reference.
        losses: (logits, labels) -> (b,), or, by the names of its parameters, (outputs, inputs) ->
            (b,). None: the model's own loss, an example at a time (docs/guide-trainers.md says of
            which models), with `args.label_smoothing_factor`.

    Raises:
        SteeringError: an argument of `Trainer` that would be dropped, numbers of examples that
            differ, a reference loss that is not finite; in training a number outside 0 .. n − 1, or
            a model whose loss is not one of ours.
    """

    # Our loss is a mean over the micro-batch: the trainer divides it by their number.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        steer: Callable[..., Tensor],
        reference_losses: Tensor | None = None,
        losses: ExampleLosses | None = None,
        **kwargs: Any,
    ) -> None:
        given = hf_checks.arguments(args, kwargs)
        hf_checks.before(given)
        reference = None if reference_losses is None else checked_reference(reference_losses)
        self.count = checked_count(steer, reference, given.get("train_dataset"))
        check_column(given.get("train_dataset"))
        require_whole(steer)
        super().__init__(*args, **kwargs)
        self.steer = steer.to(self.args.device) if isinstance(steer, nn.Module) else steer
        self.reference_losses = None if reference is None else reference.to(self.args.device)
        made: Any = self.model  # by model_init, if it was not given
        self.example_losses = LossOf(made, losses, self.args.label_smoothing_factor)
        self.own = own_parameters(self.steer, made)
        hf_checks.require(self, self.example_losses, self.own)
        if self.optimizer is not None:
            self._require_moved()
        self.model_accepts_loss_kwargs = (
            False  # what older trainers ask in the place of loss_is_scaled_for_ga
        )
        self.without_labels = 0  # examples seen that had no label that counts
        self._takes_mask = _takes_mask(self.steer)
        self._fresh = saved(self.steer) if self.model_init is not None else None
        self.add_callback(_Steps(self))

    # ---- the loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        index = inputs.get("index")
        inputs = {key: value for key, value in inputs.items() if key != "index"}
        if not (model.training and torch.is_grad_enabled()):
            scale = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            return super().compute_loss(model, inputs, return_outputs, **scale)
        if index is None:
            raise SteeringError(NO_INDEX)
        index = checked_index(index, self.count)
        outputs = model(**inputs)
        loss = self._steered(
            self.example_losses(outputs, inputs, len(index)), index.to(self.args.device)
        )
        return (loss, outputs) if return_outputs else loss

    def _steered(self, found: PerExample, index: Tensor) -> Tensor:
        """The loss of a batch; examples without a label that counts do not count in it either."""
        losses, counted = found.losses.to(index.device), found.counted
        guide = None if self.reference_losses is None else self.reference_losses[index]
        if counted is None:
            return _scalar(self.steer(losses, guide, index))
        counted = counted.to(index.device)
        kept, everywhere = int(counted.sum()), counted.sum()
        if kept < len(index):
            self.without_labels += len(index) - kept
            example = int(index[~counted][0])
            report_once(
                f"example {example} has no label that counts: it, and others like it, are left out of the loss"
            )
        if distributed.active():
            torch.distributed.all_reduce(everywhere)
        if int(everywhere) == 0:
            return losses.sum() * 0.0
        if self._takes_mask and (
            distributed.active() or kept < len(index)
        ):  # every rank gathers the same things
            return _scalar(self.steer(losses, guide, index, mask=counted))
        if kept == len(index):
            return _scalar(self.steer(losses, guide, index))
        if kept == 0:
            return losses.sum() * 0.0
        return _scalar(
            self.steer(losses[counted], None if guide is None else guide[counted], index[counted])
        )

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(
            model, {key: value for key, value in inputs.items() if key != "index"}, *args, **kwargs
        )

    def _set_signature_columns_if_needed(self) -> None:
        """Keep "index", although no model takes it."""
        super()._set_signature_columns_if_needed()
        kept: Any = self._signature_columns
        if "index" not in kept:
            kept.append("index")

    # ---- parameters of the steer ----

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_optimizer(*args, **kwargs)
        optimizer: Any = self.optimizer
        if added := missing_parameters(self.own, [optimizer]):
            optimizer.add_param_group(
                {"params": [self.own[name] for name in added], "weight_decay": 0.0}
            )
        return made

    def _require_moved(self) -> None:
        if missing := missing_parameters(self.own, [self.optimizer]):
            raise SteeringError(
                f"optimizers: lacks parameters of steer ({', '.join(missing)}); make it with steer.parameters(), too"
            )

    # ---- checkpoints ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder and Path(folder).is_dir():
            _require_state(Path(folder))
        if (
            self._fresh is not None
        ):  # model_init makes a new model, and a new model has a new history
            restore(self.steer, self._fresh, "model_init")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call=_internal_call)
        if (
            _internal_call and output_dir is not None and self.args.should_save
        ):  # the model of a checkpoint
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            torch.save(saved(self.steer), Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if (
            checkpoint is not None
        ):  # first: a state of another steer may bring another number of parameter groups
            self._restore(Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = Path(str(self.state.best_model_checkpoint))
        self.accelerator.wait_for_everyone()
        if (best / STATE).is_file():
            self._restore(best)
        else:
            report_once(
                f"{best}: no {STATE} in it, so the steer keeps its last state", logging.WARNING
            )

    def _restore(self, folder: Path) -> None:
        path = _require_state(folder)
        restore(
            self.steer,
            torch.load(path, weights_only=True, map_location=self.args.device),
            str(path),
        )


class _Steps(TrainerCallback):
    """What happens to the steer around the steps of the model."""

    def __init__(self, trainer: SteeringTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if isinstance(self.trainer.steer, nn.Module):
            self.trainer.steer.train()
        model: Any = self.trainer.model  # model_init makes new ones
        self.trainer.example_losses.model = model
        self.trainer._require_moved()
        start_alike(self.trainer.own)
        self._forget()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        set_epoch(self.trainer.steer, int((state.epoch or 0) + 1e-6))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        own = list(self.trainer.own.values())
        if own:
            average_gradients(own)
            if args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(own, args.max_grad_norm)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._forget()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if count := self.trainer.without_labels:
            _LOG.warning(
                "%d times an example without a label that counts was left out of the loss", count
            )

    def _forget(self) -> None:
        """The trainer clears the gradients of its model, not these."""
        for parameter in self.trainer.own.values():
            parameter.grad = None


def _require_state(folder: Path) -> Path:
    path = folder / STATE
    if not path.is_file():
        raise SteeringError(f"{folder} was made without steering: no {STATE} in it")
    return path


def _takes_mask(steer: Any) -> bool:
    try:
        names = inspect.signature(
            steer.forward if isinstance(steer, nn.Module) else steer
        ).parameters
    except (TypeError, ValueError):
        return False
    return "mask" in names


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise SteeringError(
            f"steer: must return one number a batch, a tensor of shape (), got {shape}"
        )
    return loss
