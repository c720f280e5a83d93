"""Steering in Lightning: call the loss in `training_step`, and let this callback look after its state.

class Classifier(LightningModule):
    def training_step(self, batch, _):
        losses = F.cross_entropy(self(batch["image"]), batch["label"], reduction="none")
        return self.steer(losses, self.reference_losses[batch["index"]], batch["index"])

Trainer(callbacks=[SteeringCallback(model.steer)]).fit(model, loader)
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn


class SteeringCallback(Callback):
    """Tells a steered loss the epoch, and puts its state into the checkpoints.

    Args:
        steer: `steering.DRRho`, `steering.GlobalContrastiveLoss`, or a method of ours. It may be an attribute of the
            LightningModule, whose checkpoints then hold it anyway, or live outside of it.
    """

    def __init__(self, steer: nn.Module) -> None:
        self.steer = steer

    @property
    def state_key(self) -> str:
        return "steering"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.steer.to(pl_module.device)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        start_epoch: Any = getattr(self.steer, "start_epoch", None)
        if start_epoch is not None:
            start_epoch(trainer.current_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {name: value.clone() for name, value in self.steer.state_dict().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steer.load_state_dict(state_dict)
