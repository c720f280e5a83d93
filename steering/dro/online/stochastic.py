"""The DRO risk of excess losses from mini-batches: an estimator's ratios, a temperature, a
strength, one scalar to descend.

For each row i of loss items the inner problem  max_p Σ_j p_j h_ij − τ·D_φ(p ‖ 1/n)  has the dual
min_ν τ·(ν + mean_j φ*(h_ij/τ − ν)) and the weights p_ij = φ*′(h_ij/τ − ν)/n. ν is tracked over
batches (`estimates.py`); for KL it is log u_i, u_i = mean_j exp(h_ij / τ).  Legend: (...) rows, n
items in a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steering.dro.divergences import divergence as find
from steering.dro.divergences.base import Divergence, masked_mean
from steering.dro.divergences.cressie_read import KL
from steering.dro.online.estimator import learning, stateful
from steering.dro.online.estimators import build_estimator
from steering.dro.online.row_table import Layout
from steering.dro.online.strength import Strength
from steering.dro.online.temperature import (
    IndividualTemperatures,
    SolvedTemperature,
    Temperature,
    Temperatures,
)
from steering.dro.online.watch import Watch
from steering.items import Units


@dataclass(frozen=True)
class Estimate:
    """One batch of a stochastic DRO risk.

    Attributes:
        loss: (), its value estimates the risk, its gradient is the stochastic gradient (weights
            detached).
        weights: p_ij, (..., n), detached, ≥ 0; rows sum to 1 for an estimator without history and ε
            = 0.
        metrics: detached scalars for a log.
    """

    loss: Tensor
    weights: Tensor
    metrics: dict[str, Tensor]


class StochasticRisk(nn.Module):
    """The DRO risk of excess losses, estimated from mini-batches.

        F(w, τ) = mean_i τ·( ν_i + mean_j φ*(h_ij/τ − ν_i) + R ),   h = ℓ − α·ℓ_ref
        KL:       mean_i τ·( log(ε + u_i) + R ),   u_i = mean_j exp(h_ij / τ)

    Penalised form (radius None): τ fixed, R = 0. Constrained form: τ is learned, and at the optimum
    the divergence of the weights averages to the radius R; a radius beyond what the items of a row
    can spend sends τ to its minimum. ε > 0 is a margin: a row stops pulling once its losses are all
    below τ·log ε.

    In eval mode, and under `no_grad`, nothing of the state changes: the value is that of a training
    call without its traces.

    Args:
        num_rows: rows in the whole data set, the size of the running estimates.
        divergence: an object or a name, see `steering.dro.divergence`; `level` belongs to "cvar",
            `order` to "cressie-read".
        tau: temperature in the unit of the losses (nats for examples, cosine for contrastive);
            initial value if learned. None for CVaR, which has none.
        radius: R in the unit of the divergence (nats for KL), or None.
        strength: α ≥ 0, how much of the reference's loss is subtracted, or "auto"; 1 is the paper,
            0 ignores the reference.
        epsilon: ε ≥ 0; KL only.
        tau_min, tau_max: where a learned temperature may go; tau_max None is ∞, and 1 for
            individual ones.
        individual_tau: a learned temperature for every row, in a table beside the running
            estimates, instead of one for all.
        individual_tau_lr: step of its Adam, in the unit of τ (`steering.dro.online.temperature`).
        solve_tau: the one learned τ moves by itself in each training call (`SolvedTemperature`);
            False: it is a parameter, log τ, for somebody's optimiser.
        estimator: "moving_average", "mirror_descent", "proximal", "batch"; None chooses by
            divergence.
        layout: how the tables are kept.
        options: of the estimator: gamma, gamma_decay_epochs, log_alpha, step.

    Raises:
        ValueError: an argument out of range, or two that do not fit.

    Source: arXiv 2505.06699, 2407.01445 and 2602.02877; derivation in docs/theory.md.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        tau: float | None,
        divergence: str | Divergence = "kl",
        level: float | None = None,
        order: float | None = None,
        radius: float | None = None,
        strength: float | str = 1.0,
        epsilon: float = 0.0,
        tau_min: float = 1e-4,
        tau_max: float | None = None,
        individual_tau: bool = False,
        individual_tau_lr: float = 0.01,
        solve_tau: bool = False,
        estimator: str | None = None,
        layout: Layout | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.divergence = find(divergence, level, order)
        self.is_kl = isinstance(self.divergence, KL)
        budgeted = self.divergence.takes_budget
        for name, value, ok, expected in [
            (
                "tau",
                tau,
                budgeted == (tau is not None),
                "given" if budgeted else f"None for {self.divergence.name!r}",
            ),
            ("tau", tau, tau is None or 0 < tau < math.inf, "a number > 0"),
            ("tau_min", tau_min, 0 < tau_min < math.inf, "a number > 0"),
            ("radius", radius, radius is None or 0 <= radius < math.inf, "a number ≥ 0, or None"),
            ("radius", radius, radius is None or budgeted, f"None for {self.divergence.name!r}"),
            (
                "individual_tau",
                individual_tau,
                not individual_tau or radius is not None,
                "false without a radius",
            ),
            (
                "individual_tau_lr",
                individual_tau_lr,
                0 < individual_tau_lr < math.inf,
                "a number > 0",
            ),
            ("epsilon", epsilon, 0 <= epsilon < math.inf, "a number ≥ 0"),
            (
                "epsilon",
                epsilon,
                epsilon == 0 or self.is_kl,
                f"0 for {self.divergence.name!r}: it is KL's margin",
            ),
        ]:
            if not ok:
                raise ValueError(f"{name} must be {expected}, got {value}")
        tau = 1.0 if tau is None else tau
        tau_min = tau_min if radius is not None else min(tau, tau_min)
        tau_max = tau_max if tau_max is not None else 1.0 if individual_tau else math.inf
        self.temperature: Temperatures
        if individual_tau:
            self.temperature = IndividualTemperatures(
                num_rows, tau, individual_tau_lr, tau_min, tau_max, layout
            )
        elif solve_tau and radius is not None:
            self.temperature = SolvedTemperature(tau, radius, self.divergence, tau_min, tau_max)
        else:
            self.temperature = Temperature(tau, radius is not None, tau_min, tau_max)
        self.estimator = build_estimator(
            estimator, self.divergence, num_rows, layout=layout, **options
        )
        self.strength = Strength(strength)
        self.radius = radius or 0.0
        self.moves_one_row = num_rows == 1 and self.temperature.solves
        self.watch = Watch(self.divergence, radius, margin=epsilon > 0)
        self.log_epsilon = math.log(epsilon) if epsilon > 0 else -math.inf

    def start_epoch(self, epoch: int) -> None:
        self.estimator.start_epoch(epoch)

    def forward(self, units: Units, log_prior: Tensor | None = None) -> Estimate:
        """Risk of one batch of loss items, averaged over its rows; updates the running estimates of
        the rows.

        Args:
            log_prior: log(n·q), (..., n), of a prior q over the items of a row; KL only. None is
                uniform.
        """
        risks, weights, metrics = self.per_row(units, log_prior)
        return Estimate(risks.mean(), weights, metrics)

    def per_row(
        self, units: Units, log_prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The risk of each row, (...), with its stochastic gradient; weights and metrics as in
        `Estimate`."""
        learn = learning(self)
        if log_prior is not None and not self.is_kl:
            raise ValueError(f"log_prior: works for 'kl' only, got {self.divergence.name!r}")
        alpha = self.strength(units, learn=learn)
        excess = units.excess(alpha)  # (..., n)
        tau, follow = self.temperature.visit(units.rows, units.sharded, units.counts(), learn)
        tau = tau.to(excess.dtype)
        weights, height, slope, unspent = self._weights(
            units, excess.detach(), tau, log_prior, learn
        )
        surrogate = (weights * excess).sum(-1) + follow(slope, unspent)
        if learn and self.moves_one_row:
            self.estimator.rescale(tau / self.temperature.read(units.rows, units.sharded))
        value = tau * (height + self.radius)
        metrics = excess_metrics(units, excess.detach()) | weight_metrics(units, weights)
        metrics |= tau_metrics(tau) | strength_metrics(alpha, excess)
        if learn:
            n = units.target.shape[-1]
            self.watch.size(n)
            what = "items of each row" if units.rows.ndim else "examples of each batch"
            items = n if units.mask is None else units.counts().mean()
            self.watch.share(metrics["effective_sample_share"], items, what)
        return surrogate + (value - surrogate).detach(), weights, metrics

    @stateful
    def height(self, rows: Tensor, log_means: Tensor, sharded: bool, *, learn: bool) -> Tensor:
        """log(ε + u) after the running estimates of these rows have taken in log û, (...); KL."""
        nu = self.estimator.track(rows, log_means, sharded, learn=learn)
        return torch.logaddexp(nu, torch.full_like(nu, self.log_epsilon))

    @torch.no_grad()
    def _weights(
        self, units: Units, excess: Tensor, tau: Tensor, log_prior: Tensor | None, learn: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """p, (..., n); F/τ − R per row, (...); ∂F/∂τ per row; and R − D_φ of p normalised, the same
        at an exact ν and ε = 0."""
        s, counts = excess / tau[..., None], units.counts()
        tilted = s if log_prior is None else s + log_prior
        mask = torch.ones_like(s, dtype=torch.bool) if units.mask is None else units.mask
        ratios, nu = self.estimator(units.rows, tilted, mask, units.sharded, learn=learn)
        if self.is_kl:
            height = torch.logaddexp(nu, torch.full_like(nu, self.log_epsilon))
            weights = (tilted - height[..., None]).exp().masked_fill(~mask, 0.0) / counts[..., None]
            slope = height + self.radius - (weights * s).sum(-1)
            if not self.temperature.solves:
                return weights, height, slope, slope
            hidden = tilted.masked_fill(~mask, -math.inf)
            mean = (hidden.softmax(-1) * s).sum(-1)
            return weights, height, slope, self.radius - mean + hidden.logsumexp(-1) - counts.log()
        # mean φ*(s − ν) by Fenchel's equality with these ratios: at a kink φ*′ is not one number.
        paid = masked_mean(self.divergence.phi(ratios), mask)
        height = nu + masked_mean(ratios * (s - nu[..., None]), mask) - paid
        unspent = self.radius - paid
        if self.temperature.solves:
            whole = ratios / masked_mean(ratios, mask)[..., None]
            unspent = self.radius - masked_mean(self.divergence.phi(whole), mask)
        return ratios / counts[..., None], height, self.radius - paid, unspent


@torch.no_grad()
def excess_metrics(units: Units, excess: Tensor) -> dict[str, Tensor]:
    """Mean and variance of the excess losses over all items that count."""
    mask = units.mask if units.mask is not None else torch.ones_like(excess, dtype=torch.bool)
    count = mask.sum()
    mean = (excess * mask).sum() / count
    return {"excess_mean": mean, "excess_variance": ((excess - mean).square() * mask).sum() / count}


@torch.no_grad()
def weight_metrics(units: Units, weights: Tensor) -> dict[str, Tensor]:
    """Effective sample size of the weights, (Σp)²/Σp², as a share of the row's items (1 = uniform),
    averaged over rows."""
    ess = weights.sum(-1).square() / weights.square().sum(-1).clamp_min(
        torch.finfo(weights.dtype).tiny
    )
    return {
        "effective_sample_share": (ess / units.counts()).mean(),
        "weight_sum": weights.sum(-1).mean(),
    }


@torch.no_grad()
def strength_metrics(alpha: float | Tensor, like: Tensor) -> dict[str, Tensor]:
    """α as a scalar of the same kind, made on its device: a copy from the CPU would make a GPU
    wait."""
    return {"strength": alpha if isinstance(alpha, Tensor) else like.new_full((), alpha)}


def tau_metrics(tau: Tensor) -> dict[str, Tensor]:
    """τ; of individual ones mean and standard deviation over the batch."""
    return (
        {"tau": tau}
        if tau.ndim == 0
        else {"tau": tau.mean(), "tau_deviation": tau.std(correction=0)}
    )
