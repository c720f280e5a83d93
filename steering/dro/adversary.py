"""The adversary of a row as one frozen dataclass: a section of a config, and the arguments of functions and
modules.

    Adversary(tau=0.07, strength=0.5)
    Adversary(divergence=CVaR(0.3), estimator=Proximal(step=0.5))

Its weights p solve  max_p Σ_i p_i h_i − τ·D(p ‖ q),  h = ℓ − α·ℓ_ref,  q_i ∝ exp(−κ·ℓ_ref,i). For KL that
is p_i ∝ exp(ℓ_i/τ − (α/τ + κ)·ℓ_ref,i): 1/τ is how sharp the adversary is, α/τ + κ how far it trusts
the reference. τ, α and κ may be schedules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from steering.dro.defaults import defaults
from steering.dro.divergences import DIVERGENCES, KL, Divergence, divergence
from steering.dro.online.row_table import Layout
from steering.dro.online.specs import ESTIMATORS, EstimatorSpec, estimator_type, usual_estimator
from steering.dro.online.strength import STRENGTHS, Auto, as_strength
from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant, Schedule


@dataclass(frozen=True)
class Adversary:
    """What an adversary may do, and how its duals are tracked over mini-batches.

    In Python a number stands for a constant schedule, a name for a part that needs no fields.
    What is None is filled in by `for_unit`.

    Raises:
        ValueError: a name that nobody knows; `require_valid` looks at the rest.
    """

    divergence: Divergence = chosen(DIVERGENCES, KL())
    """Shape of the uncertainty set: kl, chi2 (half chi-square), tv (total variation),
    {name: cvar, level: 0.3}, {name: cressie-read, order: 1.5}, or file.py:name."""
    tau: Schedule | None = chosen(SCHEDULES, None)
    """Temperature in the unit of the losses, or its schedule; .inf leaves the prior as it is. The
    initial value with a radius; not for CVaR. null: 1 in nats, 0.07 for pairs."""
    radius: float | None = None
    """Constrained form: budget in the unit of the divergence, and the temperature is learned. null:
    penalised, tau stays."""
    strength: Schedule | Auto = chosen(STRENGTHS, Constant(1.0))
    """α in h = ℓ − α·ℓ_ref, or its schedule: 1 is arXiv 2505.06699, 0 ignores the reference; "auto"
    tracks the α that minimises the variance of h."""
    prior: Schedule = chosen(SCHEDULES, Constant(0.0))
    """κ ≥ 0, or its schedule: the adversary starts from weights ∝ exp(−κ·ℓ_ref), a soft filter by
    the reference, instead of equal ones; KL only."""
    epsilon: float | None = None
    """Margin, KL only: a row stops pulling once its excess losses are below tau·ln(epsilon). 0:
    never; null: 1e-4 for pairs, else 0."""
    estimator: EstimatorSpec | None = chosen(ESTIMATORS, None)
    """How a row's dual is tracked: moving_average, mirror_descent (both KL), proximal, batch, or
    file.py:name; null: moving_average for KL, batch for tv, else proximal."""
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

    def __post_init__(self) -> None:
        # What a caller may write shortly becomes the part that it means, so that equal adversaries
        # are equal and have one digest.
        means = {
            "divergence": divergence(self.divergence),
            "tau": as_schedule(self.tau),
            "strength": as_strength(self.strength),
            "prior": as_schedule(self.prior),
            "estimator": _named(self.estimator),
        }
        for name, part in means.items():
            object.__setattr__(self, name, part)

    def for_unit(self, unit: str) -> Self:
        """The same with what None means for losses of this unit: tau, epsilon, and the estimator's
        rate."""
        usual, phi = defaults(unit), self.divergence
        tau, epsilon = self.tau, self.epsilon
        if tau is None and phi.takes_budget:
            tau = Constant(usual.tau)
        if epsilon is None:
            epsilon = usual.epsilon if phi.has_log_means else 0.0
        estimator = (self.estimator or usual_estimator(phi)).for_unit(unit)
        return replace(self, tau=tau, epsilon=epsilon, estimator=estimator)

    @property
    def has_prior(self) -> bool:
        """Whether κ is anything but 0 throughout."""
        return self.prior != Constant(0.0)

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Names of what a schedule moves, of τ, α and κ."""
        parts = {"tau": self.tau, "strength": self.strength, "prior": self.prior}
        return tuple(
            name
            for name, part in parts.items()
            if isinstance(part, Schedule) and not isinstance(part, Constant)
        )

    @property
    def uses_reference(self) -> bool:
        """Whether it looks at the reference at all."""
        return self.has_prior or self.strength != Constant(0.0)

    def layout(self, split: bool) -> Layout:
        """How the tables of its rows are kept."""
        return Layout(self.duals, self.duals_folder, split)

    def require_valid(self) -> None:
        """ValueError where a number is out of range, or two do not fit."""
        phi, radius, name = self.divergence, self.radius, self.divergence.name
        budgeted, tau = phi.takes_budget, self.tau
        first = None if tau is None else tau(0.0)
        # Schedules are looked at where they begin; what they do later `StochasticRisk.at` looks at.
        moves = tau is not None and not isinstance(tau, Constant)
        for key, value, ok, expected in [
            (
                "tau",
                first,
                budgeted == (tau is not None),
                "given" if budgeted else f"None for {name!r}",
            ),
            ("tau", first, first is None or first > 0, "a number > 0"),
            ("tau", first, radius is None or first != math.inf, "finite with a radius"),
            ("tau", tau, not moves or radius is None, "a number with a radius, which moves it"),
            ("tau_min", self.tau_min, 0 < self.tau_min < math.inf, "a number > 0"),
            ("radius", radius, radius is None or 0 <= radius < math.inf, "a number ≥ 0, or None"),
            ("radius", radius, radius is None or budgeted, f"None for {name!r}"),
            (
                "individual_tau",
                self.individual_tau,
                not self.individual_tau or radius is not None,
                "false without a radius",
            ),
            (
                "individual_tau_lr",
                self.individual_tau_lr,
                0 < self.individual_tau_lr < math.inf,
                "a number > 0",
            ),
            (
                "epsilon",
                self.epsilon,
                self.epsilon is None or 0 <= self.epsilon < math.inf,
                "a number ≥ 0",
            ),
            (
                "epsilon",
                self.epsilon,
                not self.epsilon or phi.has_log_means,
                f"0 for {name!r}: it is KL's margin",
            ),
            ("prior", self.prior(0.0), 0 <= self.prior(0.0) < math.inf, "a number ≥ 0"),
            (
                "prior",
                self.prior(0.0),
                not self.has_prior or phi.has_log_means,
                f"0 for {name!r}: only KL weights have a prior",
            ),
        ]:
            if not ok:
                raise ValueError(f"{key} must be {expected}, got {value}")


def as_schedule(value: Any) -> Any:
    """A number as a constant schedule; anything else as it is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return Constant(float(value)) if number else value


def _named(estimator: Any) -> Any:
    """The estimator of a name, with its defaults; an object, or None, as it is."""
    return estimator_type(estimator)() if isinstance(estimator, str) else estimator
