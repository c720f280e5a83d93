"""The DRRho solver: from the losses of a row to its worst-case weights."""

from steering.dro.divergences import (
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
from steering.dro.exact import Dual, WorstCase, worst_case

__all__ = [
    "DIVERGENCES",
    "KL",
    "CVaR",
    "CappedKL",
    "ChiSquare",
    "CressieRead",
    "Divergence",
    "Dual",
    "TotalVariation",
    "WorstCase",
    "distance",
    "divergence",
    "worst_case",
]
