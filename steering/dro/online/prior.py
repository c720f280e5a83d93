"""The prior of an adversary: a soft filter by the reference."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steering.items import Units


@torch.no_grad()
def soft_filter(units: Units, kappa: float) -> Tensor | None:
    """log(n·q), (..., n), of q ∝ exp(−κ·ℓ_ref) over the n items of a row that count, 0 elsewhere;
    None is uniform, as for κ = 0 or without a reference.

    Source: ours, docs/theory.md, "The steering plane".
    """
    if units.reference is None or kappa == 0:
        return None
    scores = -kappa * units.reference
    if units.mask is None:
        return scores.log_softmax(-1) + math.log(scores.shape[-1])
    log_q = scores.masked_fill(~units.mask, -math.inf).log_softmax(-1)
    # Zero where masked: what is added to a score there must not be NaN.
    return (log_q + units.counts().log()[..., None]).masked_fill(~units.mask, 0.0)
