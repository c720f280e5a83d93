"""One step of a dual variable ν on one batch, as functions: mirror descent and the proximal point."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.dro.base import Divergence


def mirror_step(nu: Tensor, s: Tensor, log_alpha: float | Tensor) -> Tensor:
    """argmin_x e^{s − x} + x + (1/α)·[e^−x − e^−ν + e^−ν (x − ν)], elementwise: ν + log(1 + α e^s) − log(1 + α e^ν).

    Written as a mean in log space, log((1 − g) e^ν + g e^s) with g = σ(log α + ν), which lies between ν and s in floating
    point too. Source: arXiv 2602.02877.
    """
    rate = nu + log_alpha
    return torch.logaddexp(F.logsigmoid(-rate) + nu, F.logsigmoid(rate) + s)


def proximal_step(
    divergence: Divergence, scores: Tensor, mask: Tensor, nu: Tensor, step: Tensor
) -> tuple[Tensor, Tensor]:
    """t, (..., n), and argmin_x x + mean φ*(s − x) + (x − ν)²/(2λ), (...), by bisection of its rising derivative.

    The derivative is 1 − mean t(x) + (x − ν)/λ with t = φ*′(s − x). Between the two ends of the last bracket t is mixed
    such that it is zero: at a kink of φ* that is the only right ratio.
    """
    s, before, counts = scores.double(), nu.double(), mask.sum(-1)
    lam = step.double().clamp_min(1e-300)

    def ratios(x: Tensor) -> Tensor:
        return divergence.ratio(s - x[..., None]).masked_fill(~mask, 0.0)

    low = torch.minimum(s.masked_fill(~mask, math.inf).amin(-1), before) - 1  # there t ≥ 1
    high = torch.maximum(s.masked_fill(~mask, -math.inf).amax(-1), before)  # there t ≤ 1
    for _ in range(52):
        x = low + (high - low) / 2
        rising = 1 - ratios(x).sum(-1) / counts + (x - before) / lam > 0
        low, high = torch.where(rising, low, x), torch.where(rising, x, high)
    steep, gentle = ratios(low), ratios(high)
    goal = counts * (1 + (high - before) / lam)
    span = (steep - gentle).sum(-1)
    share = torch.where(span > 0, (goal - gentle.sum(-1)) / span, 0.0).clamp(0, 1)
    t = gentle + share[..., None] * torch.where(steep > gentle, steep - gentle, 0.0)
    return t.to(scores.dtype), high.to(scores.dtype)
