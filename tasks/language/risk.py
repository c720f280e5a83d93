"""Cross entropy of every token, or its mean over every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steering.items import Units
from steering.risk import Batch, Outputs, ReferenceRisk


class LanguageRisk(ReferenceRisk):
    """One adversary over the tokens, or over the sequences, of a batch; a reference cache holds one
    float per token."""

    def __init__(self, unit: str) -> None:
        self.unit = unit

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Cross entropy "loss", (b, T), nats, zero where masked; with `with_logits` also "logits",
        (b, T, V)."""
        tokens = batch["tokens"]
        logits = model(tokens[:, :-1]).float()
        loss = F.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        ).view(tokens[:, 1:].shape)
        found = {"loss": loss.masked_fill(~batch["mask"], 0.0)}
        return found | ({"logits": logits} if self.with_logits else {})

    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> Units:
        guide, mask = reference or {}, batch["mask"]
        rows = torch.zeros((), dtype=torch.int64, device=mask.device)
        if self.unit == "sequence":
            means = [
                None if "loss" not in found else _mean(found["loss"], mask)
                for found in (target, guide)
            ]
            assert means[0] is not None
            return Units(means[0], means[1], rows, groups=batch["group"])
        groups = batch["group"][:, None].expand(mask.shape)
        return Units(
            target["loss"].flatten(),
            guide["loss"].flatten() if "loss" in guide else None,
            rows,
            mask.flatten(),
            groups=groups.flatten(),
            logits=_items(target.get("logits")),
            reference_logits=_items(guide.get("logits")),
        )


def _mean(loss: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each block, (b,)."""
    return (loss * mask).sum(-1) / mask.sum(-1)


def _items(logits: Tensor | None) -> Tensor | None:
    """(b, T, V) as (b·T, V)."""
    return None if logits is None else logits.flatten(0, 1)
