"""Risk of every anchor of a batch of pairs: the blocked path where it can, the dense one
elsewhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.blocked import DEFAULT_BUDGET, NOTHING, Blocks
from steering.contrastive.global_risk import global_risk
from steering.contrastive.moments import pair_moments
from steering.contrastive.naive import info_nce, negatives
from steering.dro.online.estimator import learning
from steering.dro.online.stochastic import StochasticRisk, strength_metrics, tau_metrics
from steering.items import Pairs


def anchor_risks(
    risk: StochasticRisk, pairs: Pairs, budget: int = DEFAULT_BUDGET
) -> tuple[Tensor, dict[str, Tensor]]:
    """Risk of each of this rank's anchors, (2, b), image anchors first, with gradient; and scalars
    for a log.

    KL risks go in blocks, in memory linear in the batch (`blocked.py`); other divergences, and the
    proximal point, need all B² losses at once (`naive.py`).

    Args:
        risk: its running estimates are updated; row key 2·index + direction.
        pairs: features of this rank.
        budget: bytes that blocks of exponentials may take to be kept for the backward pass; the
            others are computed again.

    Raises:
        ValueError: fewer than 2 pairs over all ranks.
    """
    if not risk.is_kl or risk.estimator.needs_scores:
        risks, _, metrics = risk.per_row(negatives(pairs))
        return risks, metrics
    keys, sharded, learn = anchor_keys(pairs), distributed.active(), learning(risk)
    others = len(pairs.image) * distributed.world_size() - 1
    alpha: float | Tensor = risk.strength.value
    if risk.strength.auto and pairs.reference_image is not None:
        alpha = risk.strength.track(pair_moments(pairs), pairs.image.dtype, learn=learn)
    tau, follow = risk.temperature.visit(keys, sharded, pairs.image.new_full((), others), learn)
    blocks = _blocks(pairs, tau, alpha, budget)
    blocks.with_means = risk.temperature.learned
    height, log_means, means = global_risk(
        pairs, blocks, lambda found: risk.height(keys, found, sharded, learn=learn)
    )
    weight_sum = (log_means - height.detach()).exp()
    risks = tau * (height + risk.radius)
    if risk.temperature.learned:
        risks = risks + follow(
            height.detach() + risk.radius - weight_sum * means, risk.radius - means + log_means
        )
    metrics = _metrics(blocks) | {"weight_sum": weight_sum.mean()} | tau_metrics(tau)
    if learn:
        risk.watch.size(others)
        risk.watch.share(metrics["effective_sample_share"], others, "negatives of each anchor")
    return risks, metrics | strength_metrics(alpha, height)


def info_nce_losses(pairs: Pairs, tau: Tensor, budget: int = DEFAULT_BUDGET) -> Tensor:
    """`naive.info_nce` in blocks, (2, b), with gradient in the features and in τ, ().

    A positive among the candidates is a margin: InfoNCE is log(B − 1) + log(ε + û) with ε = 1/(B −
    1), docs/theory.md, (27).
    """
    others = len(pairs.image) * distributed.world_size() - 1
    if others == 0:
        return info_nce(pairs.image, pairs.text, tau)
    blocks = _blocks(Pairs(pairs.image, pairs.text, pairs.index), tau.detach(), 0.0, budget)
    blocks.with_means = tau.requires_grad
    margin = pairs.image.new_full((), -math.log(others))
    height, log_means, means = global_risk(
        pairs, blocks, lambda found: torch.logaddexp(found, margin)
    )
    losses = height + math.log(others)
    if not tau.requires_grad:
        return losses
    slope = -(log_means - height.detach()).exp() * means / tau.detach()
    return losses + (tau - tau.detach()) * slope


@torch.no_grad()
def reference_risks(risk: StochasticRisk, pairs: Pairs) -> Tensor | None:
    """The same risk of the reference's own losses, at the target's temperature, (2, b); None
    without a reference."""
    reference = pairs.reference()
    if reference is None:
        return None
    tau = risk.temperature.read(anchor_keys(pairs), distributed.active())
    log_means, _ = _blocks(Pairs(*reference, pairs.index), tau, 0.0, 0).log_means()
    return tau * torch.logaddexp(log_means, torch.full_like(log_means, risk.log_epsilon))


def anchor_keys(pairs: Pairs) -> Tensor:
    """Row keys of the anchors, (2, b)."""
    return 2 * pairs.index + torch.arange(2, device=pairs.index.device)[:, None]


def _blocks(pairs: Pairs, tau: Tensor, strength: float | Tensor, budget: int) -> Blocks:
    if len(pairs.image) * distributed.world_size() < 2:
        raise ValueError(
            f"a contrastive batch needs at least 2 pairs over all ranks, got {len(pairs.image)}"
        )
    image, dtype = pairs.image.detach().contiguous(), pairs.image.dtype
    text = distributed.gather(pairs.text.detach().contiguous())
    tau = tau.to(dtype)
    taus = (tau, tau) if tau.ndim == 0 else (tau[0], distributed.gather(tau[1]))
    needed = torch.is_grad_enabled() and (pairs.image.requires_grad or pairs.text.requires_grad)
    budget = budget if needed else 0
    # Which path is safe is asked of the numbers, and asking would make a GPU wait: there two
    # exponentials are always taken.
    single = image.device.type == "cpu"
    ignored = not isinstance(strength, Tensor) and strength == 0.0
    if ignored or pairs.reference_image is None or pairs.reference_text is None:
        return Blocks(image, text, None, None, *taus, 0.0, budget, single=single)
    guide = pairs.reference_image.detach().to(dtype)
    guide_text = distributed.gather(pairs.reference_text.detach().contiguous()).to(
        dtype
    )  # half travels as half
    return Blocks(image, text, guide, guide_text, *taus, strength, budget, single=single)


@torch.no_grad()
def _metrics(blocks: Blocks) -> dict[str, Tensor]:
    """Mean and variance of h and the effective sample share, of the first image anchors: all would
    be two more passes."""
    d, positive = blocks.sampled()
    weights = d.softmax(-1)
    share = 1 / weights.square().sum(-1) / (d.shape[-1] - 1)
    negative, count = blocks.sample > NOTHING / 2, d.numel() - len(d)
    tau = blocks.tau if blocks.shared else blocks.tau[: len(d), None]
    h = ((d - positive) * tau).masked_fill(~negative, 0.0)
    mean = h.sum() / count
    variance = ((h - mean).square() * negative).sum() / count
    return {
        "excess_mean": mean,
        "excess_variance": variance,
        "effective_sample_share": share.mean(),
    }
