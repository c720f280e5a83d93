"""The contrastive risk of image–text pairs: features are the outputs, pairs the loss items."""

from __future__ import annotations

from torch import nn

from steering.items import Pairs
from steering.risk import Batch, Outputs, ReferenceRisk

from .models import unit_norm


class ClipRisk(ReferenceRisk):
    """Works for every open_clip model; the reference may have another feature width than the
    target."""

    unit = "pair"

    def outputs(self, model: nn.Module, batch: Batch, logits: bool = False) -> Outputs:  # noqa: ARG002
        """Unit-norm features "image" and "text", (b, d), float32; the model's logit scale in each
        row, "scale", (b,).

        They are all that any method of pairs asks for: logits are products of features.
        """
        found = model(batch["image"], batch["text"])  # through forward, so that DDP sees it
        outputs = {
            "image": unit_norm(found["image_features"]),
            "text": unit_norm(found["text_features"]),
        }
        if "logit_scale" in found:
            outputs["scale"] = (
                found["logit_scale"].detach().float().reshape(()).repeat(len(outputs["image"]))
            )
        return outputs

    def losses(self, target: Outputs, reference: Outputs | None, batch: Batch) -> Pairs:
        given = {f"reference_{key}": value for key, value in (reference or {}).items()}
        return Pairs(target["image"], target["text"], batch["index"], **given)
