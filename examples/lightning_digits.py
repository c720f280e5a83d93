"""Steering in Lightning: handwritten digits, 40 % of the labels wrong, guided by a linear
classifier of 200 clean ones.

    python examples/lightning_digits.py        (under half a minute on a CPU)

What is ours are the lines with "steer" and "reference" in them.
"""

import argparse
import logging

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import steering
from steering.integrations.lightning import SteeringCallback

CLEAN, TEST, WRONG = 200, 500, 0.4


class Classifier(pl.LightningModule):
    def __init__(self, reference_losses=None):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
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
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def split(seed):
    """Pixels in [0, 1] and labels of three parts: clean ones, many of which 40 % are wrong, and a
    clean test set."""
    image, label = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    image, draw = image.float() / 16, torch.Generator().manual_seed(seed)
    order = torch.randperm(len(label), generator=draw)
    clean, noisy, test = order.tensor_split([CLEAN, len(order) - TEST])
    wrong = torch.rand(len(noisy), generator=draw) < WRONG
    other = (label[noisy] + torch.randint(1, 10, (len(noisy),), generator=draw)) % 10
    return (
        (image[clean], label[clean]),
        (image[noisy], torch.where(wrong, other, label[noisy])),
        (image[test], label[test]),
    )


def accuracies(seed, epochs):
    """Test accuracy of the reference, of plain training and of steered training, from one split of
    the digits."""
    clean, (x, y), (test_x, test_y) = split(seed)
    reference = LogisticRegression(max_iter=500).fit(*clean)
    found = {"reference": float(reference.score(test_x, test_y))}
    log_p = torch.tensor(reference.predict_log_proba(x), dtype=torch.float32)
    guide = F.nll_loss(log_p, y, reduction="none")
    data = TensorDataset(x, y, torch.arange(len(y)))
    for name, reference_losses in (("plain", None), ("steered", guide)):
        pl.seed_everything(seed, verbose=False)
        model = Classifier(reference_losses)
        quiet = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "accelerator": "cpu",
        }
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=[] if model.steer is None else [SteeringCallback(model.steer)],
            enable_checkpointing=False,
            **quiet,
        )
        trainer.fit(model, DataLoader(data, batch_size=128, shuffle=True))
        found[name] = (model.network(test_x).argmax(-1) == test_y).float().mean().item()
    return found


def main(epochs: int = 10, seeds: int = 5) -> dict[str, torch.Tensor]:
    """Accuracies, one a seed, of the reference, of plain and of steered training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = [accuracies(seed, epochs) for seed in range(seeds)]
    return {name: torch.tensor([scores[name] for scores in found]) for name in found[0]}


def percent(values: torch.Tensor) -> str:
    """Mean ± standard error."""
    error = f" ± {100 * values.std() / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{error}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    result = main(options.epochs, options.seeds)
    for name, scores in result.items():
        print(f"{name}: {percent(scores)} % of {TEST} test digits")
    lead = result["steered"] - result["plain"]
    print(
        f"Steered less plain: {percent(lead)} points over {options.seeds} splits (mean ± standard error). The reference finds the"
        " wrong labels as unlikely as they are, so its losses are large there, and the steered loss hardly pulls at them."
    )
