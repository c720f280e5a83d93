"""Steering in Lightning: handwritten digits with 40 % wrong labels, guided by a linear classifier.

    python examples/lightning_digits.py

What is ours are the lines with "steer" and "reference" in them.
"""

import argparse

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import steering
from steering.integrations.lightning import SteeringCallback
from tasks.classification.data import noisy_labels
from tasks.classification.sources import digits


class Classifier(pl.LightningModule):
    def __init__(self, reference_losses=None):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self.register_buffer("reference_losses", reference_losses, persistent=False)
        self.steer = None
        if reference_losses is not None:
            self.steer = steering.DRRho(num_examples=len(reference_losses), tau=1.0)

    def training_step(self, batch, _):
        image, label, index = batch
        losses = F.cross_entropy(self.network(image), label, reduction="none")
        if self.steer is None:
            return losses.mean()
        return self.steer(losses, self.reference_losses[index], index)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(epochs: int = 10, **options) -> dict[str, float]:
    """Test accuracy of the reference, of plain training and of steered training."""
    train, test = digits()
    label = noisy_labels(train.labels, 10, 0.4, seed=0)
    image, test_image = (torch.tensor(part.images / 255.0, dtype=torch.float32) for part in (train, test))
    third = len(label) // 3  # the reference has its own examples
    reference = LogisticRegression(C=0.05, max_iter=500).fit(image[:third].flatten(1), label[:third])
    found = {"reference": float(reference.score(test_image.flatten(1), test.labels))}
    x, y = image[third:], torch.from_numpy(label[third:])
    log_p = torch.tensor(reference.predict_log_proba(x.flatten(1)), dtype=torch.float32)
    guide = F.nll_loss(log_p, y, reduction="none")
    data = TensorDataset(x, y, torch.arange(len(y)))
    for name, losses in (("plain", None), ("steered", guide)):
        pl.seed_everything(0, verbose=False)
        model = Classifier(losses)
        callbacks = [] if model.steer is None else [SteeringCallback(model.steer)]
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(
            max_epochs=epochs, callbacks=callbacks, **{"enable_checkpointing": False, **quiet, **options}
        )
        trainer.fit(model, DataLoader(data, batch_size=32, shuffle=True))
        right = model.network(test_image).argmax(-1) == torch.from_numpy(test.labels)
        found[name] = right.float().mean().item()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    for name, accuracy in main(parser.parse_args().epochs).items():
        print(f"{name}: {100 * accuracy:.1f} % of the test digits")
