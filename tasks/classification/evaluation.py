"""How good is a classifier: accuracy, calibration, the worst group; and the pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError

from .losses import CrossEntropy, LabelLoss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 512


@dataclass(frozen=True)
class Predicted:
    """What a model says of n examples, on the CPU.

    Attributes:
        probability: of each class, (n, C).
        label: int64, (n,).
        number: of the example in the data that were asked for, int64, (n,).
        group: int64, (n,), or None.
    """

    probability: Tensor
    label: Tensor
    number: Tensor
    group: Tensor | None = None


@torch.no_grad()
def predict(module: nn.Module, data: IndexedData, device: torch.device) -> Predicted:
    """What a model says of every example; its mode is left as it is.

    n counts the examples that the data deliver: those that cannot be read are left out. Every rank
    runs the model on its share of the examples and gets all results.

    Raises:
        SteeringError: not one can be read.
    """
    found: dict[str, list[Tensor]] = {"probability": [], "label": [], "number": [], "group": []}
    mine = distributed.share(len(data))
    for start in range(mine.start, mine.stop, CHUNK):
        batch = data.batch(np.arange(start, min(start + CHUNK, mine.stop)), 0)
        if not len(batch["label"]):
            continue
        found["probability"].append(module(batch["image"].to(device)).float().softmax(-1))
        found["label"].append(batch["label"].to(device))
        found["number"].append(batch["index"].to(device))
        if "group" in batch:
            found["group"].append(batch["group"].to(device))
    return _of_all(found, len(data), device)


def _of_all(found: dict[str, list[Tensor]], wanted: int, device: torch.device) -> Predicted:
    """What all ranks have found; a rank whose share cannot be read brings nothing."""
    classes = found["probability"][0].shape[1] if found["probability"] else 0
    widths = distributed.gather_uneven(
        torch.tensor([classes, len(found["group"])], device=device).reshape(1, 2)
    )
    width, grouped = int(widths[:, 0].max()), bool(widths[:, 1].max())
    if not width:
        raise SteeringError(f"task.data: none of the {wanted} images to evaluate can be read")
    empty = {
        "probability": torch.zeros(0, width),
        "label": torch.zeros(0).long(),
        "number": torch.zeros(0).long(),
        "group": torch.zeros(0).long(),
    }
    whole = {
        name: distributed.gather_uneven(torch.cat(parts) if parts else empty[name].to(device)).cpu()
        for name, parts in found.items()
        if name != "group" or grouped
    }
    return Predicted(**whole)


def accuracy(probability: Tensor, label: Tensor) -> float:
    return (probability.argmax(-1) == label).double().mean().item()


def losses(probability: Tensor, label: Tensor, loss: LabelLoss | None = None) -> Tensor:
    """Losses of probabilities, (n, C), float64, (n,); by default cross entropy in nats. A
    probability that has underflown counts as the smallest that float32 has."""
    smallest = torch.finfo(torch.float32).tiny
    if loss is not None and not isinstance(loss, CrossEntropy):
        # Scores of a softmax are log-probabilities up to a constant.
        return loss(probability.double().clamp_min(smallest).log(), label)
    own = probability.double().gather(1, label[:, None])
    return -own.clamp_min(smallest).log()[:, 0]


def calibration_error(probability: Tensor, label: Tensor, bins: int = 15) -> float:
    """Expected calibration error: Σ_b (n_b/n)·|accuracy_b − confidence_b| over equal bins of
    confidence, in [0, 1].

    Source: arXiv 1706.04599, equation (3).
    """
    shares, confidences, accuracies = reliability(probability, label, bins)
    return float((shares * (accuracies - confidences).abs()).sum())


def reliability(
    probability: Tensor, label: Tensor, bins: int = 15
) -> tuple[Tensor, Tensor, Tensor]:
    """Share of the examples, mean confidence and accuracy in each bin ((k−1)/bins, k/bins],
    float64, (bins,); empty: zeros."""
    confidence, predicted = probability.double().max(-1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    count, sure, right = torch.zeros(3, bins, dtype=torch.float64)
    count.index_add_(0, place, torch.ones_like(confidence))
    sure.index_add_(0, place, confidence)
    right.index_add_(0, place, (predicted == label).double())
    some = count.clamp_min(1)
    return count / len(label), sure / some, right / some


def group_accuracies(probability: Tensor, label: Tensor, group: Tensor) -> dict[int, float]:
    """Accuracy in every group that has examples."""
    right = (probability.argmax(-1) == label).double()
    return {int(g): right[group == g].mean().item() for g in group.unique()}


def reliability_figure(probability: Tensor, label: Tensor) -> Figure:
    """Accuracy against confidence; the diagonal is perfect calibration, the area of a point its
    share of the examples."""
    shares, confidences, accuracies = reliability(probability, label)
    used = shares > 0
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
    axes.plot(confidences[used], accuracies[used], linewidth=1)
    axes.scatter(confidences[used], accuracies[used], s=10 + 300 * shares[used])
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.set_title(f"reliability, ECE {100 * calibration_error(probability, label):.1f} %")
    return figure


def confusion_figure(probability: Tensor, label: Tensor, classes: Sequence[str]) -> Figure:
    """Share of each true class (rows) that is taken for each class."""
    n = len(classes)
    counts = (
        torch.zeros(n * n)
        .index_add(0, label * n + probability.argmax(-1), torch.ones(len(label)))
        .view(n, n)
    )
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    side = min(9.0, 2.4 + 0.3 * n)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    if n <= 25:
        axes.set_xticks(range(n), classes, rotation=90 if max(map(len, classes)) > 3 else 0)
        axes.set_yticks(range(n), classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure
