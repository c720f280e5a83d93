"""An adversary by flat keywords: what a function with many optional arguments says in one line."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from steering.dro.adversary import Adversary
from steering.dro.divergences import Divergence
from steering.dro.divergences import divergence as found
from steering.dro.online.specs import EstimatorSpec, estimator_type, usual_estimator


def flat_adversary(
    *,
    divergence: str | Divergence = "kl",
    level: float | None = None,
    order: float | None = None,
    estimator: str | EstimatorSpec | None = None,
    gamma: float | None = None,
    gamma_decay_epochs: int = 0,
    log_alpha: float = 0.0,
    step: float = 1.0,
    **keys: Any,
) -> Adversary:
    """`Adversary` with the keys of its parts beside its own: `flat_adversary(divergence="cvar",
    level=0.3)`.

    Args:
        level: of "cvar".
        order: of "cressie-read".
        gamma, gamma_decay_epochs: of a moving average; log_alpha: of mirror descent; step: of the
            proximal point. Those of another estimator do nothing.
        keys: further fields of `Adversary`.

    Raises:
        ValueError: a name that nobody knows, or a level or order where there is none.
    """
    phi = found(divergence, level, order)
    options = {
        "gamma": gamma,
        "decay_epochs": gamma_decay_epochs,
        "log_alpha": log_alpha,
        "step": step,
    }
    if isinstance(estimator, str) or estimator is None:
        part = type(usual_estimator(phi)) if estimator is None else estimator_type(estimator)
        known = {f.name for f in fields(part)}  # type: ignore[arg-type]
        estimator = part(**{name: value for name, value in options.items() if name in known})
    return Adversary(divergence=phi, estimator=estimator, **keys)
