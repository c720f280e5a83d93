"""Nested risk: an adversary over the anchors on top of each anchor's adversary over its negatives
(ours).

The inner adversary of anchor i makes  G_i = max_p Σ_j p_j h_ij − τ·KL(p ‖ uniform)  of its excess
losses. Whether the *pair* can be learned at all is a property of the anchor, which no weights over
its negatives express. So a second, outer adversary weighs the anchors by what the target loses
beyond the reference:

    F(θ) = max_q Σ_i q_i [ G_i(θ) − β·G_i^ref ] − λ·KL(q ‖ q⁰),   q⁰_i ∝ exp(−κ·G_i^ref),   ∇F = Σ_i q_i Σ_j p_ij ∇h_ij

Both are adversaries as of `drrho`: `inner:` and `outer:` have the keys of its section, and other
defaults. The prior q⁰ trusts pairs as far as the reference can make sense of them: a caption that it finds
wrong has a large G^ref. κ = 0 and λ = ∞ is `drrho`, λ = ∞ alone a soft filter; κ = β = 0 and λ = τ
is one adversary over all (anchor, negative) pairs at once, since KL(q_i p_ij) = KL(q) + Σ_i q_i
KL(p_i). Derivation: docs/theory.md, "Nested risk".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Self

import torch
from torch import Tensor

from steering.contrastive.risk import reference_risks, row_risks
from steering.dro.adversary import Adversary
from steering.dro.online.stochastic import StochasticRisk
from steering.dro.online.strength import STRENGTHS, Auto
from steering.errors import SteeringError
from steering.items import LossItems, Pairs, Units, gathered, own_part
from steering.methods.ranges import Ranges, adversary_ranges, by_log, evenly, idle_keys
from steering.methods.registry import Method, Needs, Step, register
from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant, Schedule


@dataclass(frozen=True)
class InnerAdversary(Adversary):
    """Over the negatives of an anchor; it leaves the reference to the outer one."""

    strength: Schedule | Auto = chosen(STRENGTHS, Constant(0.0))
    """α of the inner excess loss, or its schedule, or "auto"; 0 leaves the reference to the outer
    adversary."""


@dataclass(frozen=True)
class OuterAdversary(Adversary):
    """Over the pairs of a batch: one row, whose temperature may as well be large."""

    tau: Schedule | None = chosen(SCHEDULES, Constant(1.0))
    """λ, temperature of the adversary over pairs, or its schedule, in the same unit; the initial
    value with a radius. null: 0.07, as inside."""
    prior: Schedule = chosen(SCHEDULES, Constant(3.0))
    """κ ≥ 0, or its schedule: the adversary starts from weights ∝ exp(−κ·G^ref), so that pairs
    which the reference finds wrong count less."""
    epsilon: float | None = 0.0
    """Margin of the adversary over pairs, KL only; 0: none."""
    individual_tau: bool = field(default=False, init=False)
    individual_tau_lr: float = field(default=0.01, init=False)
    duals: str = field(default="float32", init=False)
    duals_folder: str | None = field(default=None, init=False)


@dataclass(frozen=True)
class NestedOptions:
    inner: InnerAdversary = InnerAdversary()
    """The adversaries over each anchor's negatives."""
    outer: OuterAdversary = OuterAdversary()
    """The adversary over pairs."""

    @staticmethod
    def search(unit: str) -> Ranges:
        inner = adversary_ranges(unit) | {"strength": evenly(0.1, 0.9)}
        outer = {"tau": by_log(0.3, 10.0), "prior": inner["prior"]}
        return {
            f"{name}.{key}": found
            for name, ranges in (("inner", inner), ("outer", outer))
            for key, found in ranges.items()
        }

    def idle(self) -> Collection[str]:
        parts = {"inner": self.inner, "outer": self.outer}
        return [f"{name}.{key}" for name, part in parts.items() for key in idle_keys(part)]

    def needs(self) -> Needs:
        return Needs(reference=self.inner.uses_reference or self.outer.uses_reference)

    def for_unit(self, unit: str) -> Self:
        """The same with what null means for losses of this unit."""
        return replace(self, inner=self.inner.for_unit(unit), outer=self.outer.for_unit(unit))


class Nested(Method):
    """Two risks, one inside the other."""

    def __init__(self, options: NestedOptions, num_examples: int) -> None:
        super().__init__()
        options = options.for_unit("pair")  # what is still open, if anybody builds without a unit
        inner, outer = options.inner, options.outer
        if not inner.divergence.has_log_means:
            raise ValueError(
                f"inner.divergence must be 'kl', got {inner.divergence.name!r}: the outer adversary "
                "compares the inner risks of target and reference"
            )
        self.inner = _named("inner", 2 * num_examples, inner)
        if self.inner.temperature.infinite:
            raise ValueError("inner.tau must be finite, got inf")
        self.outer = _named("outer", 1, outer)

    def start_epoch(self, epoch: int) -> None:
        self.inner.start_epoch(epoch)
        self.outer.start_epoch(epoch)

    def at(self, progress: float) -> None:
        self.inner.at(progress)
        self.outer.at(progress)

    def logit_scale(self) -> float | None:
        return 1 / self.inner.temperature.typical().item()

    def forward(self, items: LossItems) -> Step:
        # Before the step moves its temperatures: G and G^ref are compared at one τ.
        reference = reference_risks(self.inner, items)
        found = row_risks(self.inner, items)
        own = _outer_items(items, found.risks, reference)
        # (37): the outer sum runs over the pairs of all ranks. Inner rows that every rank holds are
        # whole already.
        pairs = gathered(own) if found.sharded else own
        estimate = self.outer(pairs)
        metrics = found.metrics | estimate.metrics.prefixed("outer_")
        return Step(
            estimate.loss,
            metrics,
            _weights(items, found.weights, own_part(estimate.weights, own.target.shape[-1])),
        )


@singledispatch
def _outer_items(items: object, risks: Tensor, reference: Tensor | None) -> Units:  # noqa: ARG001
    """Inner risks as the loss items of the outer adversary, one row.

    Args:
        items: whose inner risks.
        risks, reference: those of target and reference, (...).
    """
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_outer_items.register
def _(items: Pairs, risks: Tensor, reference: Tensor | None) -> Units:  # noqa: ARG001
    # One weight for a pair: its caption is wrong for both directions.
    return _row(risks.mean(0), None if reference is None else reference.mean(0))


@_outer_items.register
def _(items: Units, risks: Tensor, reference: Tensor | None) -> Units:
    if items.target.ndim < 2:
        raise SteeringError(
            "method (nested): needs rows of losses, as of a contrastive task, got one row of examples"
        )
    return _row(risks.flatten(), None if reference is None else reference.flatten())


@singledispatch
def _weights(items: object, inner: Tensor, outer: Tensor) -> Tensor:  # noqa: ARG001
    """What each item weighs, by the weights inside the rows, (..., n), and those of the rows."""
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_weights.register
def _(items: Pairs, inner: Tensor, outer: Tensor) -> Tensor:  # noqa: ARG001
    return outer


@_weights.register
def _(items: Units, inner: Tensor, outer: Tensor) -> Tensor:
    # (38): the weight of an item is that of its row times that inside the row.
    return inner * outer.view(items.target.shape[:-1])[..., None]


def _row(target: Tensor, reference: Tensor | None) -> Units:
    return Units(target, reference, torch.zeros((), dtype=torch.int64, device=target.device))


def _named(name: str, num_rows: int, adversary: Adversary) -> StochasticRisk:
    """Its risk; a ValueError names the section."""
    try:
        return StochasticRisk(num_rows, adversary, split=num_rows > 1)
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error


@register("nested", NestedOptions, units=("pair",))
def build(options: NestedOptions, num_examples: int) -> Method:
    """Nested risk: anchors are weighted too, against pairs that the reference finds unlearnable.

    Formula: max_q Σ_i q_i·(G_i − β·G_i^ref) − λ·KL(q ‖ q⁰), q⁰_i ∝ exp(−κ·G_i^ref), G_i the risk of
    drrho for anchor i

    Source: ours, docs/theory.md, "Nested risk"
    """
    return Nested(options, num_examples)
