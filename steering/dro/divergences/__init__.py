"""The shapes of an uncertainty set: one file for each family, found by name in `registry`."""

from steering.dro.divergences.registry import (
    DIVERGENCES,
    KL,
    CappedKL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    distance,
    divergence,
)

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
