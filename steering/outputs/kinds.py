"""Kinds of outputs: what is computed of a model on a batch, by name.

losses          what a method needs of a reference: a loss per item, or for pairs the features of both towers
logits          that, and the scores over classes or tokens
features        the tensors of `losses` that are no losses: the towers' features of pairs
entropy         of the distribution over classes or tokens, nats
hidden:LAYER    the output of a layer, by its name in `named_modules`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.risk import Batch, Outputs, ReferenceRisk, outputs_with

KINDS = ("losses", "logits", "features", "entropy")
HIDDEN = "hidden:"


def require_kind(kind: str) -> None:
    """SteeringError unless there is such a kind."""
    if kind not in KINDS and not (kind.startswith(HIDDEN) and kind != HIDDEN):
        raise SteeringError(
            f"outputs: no kind {kind!r}; there are {', '.join(KINDS)} and {HIDDEN}LAYER"
        )


@torch.no_grad()
def compute(kind: str, risk: ReferenceRisk, module: nn.Module, batch: Batch) -> Outputs:
    """The tensors of one kind, float32 or the batch's integers, (b, ...) each.

    Raises:
        SteeringError: no such kind or layer, or the task's risk has no logits or features.
    """
    require_kind(kind)
    if kind.startswith(HIDDEN):
        return {kind: _hidden(kind.removeprefix(HIDDEN), risk, module, batch)}
    found = outputs_with(risk, kind in ("logits", "entropy"))(module, batch)
    if kind == "entropy":
        if "logits" not in found:
            raise SteeringError("outputs: entropy needs logits, and this task has none")
        # From log p, as p·log p of a p that has underflowed would be 0·(−∞).
        log_p = found["logits"].float().log_softmax(-1)
        return {"entropy": -(log_p.exp() * log_p).sum(-1)}
    if kind == "features":
        found = {name: value for name, value in found.items() if name not in ("loss", "logits")}
        if not found:
            raise SteeringError(
                f"outputs: this task's outputs have no features; name a layer as {HIDDEN}LAYER"
            )
    return found


def _hidden(layer: str, risk: ReferenceRisk, module: nn.Module, batch: Batch) -> Tensor:
    layers = dict(module.named_modules())
    if layer not in layers:
        near = [name for name in layers if layer in name][:5] or [*layers][1:6]
        raise SteeringError(
            f"outputs: the model has no layer {layer!r}; some are {', '.join(near)}"
        )
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            seen.append(first.detach().float())

    handle = layers[layer].register_forward_hook(keep)
    try:
        risk.outputs(module, batch)
    finally:
        handle.remove()
    # A layer that is called twice, or not once for each example, has no row for an example.
    b = len(batch["index"])
    if len(seen) != 1 or seen[0].ndim == 0 or len(seen[0]) != b:
        shapes = ", ".join(str(tuple(value.shape)) for value in seen) or "nothing"
        raise SteeringError(
            f"outputs: layer {layer!r} gave {shapes}; expected one tensor with {b} rows in a forward pass"
        )
    return seen[0]
