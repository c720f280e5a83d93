"""The divergences by name."""

from __future__ import annotations

from steering.dro.divergences.base import Divergence, distance
from steering.dro.divergences.cressie_read import KL, ChiSquare, CressieRead
from steering.dro.divergences.tails import CVaR, TotalVariation

__all__ = [
    "KL",
    "CVaR",
    "ChiSquare",
    "CressieRead",
    "Divergence",
    "TotalVariation",
    "distance",
    "divergence",
]

_PLAIN: dict[str, Divergence] = {
    found.name: found for found in (KL(), ChiSquare(), TotalVariation())
}
NAMES = (*_PLAIN, CVaR.name, CressieRead.name)


def divergence(
    name_or_object: str | Divergence, level: float | None = None, order: float | None = None
) -> Divergence:
    """The divergence that a config or a caller means.

    Args:
        name_or_object: "kl", "chi2" (half chi-square), "tv" (total variation), "cvar" or
            "cressie-read"; an object comes back as it is.
        level: share of items in the tail, 0 < level ≤ 1; for "cvar" and for nothing else.
        order: k of the Cressie–Read family, 1 being KL; for "cressie-read" and for nothing else.

    Raises:
        ValueError: unknown name, a missing level or order, or one where there is none.
    """
    for key, value, owner in [("level", level, CVaR.name), ("order", order, CressieRead.name)]:
        if value is not None and name_or_object != owner:
            raise ValueError(
                f"{key}: belongs to {owner!r} only, got {value} together with {name_or_object!r}"
            )
        if value is None and name_or_object == owner:
            raise ValueError(f"{key}: {owner!r} needs it, got None")
    if isinstance(name_or_object, Divergence):
        return name_or_object
    if level is not None:
        return CVaR(level)
    if order is not None:
        return KL() if order == 1 else CressieRead(order)
    if name_or_object not in _PLAIN:
        raise ValueError(f"divergence: expected one of {', '.join(NAMES)}, got {name_or_object!r}")
    return _PLAIN[name_or_object]
