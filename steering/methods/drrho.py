"""DRRho risk minimisation, and plain DRO as its case without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from steering import distributed
from steering.contrastive.pairs import Pairs
from steering.contrastive.risk import anchor_keys, anchor_risks
from steering.dro.duals import Layout
from steering.dro.stochastic import StochasticRisk
from steering.methods.distillation import pairs_divergence, units_divergence
from steering.methods.registry import Method, Step, register
from steering.risk import Units, gathered


@dataclass
class DroOptions:
    divergence: str = "kl"
    """Shape of the uncertainty set: "kl", "chi2" (half chi-square), "cvar", "cressie-read" or "tv" (total variation)."""
    level: float | None = None
    """CVaR's share of items in the tail, in (0, 1]; for "cvar" only."""
    order: float | None = None
    """Order of the Cressie–Read family, 1 being KL and 2 half chi-square; for "cressie-read" only."""
    tau: float = 0.07
    """Temperature, in nats for example losses and in cosine for pairs; the initial value when a radius is given. Not for CVaR."""
    radius: float | None = None
    """Constrained form: budget in the unit of the divergence, and the temperature is learned. null: penalised, tau stays."""
    epsilon: float | None = None
    """Margin, KL only: a row stops pulling once all its excess losses are below tau·ln(epsilon). 0: never; null: 1e-4 for KL."""
    estimator: str | None = None
    """How a row's dual is tracked: "moving_average", "mirror_descent" (both KL), "proximal", "batch"; null: by divergence."""
    gamma: float = 1.0
    """moving_average: final rate over visits, in (0, 1]; 1 keeps no history."""
    gamma_decay_epochs: int = 0
    """moving_average: epochs of the cosine that takes the rate from 1 to gamma."""
    log_alpha: float = 0.0
    """mirror_descent: log of its step; -nu gives the rate 1/2."""
    step: float = 1.0
    """proximal: step of the second visit, in units of tau; it falls with the square root of the visits."""
    tau_min: float = 0.01
    """Smallest learned temperature."""
    individual_tau: bool = False
    """With a radius: a temperature for every row (every image and every text of pairs), learned by Adam of its own; at most 1."""
    individual_tau_lr: float = 0.01
    """Step of that Adam, in the unit of tau."""
    duals: str = "float32"
    """Number format of the running estimates: "float32" or "float16"."""
    duals_folder: str | None = None
    """Folder on a local disk in which the running estimates are memory-mapped; null: in memory, split over the processes."""


@dataclass
class DrrhoOptions(DroOptions):
    strength: Any = 1.0
    """α in h = ℓ − α·ℓ_ref: 1 is arXiv 2505.06699, 0 is dro; "auto" tracks the α that minimises the variance of h."""
    distill: float = 0.0
    """λ ≥ 0 of a distillation term that is added, λ·T²·KL(reference ‖ target); 0: none."""
    distill_temperature: float = 1.0
    """T of that term."""
    distill_scale: float = 100.0
    """Pairs: logit scale of the reference in that term; that of published CLIP models is 100."""


class Drrho(Method):
    """One adversary per row: over the batch's examples, or for pairs over each anchor's negatives."""

    def __init__(self, options: DroOptions, strength: float | str, num_examples: int) -> None:
        super().__init__()
        self.distill, self.distill_temperature, self.distill_scale = _distillation(options)
        kl = options.divergence == "kl"
        # One row per (example, direction) serves pairs; a plain batch of examples is one row, key 0.
        self.risk = StochasticRisk(
            2 * num_examples,
            divergence=options.divergence,
            level=options.level,
            order=options.order,
            tau=None if options.divergence == "cvar" else options.tau,
            radius=options.radius,
            strength=strength,
            epsilon=(1e-4 if kl else 0.0) if options.epsilon is None else options.epsilon,
            estimator=options.estimator,
            gamma=options.gamma,
            gamma_decay_epochs=options.gamma_decay_epochs,
            log_alpha=options.log_alpha,
            step=options.step,
            tau_min=options.tau_min,
            individual_tau=options.individual_tau,
            individual_tau_lr=options.individual_tau_lr,
            layout=Layout(options.duals, options.duals_folder, split=True),
        )
        self.needs_logits = self.distill > 0
        self.uses_reference = self.risk.strength.uses_reference or self.distill > 0

    def start_epoch(self, epoch: int) -> None:
        self.risk.start_epoch(epoch)

    def forward(self, losses: Units | Pairs) -> Step:
        if self.distill == 0:
            return self._steered(losses)
        if isinstance(losses, Pairs):
            scale = 1 / self.risk.temperature.read(anchor_keys(losses), distributed.active())
            kd = pairs_divergence(losses, scale, self.distill_scale, self.distill_temperature)
        else:
            kd = units_divergence(losses, self.distill_temperature, "drrho")
        step = self._steered(losses)
        return Step(step.loss + self.distill * kd, step.metrics | {"distillation": kd.detach()})

    def _steered(self, losses: Units | Pairs) -> Step:
        if isinstance(losses, Pairs):
            risks, metrics = anchor_risks(self.risk, losses)
            return Step(risks.mean(), metrics)
        estimate = self.risk(gathered(losses))
        return Step(estimate.loss, estimate.metrics)


def _distillation(options: DroOptions) -> tuple[float, float, float]:
    """λ, T and the reference's scale; ValueError if out of range."""
    if not isinstance(options, DrrhoOptions):
        return 0.0, 1.0, 1.0
    names = ("distill", "distill_temperature", "distill_scale")
    values = options.distill, options.distill_temperature, options.distill_scale
    for name, value in zip(names, values, strict=True):
        if not (0 < value < math.inf or (name == "distill" and value == 0)):
            raise ValueError(f"{name} must be a number {'≥' if name == 'distill' else '>'} 0, got {value}")
    return values


@register("dro", DroOptions)
def build_dro(options: DroOptions, num_examples: int) -> Method:
    """DRO without a reference; for image-text pairs the global contrastive loss (FastCLIP).

    Formula: max_p Σ_i p_i·ℓ_i − τ·D(p ‖ uniform), or over all p with D ≤ radius; for KL τ·log mean_i exp(ℓ_i/τ)
    Source: docs/theory.md; pairs: arXiv 2407.01445 (FastCLIP)
    """
    return Drrho(options, 0.0, num_examples)


@register("drrho", DrrhoOptions)
def build_drrho(options: DrrhoOptions, num_examples: int) -> Method:
    """DRRho risk minimisation with a frozen reference; for image-text pairs DRRho-CLIP.

    Formula: max_p Σ_i p_i·h_i − τ·D(p ‖ uniform), or over all p with D ≤ radius, where h = ℓ − α·ℓ_ref
    Source: arXiv 2505.06699
    """
    return Drrho(options, options.strength, num_examples)
