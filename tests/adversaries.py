"""Adversaries by flat keys, for tests that vary one of them."""

from dataclasses import fields
from typing import Any

from steering.dro.adversary import Adversary
from steering.dro.flat import flat_adversary
from steering.dro.online.estimator import Estimator
from steering.dro.online.row_table import Layout
from steering.dro.online.stochastic import StochasticRisk
from steering.methods import find_method
from steering.methods.nested import InnerAdversary, NestedOptions, OuterAdversary


def flat(**keys: Any) -> dict[str, Any]:
    """The fields that an `Adversary`, or a method's options, need for these keys."""
    made = flat_adversary(**{key: value for key, value in keys.items() if key in FLAT})
    parts = {"divergence": made.divergence, "estimator": made.estimator}
    return parts | {key: value for key, value in keys.items() if key not in FLAT}


FLAT = {
    *("divergence", "level", "order"),
    *("estimator", "gamma", "gamma_decay_epochs", "log_alpha", "step"),
}


def stochastic(num_rows: int, **keys: Any) -> StochasticRisk:
    """A risk of an adversary by flat keys; `solve_tau`, `split` and `tau_max` are its own."""
    names = {f.name for f in fields(Adversary)} | FLAT
    own = {key: keys.pop(key) for key in [*keys] if key not in names}
    return StochasticRisk(num_rows, flat_adversary(**{"tau_min": 1e-4, **keys}), **own)


def nested(
    inner: dict[str, Any] | None = None, outer: dict[str, Any] | None = None
) -> NestedOptions:
    """Options of `nested` by the fields of its two adversaries that differ from their defaults."""
    return NestedOptions(InnerAdversary(**(inner or {})), OuterAdversary(**(outer or {})))


def options_of(method: str, **keys: Any) -> Any:
    """Options of a method; those of an adversary by flat keys, and of `nested` with "outer_" before
    the outer adversary's."""
    if method == "nested":
        outer = {key.removeprefix("outer_"): x for key, x in keys.items() if "outer_" in key}
        inner = {key: x for key, x in keys.items() if "outer_" not in key}
        return nested(flat(**inner), flat(**outer))
    return find_method(method).options(**flat_for(method, keys))


def flat_for(method: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Flat keys as fields of a method's options, if these are an adversary."""
    return flat(**keys) if method in ("dro", "drrho") else keys


def built(
    name: str | None, phi: Any, num_rows: int, *, layout: Layout | None = None, **keys: Any
) -> Estimator:
    """The estimator of that name; None: the usual one of the divergence."""
    spec = flat_adversary(divergence=phi, estimator=name, **keys).estimator
    assert spec is not None
    return spec.build(phi, num_rows, layout or Layout())
