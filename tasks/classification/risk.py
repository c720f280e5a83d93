"""The loss of every example."""

from __future__ import annotations

from torch import nn

from steering.items import Units
from steering.risk import Batch, Outputs, ReferenceRisk
from steering.typed import plain

from .losses import LOSSES, CrossEntropy, LabelLoss


def _named(loss: LabelLoss) -> str:
    """Such as "gce(q=0.7)"."""
    options = ", ".join(f"{key}={value}" for key, value in plain(loss).items())
    return f"{LOSSES.name_of(loss)}({options})"


class ClassificationRisk(ReferenceRisk):
    """One adversary over the examples of a batch; a reference cache holds one float per example.

    Args:
        loss: of an example, the target's and the reference's.
    """

    unit = "example"

    def __init__(self, loss: LabelLoss | None = None) -> None:
        self.loss = CrossEntropy() if loss is None else loss
        usual = isinstance(self.loss, CrossEntropy)
        self.identity = "" if usual else _named(self.loss)

    def outputs(self, model: nn.Module, batch: Batch, logits: bool = False) -> Outputs:
        """ "loss", (b,), cross entropy in nats unless another is chosen; with `logits` also these, (b, classes)."""
        scores = model(batch["image"]).float()
        found = {"loss": self.loss(scores, batch["label"])}
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
