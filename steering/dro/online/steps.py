"""One step of a dual variable ν on one batch, as functions: mirror descent and the proximal
point."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.dro.divergences.base import Divergence


def mirror_step(nu: Tensor, s: Tensor, log_alpha: float | Tensor) -> Tensor:
    """argmin_x e^{s − x} + x + (1/α)·[e^−x − e^−ν + e^−ν (x − ν)], elementwise: ν + log(1 + α e^s)
    − log(1 + α e^ν).

    Written as a mean in log space, log((1 − g) e^ν + g e^s) with g = σ(log α + ν), which lies
    between ν and s in floating point too. Source: arXiv 2602.02877.
    """
    rate = nu + log_alpha
    return torch.logaddexp(F.logsigmoid(-rate) + nu, F.logsigmoid(rate) + s)


def proximal_step(
    divergence: Divergence, scores: Tensor, mask: Tensor | None, nu: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """t, (..., n), and argmin_x x + mean φ*(s − x) + (x − ν)²/(2λ), (...), λ being the step; solved
    in float64, see `Divergence.proximal`."""
    # λ is divided by, and float32 may have made 0 of a tiny step.
    lam = step.double().clamp_min(1e-300)
    t, x = divergence.proximal(scores.double(), mask, nu.double(), lam)
    return t.to(scores.dtype), x.to(scores.dtype)
