"""Cross entropy of every example."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from steering.items import Units
from steering.risk import Batch, Outputs, ReferenceRisk


class ClassificationRisk(ReferenceRisk):
    """One adversary over the examples of a batch; a reference cache holds one float per example."""

    unit = "example"

    def outputs(self, model: nn.Module, batch: Batch, logits: bool = False) -> Outputs:
        """Cross entropy "loss", (b,), nats; with `logits` also these, (b, classes)."""
        scores = model(batch["image"]).float()
        found = {"loss": F.cross_entropy(scores, batch["label"], reduction="none")}
        if logits:
            found["logits"] = scores
        return found

    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> Units:
        given = reference or {}
        return Units(
            target["loss"],
            given.get("loss"),
            groups=batch.get("group"),
            logits=target.get("logits"),
            reference_logits=given.get("logits"),
        )
