"""Steering in Lightning: call the loss in `training_step`, and let this callback look after its
state.

class Classifier(LightningModule):
    def training_step(self, batch, _):
        losses = F.cross_entropy(self(batch["image"]), batch["label"], reduction="none")
        return self.steer(losses, self.reference_losses[batch["index"]], batch["index"])

Trainer(callbacks=[SteeringCallback(model.steer)]).fit(model, loader)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from steering.errors import SteeringError
from steering.integrations.state import (
    average_gradients,
    missing_parameters,
    own_parameters,
    require_whole,
    restore,
    saved,
    scheduled,
    set_epoch,
    set_progress,
    start_alike,
)

NAME = "steering"


class SteeringCallback(Callback):
    """Tells a steered loss the epoch and how far the training is, and puts its state into the checkpoints; in validation and
    test it is in eval mode.

    Args:
        steer: `steering.DRRho`, `steering.GlobalContrastiveLoss`, or a method of ours. It may be an
            attribute of the LightningModule, whose checkpoints then hold it anyway, or live outside
            of it. Parameters of one outside must be in an optimizer; their gradients are averaged
            over the ranks.
        name: of its state in the checkpoints. Two callbacks of a trainer need two names.

    Raises:
        SteeringError: from `fit`: two callbacks of one name; a checkpoint without a state of this
            name, or with one that was made for another number of examples or another divergence;
            parameters of `steer` that no optimizer moves; schedules in a training of which nobody
            knows how long it is.
    """

    def __init__(self, steer: nn.Module, name: str = NAME) -> None:
        if not isinstance(steer, nn.Module):
            raise SteeringError(
                f"SteeringCallback: steer must be a module, got {type(steer).__name__}"
            )
        if not isinstance(name, str) or not name:
            raise SteeringError(f"SteeringCallback: name must be a word, got {name!r}")
        self.steer, self.name = steer, name
        self._own: dict[str, nn.Parameter] = {}
        self._restored, self._was_training = False, True
        self._hooks: list[RemovableHandle] = []
        self._errors: list[tuple[list[str], int]] = []

    @property
    def state_key(self) -> str:
        return NAME if self.name == NAME else f"{NAME}:{self.name}"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others = [callback for callback in _steered(trainer) if callback is not self]
        if any(callback.name == self.name for callback in others):
            raise SteeringError(
                f"two SteeringCallbacks are called {self.name!r}; give each a name: SteeringCallback(steer, name=...)"
            )
        if any(callback.steer is self.steer for callback in others):
            raise SteeringError(
                f"two SteeringCallbacks look after one steer, {self.name!r} and another; leave one out"
            )
        if stage == "fit":
            require_whole(self.steer)
            self._restored = False
            self._own = own_parameters(self.steer, pl_module)
            self._unhook()
            self._hooks = [
                self.steer.register_load_state_dict_pre_hook(self._before_loading),
                self.steer.register_load_state_dict_post_hook(self._after_loading),
            ]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.steer.to(pl_module.device)
        start_alike(self._own)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._unhook()
        if trainer.ckpt_path is not None and not self._restored:
            raise SteeringError(
                f"{trainer.ckpt_path}: has no state of a SteeringCallback called {self.name!r}"
            )
        if missing := missing_parameters(self._own, trainer.optimizers):
            raise SteeringError(
                f"steer {self.name!r}: no optimizer moves its parameters ({', '.join(missing)}); make it an attribute of the"
                " module, or add steer.parameters() in configure_optimizers"
            )
        self._require_length(trainer)
        self.steer.train()

    def _require_length(self, trainer: Trainer) -> None:
        """A schedule that is never told where the training is would stay at its start."""
        if _share_done(trainer, 0) is None and (moving := scheduled(self.steer)):
            raise SteeringError(
                f"steer {self.name!r}: {', '.join(moving)} would follow a schedule, and nobody knows how long this training"
                " is; give the Trainer max_steps, or max_epochs and a loader that has a length"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        set_epoch(self.steer, trainer.current_epoch)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        if (share := _share_done(trainer, batch_idx)) is not None:
            set_progress(self.steer, share, 1)

    def on_before_optimizer_step(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if own := [p for p in self._own.values() if id(p) in moved]:
            average_gradients(own)

    # ---- evaluation in between ----

    def _pause(self) -> None:
        self._was_training = self.steer.training
        self.steer.eval()

    def _go_on(self) -> None:
        self.steer.train(self._was_training)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._go_on()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._pause()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._go_on()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._pause()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._go_on()

    # ---- a steer inside the module is loaded with it: what torch says of its part, in one line
    # ----

    def _before_loading(
        self,
        module: nn.Module,  # noqa: ARG002
        state_dict: Mapping[str, Any],  # noqa: ARG002
        prefix: str,  # noqa: ARG002
        local_metadata: Mapping[str, Any],  # noqa: ARG002
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        lists = [error_msgs, missing_keys, unexpected_keys] if strict else []
        self._errors = [(found, len(found)) for found in lists]

    def _after_loading(self, module: nn.Module, incompatible_keys: Any) -> None:  # noqa: ARG002
        told = " ".join(" ".join(found[before:]) for found, before in self._errors).split()
        self._errors = []
        if told:
            raise SteeringError(
                f"steer {self.name!r}: the checkpoint's was made for another number of examples or another divergence"
                f" ({' '.join(told)})"
            )

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # ---- checkpoints ----
    # These hooks, and not `state_dict`: Lightning would refuse two callbacks of one key before we
    # can say which name to give.

    def on_save_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        checkpoint.setdefault("callbacks", {})[self.state_key] = saved(self.steer)

    def on_load_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        states = checkpoint.get("callbacks") or {}
        key = self.state_key
        if key not in states and len(_steered(trainer)) == 1:
            key = NAME  # of a run in which it had no name
        if key in states:
            restore(self.steer, states[key], f"{trainer.ckpt_path}, {key!r}")
            self._restored = True


def _share_done(trainer: Trainer, batch_idx: int) -> float | None:
    """Share of the training that is done, in [0, 1); None where neither steps nor batches end.

    The same for all batches of a step. Not by `estimated_stepping_batches`, which counts the steps
    of one optimizer, where `global_step` counts those of all.
    """
    shares = []
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    epochs, batches = trainer.max_epochs or 0, trainer.num_training_batches
    if epochs > 0 and math.isfinite(batches):
        first = batch_idx - batch_idx % trainer.accumulate_grad_batches
        shares.append((trainer.current_epoch + first / batches) / epochs)
    return max(shares, default=None)


def _steered(trainer: Trainer) -> list[SteeringCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, SteeringCallback)]  # type: ignore[attr-defined]
