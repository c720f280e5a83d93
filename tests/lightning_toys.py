"""A tiny module and a run of it for the tests of the Lightning drop-in."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip(
    "lightning.pytorch",
    reason="Lightning is not installed: pip install 'model-steering[lightning]'",
)

from hf_toys import Items, N  # noqa: E402

from steering.integrations.lightning import SteeringCallback  # noqa: E402

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


class Module(pl.LightningModule):
    """Calls its steers in training, validation and test; they live outside of it unless
    `inside`."""

    def __init__(self, *steers, both=False, inside=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.outside = list(steers)
        if inside:
            self.steer = steers[0]
        self.both = both

    def training_step(self, batch, _=None):
        x, y, index = batch
        losses = F.cross_entropy(self.layer(x), y, reduction="none")
        return sum(steer(losses, None, index) for steer in self.outside)

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self):
        more = [p for steer in self.outside for p in steer.parameters()] if self.both else []
        return torch.optim.SGD([*self.parameters(), *more], lr=0.1)


def loader(size=4):
    items = Items()
    return DataLoader(TensorDataset(items.x, items.y, torch.arange(N)), batch_size=size)


def fit(
    folder, *steers, names=None, checkpoint=None, module=None, validate=False, size=4, **options
):
    names = names or ["steering"] * len(steers)
    callbacks = [SteeringCallback(steer, name) for steer, name in zip(steers, names, strict=True)]
    made = pl.Trainer(
        default_root_dir=folder, callbacks=callbacks, **{"max_epochs": 1, **QUIET, **options}
    )
    module = module or Module(*steers)
    made.fit(module, loader(size), loader() if validate else None, ckpt_path=checkpoint)
    return made
