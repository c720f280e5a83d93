"""Cross entropy of every token, or its mean over every block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from steering.items import Units
from steering.risk import Batch, Outputs, ReferenceRisk


class LanguageRisk(ReferenceRisk):
    """One adversary over the tokens, or over the sequences, of a batch; a reference cache holds one
    float per token."""

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def outputs(self, model: nn.Module, batch: Batch, logits: bool = False) -> Outputs:
        """Cross entropy "loss", (b, T), nats, zero where masked; with `logits` also these, (b, T,
        V)."""
        tokens = batch["tokens"]
        scores = model(tokens[:, :-1]).float()  # (b, T, V)
        labels = tokens[:, 1:]
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none")
        found = {"loss": loss.view(labels.shape).masked_fill(~batch["mask"], 0.0)}
        if logits:
            found["logits"] = scores
        return found

    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> Units:
        given, mask = reference or {}, batch["mask"]
        reference_loss = given.get("loss")
        if self.unit == "sequence":
            means = None if reference_loss is None else _mean(reference_loss, mask)
            return Units(_mean(target["loss"], mask), means, groups=batch["group"], unit="sequence")
        return Units(
            target["loss"].flatten(),
            None if reference_loss is None else reference_loss.flatten(),
            mask=mask.flatten(),
            groups=batch["group"][:, None].expand(mask.shape).flatten(),
            logits=_items(target.get("logits")),
            reference_logits=_items(given.get("logits")),
            unit="token",
        )


def _mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each block, (b,)."""
    return (loss * mask).sum(-1) / mask.sum(-1)


def _items(logits: Tensor | None) -> Tensor | None:
    """(b, T, V) as (b·T, V)."""
    return None if logits is None else logits.flatten(0, 1)
