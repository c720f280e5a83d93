"""Kullback–Leibler: the divergence whose weights are a softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence, tilted
from steering.dro.divergences.rows import Rows, Solution, variance_of
from steering.dro.search import LOG_RANGE

# β·x with x ∈ [−1, 0] must stay in its dtype: float32 ends at e^88.
_LOG_BETA = {torch.float32: (-30.0, 85.0), torch.float64: LOG_RANGE}


@DIVERGENCES.register("kl")
@dataclass(frozen=True)
class KL(Divergence):
    """Kullback–Leibler, φ(t) = t log t − t + 1, φ*(s) = e^s − 1, nats."""

    has_log_means: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        # Around t = 1, φ is (t − 1)²/2: log(t) would drown it in rounding, log1p(t − 1) does not.
        # Around t = 0, where t − 1 has lost t, the clamp keeps 0 · log 0 = 0 and costs less than
        # one rounding of φ = 1.
        e = t - 1
        floor = torch.finfo(t.dtype).eps / 2 - 1
        return (t * e.clamp_min(floor).log1p() - e).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        return s.expm1()

    def ratio(self, s: Tensor) -> Tensor:
        return s.exp()

    def most(self, items: int) -> float:
        return math.log(items)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = exp(s_i − ν), ν = log Σ q exp(s). Source: φ′(t) = log t = s − ν, our derivation."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows) -> Solution:
        """p ∝ q·exp(x), value = ν = log Σ q exp(x)."""
        e, level, log_z = _exp(rows, rows.x, rows.extent)
        return Solution(rows.weights(e, level), log_z, torch.ones_like(log_z), log_z)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """p ∝ q·exp(βx) with D(β) = β E_p[x] − Λ(β) = R, Λ = log Σ q exp(βx), by Newton steps on
        log β; D′ = β Var_p(x).

        The root is sought for the logit of D / max D: a straight line of slope 2 in log β where the
        row is nearly uniform, and still finite in slope near the maximum, where D itself goes flat.
        A bracket guards each step.
        """
        x = rows.x
        most = -rows.share(x == 0).log()  # D of the largest items
        # Exact for a Gaussian row.
        log_beta = (2 * radius / variance_of(rows)).log() / 2
        # The bracket: D ≤ β²/8 on [−1, 0] bounds β from below, nothing from above.
        low, high = (8 * radius).log() / 2 - 1e-6, torch.full_like(log_beta, math.inf)
        log_beta = torch.maximum(log_beta, low).clamp(*_LOG_BETA[x.dtype])
        eps = torch.finfo(x.dtype).eps
        for _ in range(200):
            beta = log_beta.exp()
            e, level, log_z = _exp(rows, torch.mul(x, rows.column(beta), out=rows.like_x(0)), beta)
            mean = rows.mean(torch.mul(e, x, out=rows.like_x(1))) / level
            variance = rows.mean(rows.like_x(1).mul_(x)) / level - mean.square()
            spent = beta * mean - log_z
            # D is a difference of β·mean and log Z, so their rounding is all that it can be asked
            # for.
            found = (spent - radius).abs() <= 4 * eps * (beta * mean.abs() + log_z.abs() + radius)
            low = torch.where(~found & (spent < radius), log_beta, low)
            high = torch.where(~found & (spent > radius), log_beta, high)
            if (found | (high - low <= 4e-16 * (1 + low.abs()))).all():
                break
            logit = (spent / radius).log() - (
                (most - spent).clamp_min(1e-300) / (most - radius)
            ).log()
            slope = beta.square() * variance * (1 / spent + 1 / (most - spent).clamp_min(1e-300))
            # A step that leaves the bracket, or goes a factor of e⁴ beyond its lower end, becomes a
            # bisection; as long as there is no upper end, a factor of e².
            step = (log_beta - logit / slope).nan_to_num(math.inf)
            middle = torch.where(high.isinf(), low + 2, (low + high) / 2)
            inside = (step > low) & (step < torch.minimum(high, low + 4))
            # A row that is done stands still, so its answer does not depend on its neighbours.
            log_beta = torch.where(found, log_beta, torch.where(inside, step, middle)).clamp(
                *_LOG_BETA[x.dtype]
            )
        return Solution(rows.weights(e, level), mean, 1 / beta, log_z / beta)


def _exp(rows: Rows, s: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(s) times a constant of each row, (m, n), in the memory of s; its mean; and log Σ q
    exp(s). −min s is the extent.

    torch's softmax is the faster exponential, but sums a long row so carelessly that its mean is
    taken again.
    """
    # Nearly flat rows lose their digits in a mean near 1; expm1 and log1p keep them.
    flat = extent < 0.5
    dip = rows.mean(s.expm1()) if flat.any() else extent
    if rows.prior is None:
        e = torch.softmax(s, -1, out=s if s.device.type == "cpu" else None)
        level = rows.mean(e)
        # The largest item has s = 0, so its share tells the constant that softmax has put in.
        log_z = (level / e.amax(-1)).log()
    else:
        e = s.exp_()
        level = rows.mean(e)
        log_z = level.log()
    return e, level, torch.where(flat, dip.log1p(), log_z)
