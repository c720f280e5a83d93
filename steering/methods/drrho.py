"""DRRho risk minimisation, and plain DRO as its case without a reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from steering import distributed
from steering.contrastive.risk import anchor_keys, anchor_risks
from steering.dro.defaults import defaults
from steering.dro.online.row_table import Layout
from steering.dro.online.stochastic import StochasticRisk
from steering.items import LossItems, Pairs, gathered, rows_of
from steering.methods.distillation import pairs_divergence, reference_scale, units_divergence
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class DroOptions:
    divergence: str = "kl"
    """Shape of the uncertainty set: "kl", "chi2" (half chi-square), "cvar", "cressie-read" or "tv"
    (total variation)."""
    level: float | None = None
    """CVaR's share of items in the tail, in (0, 1]; for "cvar" only."""
    order: float | None = None
    """Order of the Cressie–Read family, 1 being KL and 2 half chi-square; for "cressie-read"
    only."""
    tau: float | None = None
    """Temperature in the unit of the losses; the initial value with a radius; not for CVaR. null: 1
    in nats, 0.07 for pairs."""
    radius: float | None = None
    """Constrained form: budget in the unit of the divergence, and the temperature is learned. null:
    penalised, tau stays."""
    epsilon: float | None = None
    """Margin, KL only: a row stops pulling once its excess losses are below tau·ln(epsilon). 0:
    never; null: 1e-4 for pairs."""
    estimator: str | None = None
    """How a row's dual is tracked: "moving_average", "mirror_descent" (both KL), "proximal",
    "batch"; null: by divergence."""
    gamma: float | None = None
    """moving_average: final rate over visits, in (0, 1]; 1 keeps no history. null: 0.9 for examples
    and sequences, else 1."""
    gamma_decay_epochs: int = 0
    """moving_average: epochs of the cosine that takes the rate from 1 to gamma."""
    log_alpha: float = 0.0
    """mirror_descent: log of its step; -nu gives the rate 1/2."""
    step: float = 1.0
    """proximal: step of the second visit, in units of tau; it falls with the square root of the
    visits."""
    tau_min: float = 0.01
    """Smallest learned temperature."""
    individual_tau: bool = False
    """With a radius: a temperature for every row (every image and every text of pairs), learned by
    Adam of its own; at most 1."""
    individual_tau_lr: float = 0.01
    """Step of that Adam, in the unit of tau."""
    duals: str = "float32"
    """Number format of the running estimates: "float32" or "float16"."""
    duals_folder: str | None = None
    """Folder on a local disk in which the running estimates are memory-mapped; null: in memory,
    split over the processes."""

    def for_unit(self, unit: str) -> Self:
        """The same with what null means for losses of this unit: tau, epsilon and gamma."""
        found = defaults(unit)
        return replace(
            self,
            tau=found.tau if self.tau is None else self.tau,
            epsilon=(found.epsilon if self.divergence == "kl" else 0.0)
            if self.epsilon is None
            else self.epsilon,
            gamma=found.gamma if self.gamma is None else self.gamma,
        )


@dataclass
class DrrhoOptions(DroOptions):
    strength: Any = 1.0
    """α in h = ℓ − α·ℓ_ref: 1 is arXiv 2505.06699, 0 is dro; "auto" tracks the α that minimises the
    variance of h."""
    distill: float = 0.0
    """λ ≥ 0 of a distillation term that is added, λ·T²·KL(reference ‖ target); 0: none."""
    distill_temperature: float = 1.0
    """T of that term."""
    distill_scale: float | None = None
    """Pairs: logit scale of the reference in that term, 1/τ; null: the reference's own (100 for
    OpenAI's models)."""

    def needs(self) -> Needs:
        return Needs(reference=self.strength != 0 or self.distill > 0, logits=self.distill > 0)


class Drrho(Method):
    """One adversary per row: over the batch's examples, or for pairs over each anchor's
    negatives."""

    def __init__(self, options: DroOptions, strength: float | str, num_examples: int) -> None:
        super().__init__()
        options = options.for_unit(
            "example"
        )  # what `build_method` has left open, if anybody builds without it
        self.distill, self.distill_temperature, self.distill_scale = _distillation(options)
        # One row per (example, direction) serves pairs; a plain batch of examples is one row, key
        # 0.
        self.risk = StochasticRisk(
            2 * num_examples,
            divergence=options.divergence,
            level=options.level,
            order=options.order,
            tau=None if options.divergence == "cvar" else options.tau,
            radius=options.radius,
            strength=strength,
            epsilon=options.epsilon or 0.0,
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

    def start_epoch(self, epoch: int) -> None:
        self.risk.start_epoch(epoch)

    def logit_scale(self) -> float | None:
        return 1 / self.risk.temperature.typical().item()

    def forward(self, losses: LossItems) -> Step:
        if self.distill == 0:
            return self._steered(losses)
        if isinstance(losses, Pairs):
            scale = 1 / self.risk.temperature.read(anchor_keys(losses), distributed.active())
            guide = reference_scale(losses, self.distill_scale, "drrho", "distill_scale")
            kd = pairs_divergence(losses, scale, guide, self.distill_temperature)
        else:
            kd = units_divergence(rows_of(losses), self.distill_temperature, "drrho")
        step = self._steered(losses)
        return Step(step.loss + self.distill * kd, step.scalars() | {"distillation": kd.detach()})

    def _steered(self, losses: LossItems) -> Step:
        if isinstance(losses, Pairs):
            risks, metrics = anchor_risks(self.risk, losses)
            return Step(risks.mean(), metrics)
        estimate = self.risk(gathered(rows_of(losses)))
        return Step(estimate.loss, estimate.metrics)


def _distillation(options: DroOptions) -> tuple[float, float, float | None]:
    """λ, T and the reference's scale; ValueError if out of range."""
    if not isinstance(options, DrrhoOptions):
        return 0.0, 1.0, None
    names = ("distill", "distill_temperature", "distill_scale")
    values = options.distill, options.distill_temperature, options.distill_scale
    for name, value in zip(names, values, strict=True):
        if value is not None and not (0 < value < math.inf or (name == "distill" and value == 0)):
            raise ValueError(
                f"{name} must be a number {'≥' if name == 'distill' else '>'} 0, got {value}"
            )
    return values


@register("dro", DroOptions)
def build_dro(options: DroOptions, num_examples: int) -> Method:
    """DRO without a reference; for image-text pairs the global contrastive loss (FastCLIP).

    Formula: max_p Σ_i p_i·ℓ_i − τ·D(p ‖ uniform), or over all p with D ≤ radius; for KL τ·log
    mean_i exp(ℓ_i/τ)

    Source: docs/theory.md; pairs: arXiv 2407.01445 (FastCLIP)
    """
    return Drrho(options, 0.0, num_examples)


@register("drrho", DrrhoOptions)
def build_drrho(options: DrrhoOptions, num_examples: int) -> Method:
    """DRRho risk minimisation with a frozen reference; for image-text pairs DRRho-CLIP.

    Formula: max_p Σ_i p_i·h_i − τ·D(p ‖ uniform), or over all p with D ≤ radius, where h = ℓ −
    α·ℓ_ref

    Source: arXiv 2505.06699
    """
    return Drrho(options, options.strength, num_examples)
