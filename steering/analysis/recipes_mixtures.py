"""Losses of proxies as a linear function of the weights of their mixtures.

    y_i ≈ b + Σ_k β_k w_ik,   w_ik ≥ 0,  Σ_k w_ik = 1

by ridge regression whose intercept is free. What it says of a mixture that was not tried is as good as
its error on recipes that were left out, and no better.

Source: RegMix, arXiv 2407.01492, which also fits trees, on hundreds of mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.analysis.recipes_axis import Axis

FEWEST = 4  # recipes that a fit wants
PENALTIES = tuple(10.0**power for power in range(-8, 3))
"""Strengths of the penalty that are tried, in units of a weight's mean sum of squares; the last one
leaves little but the mean."""
_SAME = ("task", "target", "reference", "method", "optimizer", "train", "start")


@dataclass(frozen=True)
class Mixtures:
    """Weights of domains, of each recipe.

    Attributes:
        domains: their names, k.
        shares: (recipes, k); each row sums to 1.
    """

    domains: tuple[str, ...]
    shares: np.ndarray


@dataclass(frozen=True)
class LinearFit:
    """A fit of losses on mixtures.

    Attributes:
        slopes: β, (k,), of which only differences mean something.
        fitted: the loss of each recipe by the fit of all, (n,).
        left_out: the loss of each by a fit, penalty included, that has not seen it, (n,).
        middle: the mean mixture, (k,).
    """

    slopes: np.ndarray
    fitted: np.ndarray
    left_out: np.ndarray
    middle: np.ndarray

    def shift(self, by: float = 0.1) -> np.ndarray:
        """By how much the loss changes when a domain's share grows by so much from the mean mixture,
        at the cost of the others in proportion, (k,); 0 for a domain that is all there is."""
        room = 1 - self.middle
        away = self.slopes - self.slopes @ self.middle
        return np.where(room > 1e-12, by * away / np.maximum(room, 1e-12), 0.0)


def mixtures_of(axis: Axis) -> Mixtures | None:
    """The mixtures of the recipes; None unless they are at least four, each has a `task.data.mix`, and
    they differ in nothing else."""
    first = axis.proxies[0].axes
    configs = {
        record.axes["recipe"]: record.config()
        for record in axis.proxies
        if (record.axes["rate"], record.axes["seed"]) == (first["rate"], first["seed"])
    }
    mixes = [_taken_out(configs.get(recipe, {})) for recipe in axis.recipes]
    rest = [{key: configs[recipe].get(key) for key in _SAME} for recipe in configs]
    if len(mixes) < FEWEST or not all(mixes) or any(one != rest[0] for one in rest):
        return None
    domains = tuple(dict.fromkeys(name for mix in mixes for name in mix))
    weights = np.array([[mix.get(name, 0.0) for name in domains] for mix in mixes])
    return Mixtures(domains, weights / weights.sum(1, keepdims=True))


def _taken_out(config: Mapping[str, Any]) -> dict[str, float]:
    """The mix of a config, which loses it."""
    data = (config.get("task") or {}).get("data") or {}
    mix = data.pop("mix", None) or {}
    return {str(name): float(weight) for name, weight in mix.items()}


def fit(shares: np.ndarray, losses: np.ndarray) -> LinearFit:
    """The ridge regression whose penalty predicts left-out recipes best.

    Args:
        shares: (n, k), rows sum to 1.
        losses: (n,), n ≥ 4.
    """
    n = len(losses)
    slopes = ridge_slopes(shares, losses, best_penalty(shares, losses))
    middle = shares.mean(0)
    left_out = np.empty(n)
    for i in range(n):
        rest = np.arange(n) != i
        penalty = best_penalty(shares[rest], losses[rest])
        own = ridge_slopes(shares[rest], losses[rest], penalty)
        left_out[i] = losses[rest].mean() + (shares[i] - shares[rest].mean(0)) @ own
    return LinearFit(slopes, losses.mean() + (shares - middle) @ slopes, left_out, middle)


def ridge_slopes(shares: np.ndarray, losses: np.ndarray, penalty: float) -> np.ndarray:
    """β = (XᵀX + λI)⁻¹ Xᵀ(y − ȳ), X the centred shares, (k,)."""
    x = shares - shares.mean(0)
    found: np.ndarray = np.linalg.solve(
        x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (losses - losses.mean())
    )
    return found


def best_penalty(shares: np.ndarray, losses: np.ndarray) -> float:
    """The λ with the least squared error on single recipes that are left out."""
    x = shares - shares.mean(0)
    unit = max(float(np.square(x).sum()) / x.shape[1], 1e-300)
    tried = [unit * strength for strength in PENALTIES]
    return min(tried, key=lambda λ: float(np.square(left_out_errors(shares, losses, λ)).sum()))


def left_out_errors(shares: np.ndarray, losses: np.ndarray, penalty: float) -> np.ndarray:
    """yᵢ less its prediction by the fit of the others at the same λ, (n,): the residual over 1 − Hᵢᵢ,
    where H = 1/n + X(XᵀX + λI)⁻¹Xᵀ maps losses to fitted ones."""
    x = shares - shares.mean(0)
    inner = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T)
    leverage = 1 / len(losses) + np.einsum("ik,ki->i", x, inner)
    residual = losses - losses.mean() - x @ (inner @ (losses - losses.mean()))
    errors: np.ndarray = residual / np.maximum(1 - leverage, 1e-12)
    return errors


def rms(errors: np.ndarray | Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(errors))))


def mean_of_others(losses: np.ndarray) -> np.ndarray:
    """For each recipe the mean loss of the rest, (n,): what a fit must beat."""
    found: np.ndarray = (losses.sum() - losses) / (len(losses) - 1)
    return found
