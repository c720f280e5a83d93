"""Nested risk: an adversary over the anchors on top of each anchor's adversary over its negatives
(ours).

The inner adversary of anchor i makes  G_i = max_p Σ_j p_j h_ij − τ·KL(p ‖ uniform)  of its excess
losses. Whether the *pair* can be learned at all is a property of the anchor, which no weights over
its negatives express. So a second, outer adversary weighs the anchors by what the target loses
beyond the reference:

    F(θ) = max_q Σ_i q_i [ G_i(θ) − β·G_i^ref ] − λ·KL(q ‖ q⁰),   q⁰_i ∝ exp(−κ·G_i^ref),   ∇F = Σ_i q_i Σ_j p_ij ∇h_ij

The prior q⁰ trusts pairs as far as the reference can make sense of them: a caption that it finds
wrong has a large G^ref. κ = 0 and λ = ∞ is `drrho`, λ = ∞ alone a soft filter; κ = β = 0 and λ = τ
is one adversary over all (anchor, negative) pairs at once, since KL(q_i p_ij) = KL(q) + Σ_i q_i
KL(p_i). Derivation: docs/theory.md, "Nested risk".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.risk import anchor_risks, reference_risks
from steering.dro.defaults import defaults
from steering.dro.online.row_table import Layout
from steering.dro.online.stochastic import StochasticRisk
from steering.errors import SteeringError
from steering.items import LossItems, Pairs, Units, gathered, rows_of
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class NestedOptions:
    tau: float | None = None
    """Temperature of the inner adversaries in the unit of the losses; the initial value with a
    radius. null: 0.07 for pairs."""
    radius: float | None = None
    """Inner constrained form: KL budget of each anchor in nats, and tau is learned. null: tau
    stays."""
    strength: Any = 0.0
    """α of the inner excess loss, or "auto"; 0 leaves the reference to the outer adversary."""
    epsilon: float | None = None
    """Inner margin: an anchor stops pulling once its excess losses are below tau·ln(epsilon). 0:
    never; null: 1e-4 for pairs."""
    gamma: float | None = None
    """Final rate of the inner moving averages over visits, in (0, 1]; 1 keeps no history. null: 1
    for pairs."""
    gamma_decay_epochs: int = 0
    """Epochs of the cosine that takes that rate from 1 to gamma."""
    tau_min: float = 0.01
    """Smallest learned temperature, inner or outer."""
    individual_tau: bool = False
    """Inner, with a radius: a temperature for every row, that is for every image and every text,
    learned by Adam of its own."""
    individual_tau_lr: float = 0.01
    """Step of that Adam, in the unit of tau."""
    outer_tau: float = 1.0
    """λ, temperature of the outer adversary over pairs, in the same unit; the initial value with an
    outer radius."""
    outer_radius: float | None = None
    """Outer constrained form: KL budget over pairs in nats, and outer_tau is learned. null:
    outer_tau stays."""
    outer_strength: Any = 1.0
    """β, how much of the reference's own inner risk is subtracted from a pair's, or "auto"."""
    outer_prior: float = 3.0
    """κ ≥ 0: the outer adversary starts from q⁰ ∝ exp(−κ·G^ref), so that pairs which the reference
    finds wrong count less."""
    outer_gamma: float = 1.0
    """Rate of the outer moving average over steps, in (0, 1]; 1 uses the batch alone."""

    def needs(self) -> Needs:
        strengths = (self.strength, self.outer_strength)
        return Needs(reference=self.outer_prior > 0 or any(one != 0 for one in strengths))

    def for_unit(self, unit: str) -> Self:
        """The same with what null means for losses of this unit: tau, epsilon and gamma of the
        inner adversaries."""
        found = defaults(unit)
        return replace(
            self,
            tau=found.tau if self.tau is None else self.tau,
            epsilon=found.epsilon if self.epsilon is None else self.epsilon,
            gamma=found.gamma if self.gamma is None else self.gamma,
        )


class Nested(Method):
    """Two risks, one inside the other; both KL."""

    def __init__(self, options: NestedOptions, num_examples: int) -> None:
        super().__init__()
        options = options.for_unit("pair")
        self.inner = StochasticRisk(
            2 * num_examples,
            tau=options.tau,
            radius=options.radius,
            strength=options.strength,
            epsilon=options.epsilon or 0.0,
            gamma=options.gamma,
            gamma_decay_epochs=options.gamma_decay_epochs,
            tau_min=options.tau_min,
            individual_tau=options.individual_tau,
            individual_tau_lr=options.individual_tau_lr,
            layout=Layout(split=True),
        )
        if not 0 <= options.outer_prior < math.inf:
            raise ValueError(f"outer_prior must be a number ≥ 0, got {options.outer_prior}")
        self.prior = options.outer_prior
        try:
            self.outer = StochasticRisk(
                1,
                tau=options.outer_tau,
                radius=options.outer_radius,
                strength=options.outer_strength,
                gamma=options.outer_gamma,
                tau_min=options.tau_min,
            )
        except ValueError as error:
            raise ValueError(f"outer_{error}") from error

    def start_epoch(self, epoch: int) -> None:
        self.inner.start_epoch(epoch)

    def logit_scale(self) -> float | None:
        return 1 / self.inner.temperature.typical().item()

    def forward(self, losses: LossItems) -> Step:
        if isinstance(losses, Pairs):
            guide = reference_risks(self.inner, losses)  # before the step moves its temperatures
            risks, metrics = anchor_risks(self.inner, losses)
            # One weight for a pair: its caption is wrong for both directions.
            risks, guide, sharded = (
                risks.mean(0),
                None if guide is None else guide.mean(0),
                distributed.active(),
            )
        else:
            units = gathered(rows_of(losses))
            if units.target.ndim < 2:
                raise SteeringError(
                    "method (nested): needs rows of losses, as of a contrastive task, got one row of examples"
                )
            guide, sharded = self._reference_risks(units), units.sharded
            risks, _, metrics = self.inner.per_row(units)
        row = torch.zeros((), dtype=torch.int64, device=risks.device)
        pairs = Units(risks.flatten(), None if guide is None else guide.flatten(), row)
        pairs = gathered(pairs) if sharded else pairs
        estimate = self.outer(pairs, self._log_prior(pairs))
        return Step(
            estimate.loss,
            metrics | {f"outer_{name}": value for name, value in estimate.metrics.items()},
        )

    @torch.no_grad()
    def _log_prior(self, pairs: Units) -> Tensor | None:
        """log(n q⁰) of the batch's pairs, (n,)."""
        if pairs.reference is None or self.prior == 0:
            return None
        return (-self.prior * pairs.reference).log_softmax(-1) + math.log(pairs.reference.shape[-1])

    @torch.no_grad()
    def _reference_risks(self, units: Units) -> Tensor | None:
        """G^ref: the inner risk of the reference's own losses on the same items, at the target's
        temperature, (...)."""
        if units.reference is None:
            return None
        tau, mask = self.inner.temperature.read(units.rows, units.sharded), units.mask
        d = units.reference / tau[..., None]
        d = d if mask is None else d.masked_fill(~mask, -torch.inf)
        log_u = d.logsumexp(-1) - units.counts().log()
        return tau * torch.logaddexp(log_u, torch.full_like(log_u, self.inner.log_epsilon))


@register("nested", NestedOptions, units=("pair",))
def build(options: NestedOptions, num_examples: int) -> Method:
    """Nested risk: the anchors are weighted too, against pairs that the reference finds
    unlearnable.

    Formula: max_q Σ_i q_i·(G_i − β·G_i^ref) − λ·KL(q ‖ q⁰), q⁰_i ∝ exp(−κ·G_i^ref), G_i the
    risk of drrho for anchor i

    Source: ours, docs/theory.md, "Nested risk"
    """
    return Nested(options, num_examples)
