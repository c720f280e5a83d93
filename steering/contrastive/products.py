"""The products and passes that a block is made of."""

from __future__ import annotations

import torch
from torch import Tensor


def number(factor: float | Tensor) -> float | Tensor:
    """A number where that costs nothing: a GPU would have to wait for it."""
    return (
        float(factor) if not isinstance(factor, Tensor) or factor.device.type == "cpu" else factor
    )


def product(x: Tensor, y: Tensor, factor: float | Tensor, out: Tensor, beta: int) -> None:
    """out ← β·out + factor·x yᵀ. A number goes into the product, a tensor into its narrow side."""
    if isinstance(factor, Tensor):
        x, factor = x * factor, 1.0
    out.addmm_(x, y.T, beta=beta, alpha=factor)


def affine(x: Tensor, slope: Tensor, offset: Tensor, out: Tensor) -> None:
    """out ← slope·x + offset. Along a row both are of one element, and two passes are the faster
    way.

    For a single row they are the right one, too: one pass may not round the product, and `NOTHING`
    less its own rounded product is not zero.
    """
    if slope.shape[-1] == 1 or len(x) == 1:
        torch.mul(x, slope, out=out).add_(offset)
    else:
        torch.addcmul(offset, x, slope, out=out)
