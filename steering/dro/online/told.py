"""What a step tells a log: the weights, the excess losses, and where on the steering plane it stood."""

from __future__ import annotations

import torch
from torch import Tensor

from steering.dro.online.metrics import Metrics
from steering.dro.online.visit import Visit


def plane_metrics(visit: Visit, prior: float | None, like: Tensor) -> Metrics:
    """τ, α, and κ if there is a prior, as scalars of the kind of `like`. Individual τ are told by mean
    and standard deviation over the batch."""
    tau, alpha = visit.tau, visit.alpha

    def make() -> dict[str, Tensor]:
        found = {"tau": tau if tau.ndim == 0 else tau.mean()}
        if tau.ndim:
            found["tau_deviation"] = tau.std(correction=0)
        # Made on the device: a copy from the CPU would make a GPU wait.
        found["strength"] = alpha if isinstance(alpha, Tensor) else like.new_full((), alpha)
        if prior is not None:
            found["prior"] = like.new_full((), prior)
        return found

    return Metrics(make)


@torch.no_grad()
def effective_share(weights: Tensor, counts: Tensor | float) -> Tensor:
    """Effective sample size of the weights, (Σp)²/Σp², as a share of the row's items (1 = uniform),
    averaged over rows, ()."""
    return share_of(weights, counts)


def share_of(weights: Tensor, counts: Tensor | float) -> Tensor:
    """The same where gradients are off already: asking twice is a part of a step's fixed cost."""
    squares = row_dot(weights, weights).clamp_min(torch.finfo(weights.dtype).tiny)
    share = weights.sum(-1).square() / squares / counts
    return share if share.ndim == 0 else share.mean()


@torch.no_grad()
def weight_metrics(
    weights: Tensor, counts: Tensor | float, share: Tensor | None
) -> dict[str, Tensor]:
    """Everything that is told of the weights, (..., n).

    Args:
        counts: items that count in each row, a number or (...).
        share: `effective_share` of them, if it is known already.
    """
    found = effective_share(weights, counts) if share is None else share
    own = {"effective_sample_share": found, "weight_sum": weights.sum(-1).mean()}
    return own | spent_metrics(weights, counts)


@torch.no_grad()
def spent_metrics(weights: Tensor, counts: Tensor | float) -> dict[str, Tensor]:
    """How far the normalised weights are from uniform ones.

    Args:
        weights: (..., n), ≥ 0; zero where an item does not count.
        counts: items that count in each row, a number or (...).

    Returns:
        "weight_max": the largest weight of a row as a multiple of a uniform one; "kl_spent": KL(p ‖
        uniform), nats; both averaged over rows.
    """
    total = weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    # Their sum is not 1 where a running ν or a margin is at work. xlogy makes 0·log 0 zero.
    ratios = weights / total * column(counts)
    kl = torch.xlogy(ratios, ratios).sum(-1) / counts
    return {"weight_max": ratios.amax(-1).mean(), "kl_spent": kl.mean()}


@torch.no_grad()
def excess_metrics(mask: Tensor | None, excess: Tensor) -> dict[str, Tensor]:
    """Mean and variance of the excess losses over all items that count."""
    if mask is None:
        mean = excess.mean()
        return {"excess_mean": mean, "excess_variance": (excess - mean).square().mean()}
    count = mask.sum()
    mean = (excess * mask).sum() / count
    return {"excess_mean": mean, "excess_variance": ((excess - mean).square() * mask).sum() / count}


def row_dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ x·y of each row, (...); a single row in one call."""
    return torch.dot(x, y) if x.ndim == 1 else (x * y).sum(-1)


def beside(x: Tensor) -> Tensor:
    """Numbers of rows beside the rows' items, (...) → (..., 1); a single one needs no axis."""
    return x[..., None] if x.ndim else x


def column(counts: Tensor | float) -> Tensor | float:
    """Counts of rows as what divides their items, (...) → (..., 1); a number stays one."""
    return beside(counts) if isinstance(counts, Tensor) else counts
