"""The losses that Hugging Face models take the mean of, before they do.

Legend: b rows in a batch, T tokens, C classes (or words). A *term* is a summand of the model's
mean: a token of a sequence, an example of a classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.errors import SteeringError

IGNORED = -100
"""The label of what does not count, everywhere in that library."""


class Terms(NamedTuple):
    """Losses of the terms, (b, k), float32, zero where one does not count; which count, bool, (b,
    k)."""

    losses: Tensor
    counted: Tensor


@dataclass(frozen=True)
class Kind:
    """One of the losses.

    Attributes:
        losses: (logits, labels, label smoothing) -> losses of the terms, (b, k).
        counted: labels -> which of them count, bool, (b, k).
        of_tokens: whether a term is a token, so that a row has several.
        smooths: whether label smoothing is made for it.
    """

    losses: Callable[[Tensor, Tensor, float], Tensor]
    counted: Callable[[Tensor], Tensor]
    of_tokens: bool = False
    smooths: bool = False


def terms(name: str, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Terms:
    """The terms of the loss of that name, one of `KINDS`.

    Raises:
        SteeringError: label smoothing for a loss that has none.
    """
    kind = KINDS[name]
    if smoothing and not kind.smooths:
        raise SteeringError(
            f"label_smoothing_factor: has no meaning for the loss of this model ({name}), expected 0"
        )
    return Terms(kind.losses(logits, labels, smoothing), kind.counted(labels))


def _classes(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(
        logits.float(),
        labels.reshape(-1).long(),
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )[:, None]


def _tokens(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(
        logits.float().transpose(1, 2),  # (b, C, T), as torch wants it
        labels.long(),
        reduction="none",
        ignore_index=IGNORED,
        label_smoothing=smoothing,
    )


def _shifted(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return _tokens(logits[:, :-1], labels[:, 1:], smoothing)  # token t predicts label t + 1


def _several_labels(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # noqa: ARG001
    losses = F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none")
    return losses.mean(-1, keepdim=True)


def _regression(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # noqa: ARG001
    outputs = logits.float().reshape(len(logits), -1)
    return (outputs - labels.float().reshape(outputs.shape)).square().mean(-1, keepdim=True)


def _every_row(labels: Tensor) -> Tensor:
    return torch.ones(len(labels), 1, dtype=torch.bool, device=labels.device)


KINDS: dict[str, Kind] = {
    "classes": Kind(_classes, lambda labels: labels.reshape(-1, 1) != IGNORED, smooths=True),
    "tokens": Kind(_tokens, lambda labels: labels != IGNORED, of_tokens=True, smooths=True),
    "shifted": Kind(
        _shifted, lambda labels: labels[:, 1:] != IGNORED, of_tokens=True, smooths=True
    ),
    "several labels": Kind(_several_labels, _every_row),
    "regression": Kind(_regression, _every_row),
}
SMOOTH = tuple(name for name, kind in KINDS.items() if kind.smooths)
