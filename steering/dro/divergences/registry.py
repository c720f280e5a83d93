"""The divergences by name."""

from __future__ import annotations

from dataclasses import MISSING, fields

from steering.dro.divergences.base import DIVERGENCES, Divergence, distance
from steering.dro.divergences.capped import CappedKL
from steering.dro.divergences.chi_square import ChiSquare
from steering.dro.divergences.cressie_read import CressieRead
from steering.dro.divergences.kl import KL
from steering.dro.divergences.tails import CVaR, TotalVariation
from steering.errors import SteeringError

__all__ = [
    "DIVERGENCES",
    "KL",
    "CVaR",
    "CappedKL",
    "ChiSquare",
    "CressieRead",
    "Divergence",
    "TotalVariation",
    "distance",
    "divergence",
]


def divergence(
    name_or_object: str | Divergence, level: float | None = None, order: float | None = None
) -> Divergence:
    """The divergence that a caller means.

    Args:
        name_or_object: "kl", "chi2" (half chi-square), "tv" (total variation), "cvar",
            "cvar-kl", "cressie-read", or another name that `DIVERGENCES` finds; an object comes back as it is.
        level: share of items in the tail, 0 < level ≤ 1; for "cvar" and "cvar-kl" alone.
        order: k of the Cressie–Read family, 1 being KL; for "cressie-read" and for nothing else.

    Raises:
        ValueError: unknown name, a missing level or order, or one where there is none.
    """
    owners = {"level": ("cvar", "cvar-kl"), "order": ("cressie-read",)}
    for key, value in (("level", level), ("order", order)):
        if value is not None and name_or_object not in owners[key]:
            raise ValueError(
                f"{key}: belongs to {' and '.join(map(repr, owners[key]))} only, got {value} "
                f"together with {name_or_object!r}"
            )
    if not isinstance(name_or_object, str):
        return name_or_object
    if order == 1:
        return KL()
    given = {"level": level, "order": order}
    return _made(name_or_object, {key: value for key, value in given.items() if value is not None})


def _made(name: str, given: dict[str, float]) -> Divergence:
    try:
        part = DIVERGENCES.find(name)
    except SteeringError:
        known = ", ".join(DIVERGENCES.names())
        raise ValueError(f"divergence: expected one of {known}, got {name!r}") from None
    for f in fields(part):  # type: ignore[arg-type]
        if f.name not in given and f.default is MISSING:
            raise ValueError(f"{f.name}: {name!r} needs it, got None")
    return part(**given)
