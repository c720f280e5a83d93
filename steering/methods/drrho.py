"""DRRho risk minimisation, and plain DRO as its case without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from steering.contrastive.naive import negatives
from steering.contrastive.pairs import Pairs
from steering.dro.stochastic import StochasticKL
from steering.methods.registry import Method, Step, register
from steering.risk import Units, gathered


@dataclass
class DroOptions:
    divergence: str = "kl"
    """Shape of the uncertainty set; "kl"."""
    tau: float = 0.07
    """Temperature, in nats for example losses and in cosine for pairs; the initial value when a radius is given."""
    radius: float | None = None
    """Constrained form: KL budget in nats, and the temperature is learned. null: penalised form, fixed temperature."""
    epsilon: float = 1e-4
    """Margin: a row stops pulling once all its excess losses are below tau·ln(epsilon). 0: never."""
    gamma: float = 1.0
    """Final rate of the moving average over visits, in (0, 1]; 1 keeps no history."""
    gamma_decay_epochs: int = 0
    """Epochs of the cosine that takes the rate from 1 to gamma."""
    tau_min: float = 0.01
    """Smallest learned temperature."""


@dataclass
class DrrhoOptions(DroOptions):
    strength: float = 1.0
    """α in h = ℓ − α·ℓ_ref: 1 is arXiv 2505.06699, 0 is dro."""


class Drrho(Method):
    """One KL adversary per row: over the batch's examples, or for pairs over each anchor's negatives."""

    def __init__(self, options: DroOptions, strength: float, num_examples: int) -> None:
        super().__init__()
        if options.divergence != "kl":
            raise ValueError(f"divergence must be 'kl', got {options.divergence!r}")
        self.uses_reference = strength > 0
        # One row per (example, direction) serves pairs; a plain batch of examples is one row, key 0.
        self.risk = StochasticKL(
            2 * num_examples,
            tau=options.tau,
            radius=options.radius,
            strength=strength,
            epsilon=options.epsilon,
            gamma=options.gamma,
            gamma_decay_epochs=options.gamma_decay_epochs,
            tau_min=options.tau_min,
        )

    def start_epoch(self, epoch: int) -> None:
        self.risk.start_epoch(epoch)

    def forward(self, losses: Units | Pairs) -> Step:
        units = negatives(losses) if isinstance(losses, Pairs) else gathered(losses)
        estimate = self.risk(units)
        return Step(estimate.loss, estimate.metrics)


@register("dro", DroOptions)
def build_dro(options: DroOptions, num_examples: int) -> Method:
    """KL-DRO without a reference; for image-text pairs the global contrastive loss (FastCLIP)."""
    return Drrho(options, 0.0, num_examples)


@register("drrho", DrrhoOptions)
def build_drrho(options: DrrhoOptions, num_examples: int) -> Method:
    """DRRho risk minimisation with a frozen reference; for image-text pairs DRRho-CLIP."""
    return Drrho(options, options.strength, num_examples)
