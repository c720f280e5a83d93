"""Steering in a Hugging Face `Trainer`: another class name, a few more arguments.

    steer = steering.DRRho(num_examples=len(train_set), tau=1.0)
    trainer = SteeringTrainer(model, args, train_dataset=train_set, steer=steer,
        ref_model="path/of/the/reference", unit="token")

Needs `pip install 'model-steering[hf]'`. Where something is looked up by the number of an example,
the data set's items must carry "index", 0 .. n − 1.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from steering.errors import SteeringError
from steering.integrations import hf_checks
from steering.integrations.hf_batch import Batches, numbered
from steering.integrations.hf_frozen import Frozen, Live, Stored, require_one
from steering.integrations.hf_losses import ExampleLosses, LossOf, example_losses
from steering.integrations.hf_reference import reference_losses
from steering.integrations.hf_steer import as_steer, needs_reference
from steering.integrations.hf_steps import Steps
from steering.integrations.hf_units import require_unit
from steering.integrations.numbers import check_column, checked_count, checked_reference
from steering.integrations.state import (
    missing_parameters,
    own_parameters,
    require_whole,
    restore,
    saved,
)
from steering.reading import report_once

__all__ = ["STATE", "ExampleLosses", "SteeringTrainer", "example_losses", "reference_losses"]

STATE = "steering.pt"


class SteeringTrainer(Trainer):
    """A `Trainer` that descends a steered loss. Evaluation is unchanged: the model's own loss.

    A step of several micro-batches (`gradient_accumulation_steps`) weighs each by its share of the
    items that count, over all processes. So plain averaging gives the gradient of the whole batch.
    An adversary, and Rho-1's threshold, see one micro-batch of all processes at a time.

    Args:
        steer: `steering.DRRho`, or anything called as steer(losses, reference losses or None,
            index or None); a module, a function, or a method of the registry ("rho1",
            {"name": "rho1", "share": 0.6}). Its state is saved in every checkpoint, as
            `steering.pt`, and restored with it; so it is with the best model
            (`load_best_model_at_end`). Parameters of its own get a group of the optimizer, without
            weight decay; their gradients are averaged over the ranks and clipped by their own norm.
        reference_losses: stored, from the function of that name: (n,) by example number, (n, K) for
            tokens; None for a `steer` that uses no reference.
        ref_model: the reference itself instead, a model, a folder or a name; it is frozen for good,
            runs beside the target in eval mode, and is in no checkpoint. Numbers are not needed.
        unit: what the steer weighs: "example"; "sequence", which differs where a row holds several;
            "token". Of the model's own loss, labels shifted as it shifts them, −100 left out.
        losses: (logits, labels) -> (b,), or, by the names of its parameters, (outputs, inputs) ->
            (b,). None: the model's own loss, an item at a time (docs/guide-trainers.md says of
            which models), with `args.label_smoothing_factor`.

    Raises:
        SteeringError: an argument of `Trainer` that would be dropped, numbers of examples that
            differ, a reference loss that is not finite, a reference that is the target; in training
            a number outside 0 .. n − 1, or a model whose loss is not one of ours.
    """

    # The steered loss is to be divided by the number of micro-batches; `Batches` reckons with it.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *args: Any,
        steer: Callable[..., Tensor] | str | Mapping[str, Any],
        reference_losses: Tensor | None = None,
        ref_model: nn.Module | str | Path | None = None,
        unit: str = "example",
        losses: ExampleLosses | None = None,
        **kwargs: Any,
    ) -> None:
        given = hf_checks.arguments(args, kwargs)
        hf_checks.before(given)
        require_unit(unit)
        require_one(ref_model, reference_losses)
        self.steer: Any = as_steer(steer, unit)
        stored = None if reference_losses is None else checked_reference(reference_losses, unit)
        by_number = numbered(self.steer, stored)
        self.count = checked_count(self.steer, stored, given.get("train_dataset"))
        if by_number:
            check_column(given.get("train_dataset"))
        require_whole(self.steer)
        super().__init__(*args, **kwargs)
        if isinstance(self.steer, nn.Module):
            self.steer.to(self.args.device)
        made: Any = self.model  # by model_init, if it was not given
        self.example_losses = LossOf(made, losses, self.args.label_smoothing_factor, unit)
        self.own = own_parameters(self.steer, made)
        hf_checks.require(self, self.example_losses, self.own, ref_model)
        self.reference = self._reference(ref_model, stored)
        if self.optimizer is not None:
            self.require_moved()
        # What older trainers ask in the place of loss_is_scaled_for_ga.
        self.model_accepts_loss_kwargs = False
        self.batches = Batches(
            self.steer,
            self.reference,
            self.example_losses,
            self.count,
            self.args.device,
            by_number,
        )
        self._fresh = saved(self.steer) if self.model_init is not None else None
        self.add_callback(Steps(self))

    def _reference(self, ref_model: Any, stored: Tensor | None) -> Frozen | None:
        if ref_model is not None:
            return Live(ref_model, self.example_losses, self)
        if stored is not None:
            # A table of examples is small; one of tokens stays where it is.
            return Stored(stored.to(self.args.device) if stored.ndim == 1 else stored)
        if needs_reference(self.steer):
            raise SteeringError(
                f"steer: {self.steer.name} compares with a reference; give ref_model= or reference_losses="
            )
        return None

    # ---- the loss ----

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        found = super().get_batch_samples(*args, **kwargs)
        self.batches.begin_step(found[0])
        return found

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not (model.training and torch.is_grad_enabled()):
            scale = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            inputs = {key: value for key, value in inputs.items() if key != "index"}
            return super().compute_loss(model, inputs, return_outputs, **scale)
        loss, outputs = self.batches.loss(model, inputs, self._divisor())
        return (loss, outputs) if return_outputs else loss

    def _divisor(self) -> int:
        """What this step's losses will be divided by: older trainers take the argument even for
        the shorter step at an epoch's end."""
        if not self.batches.inside:
            return 1
        told = getattr(self, "current_gradient_accumulation_steps", None)
        return int(told or self.args.gradient_accumulation_steps)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With what the steer tells, "steer/...", beside the training loss."""
        if "loss" in logs:
            logs = logs | self.batches.meter.read()
        super().log(logs, *args, **kwargs)

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

    @property
    def reference_losses(self) -> Tensor | None:
        """The stored ones; None if there are none."""
        return self.reference.table if isinstance(self.reference, Stored) else None

    @property
    def without_labels(self) -> int:
        """Examples seen in training that had no label that counts."""
        return self.batches.silent

    # ---- parameters of the steer ----

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        made = super().create_optimizer(*args, **kwargs)
        optimizer: Any = self.optimizer
        if added := missing_parameters(self.own, [optimizer]):
            optimizer.add_param_group(
                {"params": [self.own[name] for name in added], "weight_decay": 0.0}
            )
        return made

    def require_moved(self) -> None:
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


def _require_state(folder: Path) -> Path:
    path = folder / STATE
    if not path.is_file():
        raise SteeringError(f"{folder} was made without steering: no {STATE} in it")
    return path
