"""Learnability sampling: RHO-LOSS with a temperature (the soft variant of arXiv 2206.07137;
ClassAct, arXiv 2312.05328)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from steering.items import LossItems, rows_of
from steering.methods.registry import Method, Needs, register
from steering.methods.selection import Selecting, require_temperature, sampled


@dataclass
class SoftRhoOptions:
    keep: float = 0.1
    """Share of the drawn examples to train on, in (0, 1]: a step draws batch_size/keep
    candidates."""
    temperature: float = 0.25
    """T in nats: examples are drawn without replacement ∝ exp(excess/T); towards 0 the top share,
    towards ∞ uniform."""


class SoftRho(Selecting):
    """Candidates drawn ∝ exp((ℓ − ℓ_ref)/T), then an unweighted step. Every rank selects among its
    own candidates."""

    def __init__(self, options: SoftRhoOptions) -> None:
        super().__init__("soft_rho", options.keep)
        require_temperature(options.temperature)
        self.temperature_of_choice = options.temperature

    def select(self, items: LossItems, count: int) -> Tensor:
        return sampled(self.scores(rows_of(items)) / self.temperature_of_choice, count)


@register("soft_rho", SoftRhoOptions, units=("example", "sequence"), needs=Needs(reference=True))
def build(options: SoftRhoOptions, num_examples: int) -> Method:  # noqa: ARG001
    """RHO-LOSS with a temperature: examples drawn by their excess loss.

    Formula: mean of ℓ_i over a share `keep` of the candidates, drawn without replacement ∝
    exp((ℓ_i − ℓ_ref,i)/T)

    Source: arXiv 2206.07137, 2312.05328
    """
    return SoftRho(options)
