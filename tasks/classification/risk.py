"""Cross entropy of every example."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from steering.items import Units
from steering.risk import Batch, Outputs, ReferenceRisk


class ClassificationRisk(ReferenceRisk):
    """One adversary over the examples of a batch; a reference cache holds one float per example."""

    unit = "example"

    def outputs(self, model: nn.Module, batch: Batch) -> Outputs:
        """Cross entropy "loss", (b,), nats; with `with_logits` also "logits", (b, classes)."""
        logits = model(batch["image"]).float()
        found = {"loss": F.cross_entropy(logits, batch["label"], reduction="none")}
        return found | ({"logits": logits} if self.with_logits else {})

    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> Units:
        guide = reference or {}
        rows = torch.zeros((), dtype=torch.int64, device=batch["index"].device)
        return Units(
            target["loss"],
            guide.get("loss"),
            rows,
            groups=batch.get("group"),
            logits=target.get("logits"),
            reference_logits=guide.get("logits"),
        )
