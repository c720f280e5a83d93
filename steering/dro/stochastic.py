"""KL-DRO from mini-batches: one running estimate per adversary (SogCLR, FastCLIP, DRRho-CLIP).

For each row i of loss items the inner problem  max_p Σ_j p_j h_ij − τ·KL(p ‖ 1/n)  has the value τ·log u_i with
u_i = mean_j exp(h_ij / τ). A mini-batch sees only some j, and log of a small-sample mean is biased, so u_i is tracked by a
moving average, in log space.  Legend: (...) rows, n items in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steering import distributed
from steering.risk import Units


def gamma_schedule(epoch: int, final: float, decay_epochs: int) -> float:
    """Rate of the moving average: γ_min + (1 − γ_min)(1 + cos(πe/E))/2, γ_min from epoch E on.

    Epoch 0 gives 1: a young model's history is worthless. Source: arXiv 2407.01445 (FastCLIP), γ schedule.
    """
    if epoch >= decay_epochs:
        return final
    return final + (1 - final) * (1 + math.cos(math.pi * epoch / decay_epochs)) / 2


class MovingAverage(nn.Module):
    """log u of every row of the data set: u ← (1−γ)·u + γ·g, and u ← g on the first visit, in log space.

    A flag per row says "never visited": zero, and any other number, is a legal value of log u. On every rank the table is
    whole and the same.

    Args:
        num_rows: adversaries in the whole data set: 1 for a plain batch of examples, 2n for n pairs in two directions.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__()
        if num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, got {num_rows}")
        self.log_u: Tensor
        self.visited: Tensor
        self.register_buffer("log_u", torch.zeros(num_rows))
        self.register_buffer("visited", torch.zeros(num_rows, dtype=torch.bool))

    @torch.no_grad()
    def update(self, rows: Tensor, log_g: Tensor, gamma: float, sharded: bool = False) -> Tensor:
        """Take in one batch's estimates and return the new log u of its rows, in the dtype of `log_g`.

        Args:
            rows: keys in [0, num_rows), int64, (...); each at most once in a batch.
            log_g: log of the batch mean of exp(h/τ), (...).
            gamma: rate in (0, 1]; 1 forgets the past.
            sharded: rows differ between the ranks, whose updates are then exchanged (O(rows) numbers).
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        old = self.log_u[rows].to(log_g.dtype)
        mixed = log_g
        if gamma < 1:
            mixed = torch.logaddexp(old + math.log1p(-gamma), log_g + math.log(gamma))
        new = torch.where(self.visited[rows], mixed, log_g)
        if sharded:
            all_rows, all_new = distributed.gather(rows.reshape(-1)), distributed.gather(new.reshape(-1))
        else:
            all_rows, all_new = rows.reshape(-1), new.reshape(-1)
        self.log_u[all_rows] = all_new.to(self.log_u.dtype)
        self.visited[all_rows] = True
        return new


class Temperature(nn.Module):
    """τ > 0, fixed or learned through log τ, kept inside [minimum, maximum]."""

    def __init__(self, initial: float, learned: bool, minimum: float = 1e-4, maximum: float = math.inf) -> None:
        super().__init__()
        if not 0 < minimum <= maximum:
            raise ValueError(f"tau_min must lie in (0, {maximum}], got {minimum}")
        if not (minimum <= initial <= maximum and math.isfinite(initial)):
            raise ValueError(f"tau must be a number in [{minimum}, {maximum}], got {initial}")
        self.bounds = (math.log(minimum), math.log(maximum) if math.isfinite(maximum) else math.inf)
        self.log_tau = nn.Parameter(torch.tensor(math.log(initial), dtype=torch.float32), requires_grad=learned)

    def forward(self) -> Tensor:
        with torch.no_grad():  # a projection, as in the paper: a clamp inside the graph would trap τ at the border
            self.log_tau.clamp_(*self.bounds)
        return self.log_tau.exp()


@dataclass(frozen=True)
class Estimate:
    """One batch of a stochastic KL risk.

    Attributes:
        loss: (), its value estimates the risk, its gradient is the stochastic gradient (weights detached).
        weights: p_ij, (..., n), detached, ≥ 0; rows sum to 1 when γ = 1 and ε = 0.
        metrics: detached scalars for a log.
    """

    loss: Tensor
    weights: Tensor
    metrics: dict[str, Tensor]


class StochasticKL(nn.Module):
    """The KL-DRO risk of excess losses, estimated from mini-batches.

        F(w, τ) = mean_i τ·( log(ε + u_i) + R ),   u_i = mean_j exp(h_ij / τ),   h = ℓ − α·ℓ_ref

    Penalised form (radius None): τ fixed, R = 0. Constrained form: τ is learned, and at the optimum each KL(p ‖ uniform)
    averages to the radius R. ε > 0 is a margin: a row stops pulling once its losses are all below τ·log ε.

    Args:
        num_rows: rows in the whole data set, the size of the running estimates.
        tau: temperature in the unit of the losses (nats for examples, cosine for contrastive); initial value if learned.
        radius: R in nats, or None.
        strength: α ≥ 0, how much of the reference's loss is subtracted; 1 is the paper, 0 ignores the reference.
        epsilon: ε ≥ 0.
        gamma: final rate of the moving average, in (0, 1].
        gamma_decay_epochs: epochs of the cosine from 1 to `gamma`; 0 uses `gamma` from the start.
        tau_min, tau_max: where a learned temperature may go.

    Source: arXiv 2505.06699 and 2407.01445; derivation in docs/theory.md.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        tau: float,
        radius: float | None = None,
        strength: float = 1.0,
        epsilon: float = 0.0,
        gamma: float = 1.0,
        gamma_decay_epochs: int = 0,
        tau_min: float = 1e-4,
        tau_max: float = math.inf,
    ) -> None:
        super().__init__()
        for name, value, ok, expected in [
            ("tau", tau, 0 < tau < math.inf, "a number > 0"),
            ("tau_min", tau_min, 0 < tau_min < math.inf, "a number > 0"),
            ("radius", radius, radius is None or 0 <= radius < math.inf, "a number ≥ 0, or None"),
            ("strength", strength, 0 <= strength < math.inf, "a number ≥ 0"),
            ("epsilon", epsilon, 0 <= epsilon < math.inf, "a number ≥ 0"),
            ("gamma", gamma, 0 < gamma <= 1, "in (0, 1]"),
            ("gamma_decay_epochs", gamma_decay_epochs, gamma_decay_epochs >= 0, "≥ 0"),
        ]:
            if not ok:
                raise ValueError(f"{name} must be {expected}, got {value}")
        self.temperature = Temperature(
            tau, radius is not None, tau_min if radius is not None else min(tau, tau_min), tau_max
        )
        self.average = MovingAverage(num_rows)
        self.radius, self.strength = radius or 0.0, strength
        self.log_epsilon = math.log(epsilon) if epsilon > 0 else -math.inf
        self.gamma_final, self.gamma_decay_epochs = gamma, gamma_decay_epochs
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.gamma = gamma_schedule(epoch, self.gamma_final, self.gamma_decay_epochs)

    def forward(self, units: Units) -> Estimate:
        """Risk of one batch of loss items; updates the running estimates of its rows."""
        tau = self.temperature()
        excess = units.excess(self.strength)  # (..., n)
        weights, log_mean, kl_slope = self._weights(units, excess.detach(), tau.detach())
        surrogate = (weights * excess).sum(-1).mean() + (tau - tau.detach()) * kl_slope.mean()
        value = tau.detach() * (log_mean.mean() + self.radius)
        return Estimate(
            loss=surrogate + (value - surrogate).detach(),
            weights=weights,
            metrics=excess_metrics(units, excess.detach()) | weight_metrics(units, weights) | {"tau": tau.detach()},
        )

    @torch.no_grad()
    def _weights(self, units: Units, excess: Tensor, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p, (..., n); log(ε + u), (...); and ∂F/∂τ per row, log(ε + u) + R − Σ_j p_j h_j/τ, (...)."""
        d = excess / tau
        if units.mask is not None:
            d = d.masked_fill(~units.mask, -math.inf)
        counts = units.counts()
        log_g = d.logsumexp(-1) - counts.log()
        log_u = self.average.update(units.rows, log_g, self.gamma, units.sharded)
        log_mean = torch.logaddexp(log_u, torch.full_like(log_u, self.log_epsilon))
        weights = (d - log_mean[..., None]).exp() / counts[..., None]
        slope = log_mean + self.radius - (weights * excess).sum(-1) / tau
        return weights, log_mean, slope


@torch.no_grad()
def excess_metrics(units: Units, excess: Tensor) -> dict[str, Tensor]:
    """Mean and variance of the excess losses over all items that count."""
    mask = units.mask if units.mask is not None else torch.ones_like(excess, dtype=torch.bool)
    count = mask.sum()
    mean = (excess * mask).sum() / count
    return {"excess_mean": mean, "excess_variance": ((excess - mean).square() * mask).sum() / count}


@torch.no_grad()
def weight_metrics(units: Units, weights: Tensor) -> dict[str, Tensor]:
    """Effective sample size of the weights, (Σp)²/Σp², as a share of the row's items (1 = uniform), averaged over rows."""
    ess = weights.sum(-1).square() / weights.square().sum(-1).clamp_min(torch.finfo(weights.dtype).tiny)
    return {"effective_sample_share": (ess / units.counts()).mean(), "weight_sum": weights.sum(-1).mean()}
