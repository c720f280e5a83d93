"""DRRho risk minimisation, and plain DRO as its case without a reference."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import singledispatch

from torch import Tensor

from steering import distributed
from steering.contrastive.risk import anchor_keys, row_risks
from steering.dro.adversary import Adversary
from steering.dro.online.metrics import Metrics
from steering.dro.online.stochastic import StochasticRisk
from steering.items import LossItems, Pairs, Units
from steering.methods.distillation import pairs_divergence, reference_scale, units_divergence
from steering.methods.ranges import Ranges, adversary_ranges, by_log, idle_keys
from steering.methods.registry import Method, Needs, Step, register
from steering.schedules import Constant, Schedule


@dataclass(frozen=True)
class DroOptions(Adversary):
    """An adversary that looks at no reference, so it has neither a strength nor a prior to set."""

    strength: Schedule = field(default=Constant(0.0), init=False)
    prior: Schedule = field(default=Constant(0.0), init=False)

    @staticmethod
    def search(unit: str) -> Ranges:
        found = adversary_ranges(unit)
        return {key: found[key] for key in ("tau", "radius")}

    def idle(self) -> Collection[str]:
        return idle_keys(self)


@dataclass(frozen=True)
class DrrhoOptions(Adversary):
    """An adversary, and a distillation term beside it."""

    distill: float = 0.0
    """λ ≥ 0 of a distillation term that is added, λ·T²·KL(reference ‖ target); 0: none."""
    distill_temperature: float = 1.0
    """T of that term."""
    distill_scale: float | None = None
    """Pairs: logit scale of the reference in that term, 1/τ; null: the reference's own (100 for
    OpenAI's models)."""

    @staticmethod
    def search(unit: str) -> Ranges:
        found = adversary_ranges(unit)
        if unit == "pair":
            return found | {"distill": by_log(0.1, 4.0)}
        if unit == "sequence":  # its losses carry no distributions
            return found
        return found | {"distill": by_log(0.5, 8.0), "distill_temperature": by_log(0.5, 4.0)}

    def idle(self) -> Collection[str]:
        return [*idle_keys(self), *(() if self.distill > 0 else ("distill_temperature",))]

    def needs(self) -> Needs:
        distills = self.distill > 0
        return Needs(reference=self.uses_reference or distills, logits=distills)

    def require_valid(self) -> None:
        super().require_valid()
        if not 0 <= self.distill < math.inf:
            raise ValueError(f"distill must be a number ≥ 0, got {self.distill}")
        for name in ("distill_temperature", "distill_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number > 0, got {value}")


class Steered(Method):
    """One adversary per row: over the batch's examples, or for pairs over each anchor's
    negatives."""

    def __init__(self, adversary: Adversary, num_examples: int) -> None:
        super().__init__()
        # What `build_method` has left open, if anybody builds without it. One row per (example,
        # direction) serves pairs; a plain batch of examples is one row, key 0.
        adversary = adversary.for_unit("example")
        self.risk = StochasticRisk(2 * num_examples, adversary, split=True)

    def start_epoch(self, epoch: int) -> None:
        self.risk.start_epoch(epoch)

    def at(self, progress: float) -> None:
        self.risk.at(progress)

    def logit_scale(self) -> float | None:
        return 1 / self.risk.temperature.typical().item()

    def forward(self, items: LossItems) -> Step:
        found = row_risks(self.risk, items)
        loss = found.risks if found.risks.ndim == 0 else found.risks.mean()
        return Step(loss, found.metrics, found.weights)


class Distilled(Steered):
    """The same with a distillation term."""

    def __init__(self, options: DrrhoOptions, num_examples: int) -> None:
        super().__init__(options, num_examples)
        self.options = options

    def forward(self, items: LossItems) -> Step:
        # Before the step moves its temperature.
        kd = _distillation(items, self.risk, self.options)
        step = super().forward(items)
        found = kd.detach()
        metrics = Metrics(lambda: {**step.scalars(), "distillation": found})
        return Step(step.loss + self.options.distill * kd, metrics, step.weights)


@singledispatch
def _distillation(items: object, risk: StochasticRisk, options: DrrhoOptions) -> Tensor:  # noqa: ARG001
    """T²·KL(reference ‖ target) of the distributions that the loss items carry, ()."""
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_distillation.register
def _(items: Units, risk: StochasticRisk, options: DrrhoOptions) -> Tensor:  # noqa: ARG001
    return units_divergence(items, options.distill_temperature, "drrho")


@_distillation.register
def _(items: Pairs, risk: StochasticRisk, options: DrrhoOptions) -> Tensor:
    scale = 1 / risk.temperature.read(anchor_keys(items), distributed.active())
    reference = reference_scale(items, options.distill_scale, "drrho", "distill_scale")
    return pairs_divergence(items, scale, reference, options.distill_temperature)


@register("dro", DroOptions)
def build_dro(options: DroOptions, num_examples: int) -> Method:
    """DRO without a reference; for image-text pairs the global contrastive loss (FastCLIP).

    Formula: max_p Σ_i p_i·ℓ_i − τ·D(p ‖ uniform), or over all p with D ≤ radius; for KL τ·log
    mean_i exp(ℓ_i/τ)

    Source: docs/theory.md; pairs: arXiv 2407.01445 (FastCLIP)
    """
    return Steered(options, num_examples)


@register("drrho", DrrhoOptions)
def build_drrho(options: DrrhoOptions, num_examples: int) -> Method:
    """DRRho risk minimisation with a frozen reference; for image-text pairs DRRho-CLIP.

    Formula: max_p Σ_i p_i·h_i − τ·D(p ‖ q), or over all p with D ≤ radius, where h = ℓ − α·ℓ_ref
    and q ∝ exp(−κ·ℓ_ref), uniform for κ = 0

    Source: arXiv 2505.06699; κ is ours, docs/theory.md
    """
    plain = Steered(options, num_examples)  # looks at the options, too
    return Distilled(options, num_examples) if options.distill > 0 else plain
