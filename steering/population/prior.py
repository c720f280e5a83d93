"""The learned prior: weights of a mixture, fitted on examples that no member has seen.

M members, T items (tokens or examples) of the held-out slice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor], Tensor]
"""From the mixture's probability of each true label, (T,), to a loss, ()."""


def nll(mixed: Tensor) -> Tensor:
    """−mean log p, nats: convex in the weights of the mixture."""
    return -mixed.log().mean()


@dataclass(frozen=True)
class Prior:
    """Weights of a mixture.

    Attributes:
        weights: (M,), float64, at least 0, sum 1.
        loss: of the mixture on the slice that it was fitted on.
        gap: for the negative log likelihood, how much lower any other weights could make it at
            most, nats: max_m mean_t P_mt/(w·P_t) − 1.
    """

    weights: Tensor
    loss: float
    gap: float


def fit_prior(probabilities: Tensor, objective: Objective = nll, steps: int = 300) -> Prior:
    """The weights w = softmax(α) that make the mixture's loss on a held-out slice small.

    Formula: min_α −mean_t log Σ_m softmax(α)_m·P_mt, by L-BFGS from equal weights. They are kept
    where nothing better is found.

    Source: arXiv 2606.03938, whose 300 steps of AdamW at a rate of 0.5 can run into a corner of the
    simplex, where a softmax has no slope.

    Args:
        probabilities: P, what each member gives to each true label, (M, T), in [0, 1].
        objective: what is made small; another than `nll` is for a slice that has a measure of its
            own. It must be differentiable.
        steps: the most that are made.

    Raises:
        ValueError: P is no matrix of probabilities, or an item is impossible under all members.
    """
    p = _checked(probabilities)
    alpha = torch.zeros(len(p), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [alpha],
        max_iter=steps,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(alpha.softmax(0) @ p)
        loss.backward()
        return loss

    optimizer.step(closure)
    even = torch.full_like(alpha, 1 / len(p)).detach()
    candidates = [even, alpha.detach().softmax(0)]
    losses = [float(objective(weights @ p)) for weights in candidates]
    # A comparison that also turns away a fit that has become nan.
    best = candidates[1] if losses[1] < losses[0] else even
    return Prior(best, float(objective(best @ p)), likelihood_gap(best, p))


def likelihood_gap(weights: Tensor, probabilities: Tensor) -> float:
    """How far weights are from the most likely ones at most, nats per item.

    The log likelihood is concave in w, its slope at w is g_m = mean_t P_mt/(w·P_t) with w·g = 1,
    so no point of the simplex is higher by more than max_m g_m − 1.
    """
    slope = (probabilities / (weights @ probabilities)).mean(1)
    return float(slope.max() - 1)


def top_weights(weights: Tensor, count: int) -> Tensor:
    """The `count` largest weights, renormalised, the others 0, (M,); there is no fit anew.

    Of equal ones the first stay. ValueError unless count is in 1 .. M.
    """
    if not 1 <= count <= len(weights):
        raise ValueError(f"count must be in 1 .. {len(weights)}, the members, got {count}")
    chosen = weights.argsort(descending=True, stable=True)[:count]
    kept = torch.zeros_like(weights)
    kept[chosen] = weights[chosen]
    return kept / kept.sum()


def _checked(probabilities: Tensor) -> Tensor:
    p = probabilities.detach().to("cpu", torch.float64)
    if p.ndim != 2 or not p.numel():
        raise ValueError(f"probabilities must be (members, items), got {tuple(p.shape)}")
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError("probabilities must lie in [0, 1]")
    impossible = int((p.amax(0) == 0).sum())
    if impossible:
        raise ValueError(f"probabilities: {impossible} items are impossible under every member")
    return p
