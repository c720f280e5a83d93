"""The global contrastive risk as a function with a gradient: duals between the two passes of
`blocked.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.blocked import LOG2E, Blocks
from steering.contrastive.exchange import Parcel, expecting
from steering.items import Pairs


class GlobalRisk(torch.autograd.Function):
    """(height, log û, mean of h/τ), each (2, b), of every anchor; the gradient is that of the
    height, ∂ log(ε + û)/∂S, in τ.

    The height is log(ε + u), where u is the running estimate that û has just moved: as everywhere,
    the weights are exp(h/τ)/((B − 1)(ε + u)), detached. What other ranks know of the texts'
    gradient goes into the parcel. There is no second derivative, and asking for one is an error.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        image: Tensor,  # noqa: ARG004  (the blocks hold them, detached)
        text: Tensor,  # noqa: ARG004
        blocks: Blocks,
        heights: Callable[[Tensor], Tensor],
        parcel: Parcel,
    ) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(blocks.image.device.type, enabled=False):
            log_means, means = blocks.log_means()
        # A dual without history is log û itself: the output with a gradient must be another tensor.
        height = heights(log_means).clone()
        ctx.blocks, ctx.parcel = blocks, parcel
        ctx.save_for_backward(height, log_means, *blocks.put_away())
        ctx.mark_non_differentiable(log_means, means)
        return height, log_means, means

    @staticmethod
    def backward(ctx, weights: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the contrastive risk in blocks has no second derivative (create_graph=True)"
            )
        height, log_means, *features = ctx.saved_tensors
        blocks: Blocks = ctx.blocks
        blocks.take_up(features)
        weights = weights / blocks.taus
        pull = (weights * (log_means - height).exp()).sum(0)[
            :, None
        ]  # what the positives push back
        log_entry = (
            weights.abs().log2()
            - LOG2E * height
            - blocks.positives
            - math.log2(len(blocks.text) - 1)
        )
        signs = weights.sign()
        with torch.autocast(blocks.image.device.type, enabled=False):
            every = distributed.gather(
                torch.stack([log_entry[1], signs[1]], -1)
            )  # (B, 2): one exchange
            plain = signs.device.type == "cpu" and not bool(
                (signs[0] < 0).any() or (every[:, 1] < 0).any()
            )
            grad_image, grad_text = blocks.gradients(
                (log_entry[0], every[:, 0]),
                None if plain else (signs[0], every[:, 1]),
                ctx.needs_input_grad[:2],
            )
        known = None
        if grad_image is not None:
            grad_image.addcmul_(pull, blocks.text[blocks.own], value=-1)
        if grad_text is not None:
            known = -pull * blocks.image
            ctx.parcel.content = distributed.send_to_owner(grad_text)
        blocks.put_away()
        return grad_image, known, None, None, None


def global_risk(
    pairs: Pairs, blocks: Blocks, heights: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`GlobalRisk` of the pairs that the blocks were made of; `heights` takes log û to log(ε + u),
    (2, b) both."""
    text, parcel = expecting(pairs.text)
    found: tuple[Tensor, Tensor, Tensor] = GlobalRisk.apply(
        pairs.image, text, blocks, heights, parcel
    )
    return found
