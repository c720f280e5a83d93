"""Steered losses as plain functions: one line, no state, statistics of this batch alone.

    loss = drrho_loss(losses, reference_losses, tau=1.0)

They are exact for the batch that they are given: the gradient is Σ_i p_i ∇ℓ_i with the worst-case
weights p of that batch (`steering.dro.worst_case`). As an estimate for the whole training set a
small batch is biased; the modules of `steering.losses` keep a running estimate against that, and
have a temperature that follows a radius. Under an initialised process group the batch is that of
all ranks, and averaging parameter gradients over the ranks gives the single-process gradient.

All take at least float32 whatever the autocast made of the losses, and return ().
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.naive import negatives
from steering.contrastive.risk import anchor_risks, info_nce_losses
from steering.dro.defaults import defaults
from steering.dro.divergences import Divergence
from steering.dro.divergences import divergence as find
from steering.dro.exact import worst_case
from steering.dro.online.strength import Strength
from steering.items import Pairs, Units, gathered
from steering.losses.checks import checked_pairs, one_row, require_number
from steering.losses.distillation import Distillation
from steering.losses.examples import SoftFilter, soft_filter_weights
from steering.losses.risk import adversary_of
from steering.losses.tokens import Rho1

__all__ = [
    "clip_loss",
    "contrastive_drrho_loss",
    "distillation_loss",
    "dro_loss",
    "drrho_loss",
    "rho1_loss",
    "soft_filter_loss",
]


def drrho_loss(
    losses: Tensor,
    reference_losses: Tensor | None = None,
    *,
    tau: float | None = None,
    radius: float | None = None,
    divergence: str | Divergence = "kl",
    strength: float | str = 1.0,
    prior: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """DRRho risk of one batch (arXiv 2505.06699): the worst case of ℓ − α·ℓ_ref.

        max_p Σ_i p_i·(ℓ_i − α·ℓ_ref,i) − τ·D(p ‖ q),  or over all p with D(p ‖ q) ≤ radius

    For KL with τ this is τ·log Σ_i q_i exp(h_i/τ).

    Args:
        losses: target losses, (b,) or any shape, item by item; nats, with gradient.
        reference_losses: those of the frozen reference, the same shape; None for plain DRO.
        tau: temperature in nats, > 0. None: 1, where neither a radius nor CVaR is asked for.
        radius: budget in the unit of the divergence (nats for KL), in the place of `tau`; the
            temperature of this batch is then found exactly.
        divergence: "kl", "chi2", "tv", or an object of `steering.dro`: CVaR(0.3), CressieRead(1.5).
        strength: α ≥ 0, or "auto": the α of least variance on this batch.
        prior: κ ≥ 0: q ∝ exp(−κ·ℓ_ref), a soft filter; 0: equal weights.
        mask: bool, the same shape, False where an item does not count.

    Raises:
        ValueError: shapes differ, nothing counts, a loss that counts is not finite, or an argument
            out of range.

    Source: docs/theory.md, sections 1 and 2.
    """
    units = gathered(one_row(losses, reference_losses, mask, any_shape=True))
    require_number("prior", prior)
    q = None
    if prior > 0:
        q = soft_filter_weights(units, prior)
    return _worst(units, _excess(units, strength), divergence, tau, radius, q)


def dro_loss(
    losses: Tensor,
    *,
    tau: float | None = None,
    radius: float | None = None,
    divergence: str | Divergence = "kl",
    mask: Tensor | None = None,
) -> Tensor:
    """DRO risk of one batch: `drrho_loss` without a reference."""
    return drrho_loss(losses, None, tau=tau, radius=radius, divergence=divergence, mask=mask)


def soft_filter_loss(
    losses: Tensor, reference_losses: Tensor, *, prior: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Σ_i q_i ℓ_i with q ∝ exp(−κ·ℓ_ref), κ = `prior`: see `steering.losses.SoftFilter`."""
    return SoftFilter(prior=prior)(losses, reference_losses, mask)


def rho1_loss(
    losses: Tensor, reference_losses: Tensor, *, share: float = 0.6, mask: Tensor | None = None
) -> Tensor:
    """Mean loss of the share of tokens with the largest ℓ − ℓ_ref (arXiv 2404.07965): see
    `steering.losses.Rho1`."""
    return Rho1(share=share)(losses, reference_losses, mask)


def distillation_loss(
    losses: Tensor,
    logits: Tensor,
    reference_logits: Tensor,
    *,
    weight: float = 0.5,
    temperature: float = 2.0,
    mask: Tensor | None = None,
) -> Tensor:
    """(1 − a)·mean loss + a·T²·KL(reference_T ‖ target_T) (arXiv 1503.02531): see
    `steering.losses.Distillation`."""
    steer = Distillation(weight=weight, temperature=temperature)
    return steer(losses, logits, reference_logits, mask)


def contrastive_drrho_loss(
    image: Tensor,
    text: Tensor,
    reference_image: Tensor | None = None,
    reference_text: Tensor | None = None,
    *,
    tau: float | None = None,
    radius: float | None = None,
    divergence: str | Divergence = "kl",
    strength: float | str = 1.0,
    epsilon: float | None = None,
) -> Tensor:
    """Contrastive DRRho risk of one batch of pairs (arXiv 2505.06699, DRRho-CLIP): each anchor's
    adversary weighs its negatives.

    KL with τ runs in blocks, in memory linear in the batch; everything else writes all B² losses
    down.

    Args:
        image, text: unit-norm features, (b, d) each, with gradient; at least 2 pairs over all
            ranks.
        reference_image, reference_text: those of the reference, (b, d′) each; None for the global
            contrastive loss without a reference (FastCLIP).
        tau: temperature in units of the cosine. None: 0.07, where neither a radius nor CVaR is
            asked for.
        radius, divergence, strength: as in `drrho_loss`, for each anchor.
        epsilon: ε ≥ 0, the margin of KL with τ: an anchor lets go once its excess losses are below
            τ·ln ε. None: 1e-4 there, else 0.

    Raises:
        ValueError: shapes differ, a feature is not finite, or an argument out of range.
    """
    pairs = checked_pairs(image, text, None, reference_image, reference_text)
    blocked = radius is None and find(divergence).has_log_means
    if blocked:
        return _in_blocks(pairs, tau, strength, epsilon)
    if epsilon:
        raise ValueError(f"epsilon must be 0 with a radius or another divergence, got {epsilon}")
    units = negatives(pairs)
    return _worst(units, _excess(units, strength), divergence, tau, radius, None, "pair")


def clip_loss(image: Tensor, text: Tensor, *, tau: float | Tensor = 0.07) -> Tensor:
    """InfoNCE, the loss of CLIP (arXiv 2103.00020): −log softmax_j(cos_ij/τ) at j = i, mean over
    both directions.

    Args:
        image, text: unit-norm features, (b, d) each, with gradient.
        tau: temperature, a number or (), with gradient if it is learned.

    Raises:
        ValueError: shapes differ, or a feature is not finite.
    """
    pairs = checked_pairs(image, text, None)
    if not isinstance(tau, Tensor):
        require_number("tau", tau, positive=True)
    temperature = torch.as_tensor(tau, dtype=pairs.image.dtype, device=pairs.image.device)
    return info_nce_losses(pairs, temperature).mean()


def _excess(units: Units, strength: float | str) -> Tensor:
    """ℓ − α·ℓ_ref, (..., n), zero where masked."""
    if isinstance(strength, str) or units.reference is None:
        return units.excess(Strength(strength).eval().to(units.target.device)(units))
    require_number("strength", strength)
    return units.excess(strength)


def _worst(
    units: Units,
    excess: Tensor,
    divergence: str | Divergence,
    tau: float | None,
    radius: float | None,
    q: Tensor | None,
    unit: str = "example",
) -> Tensor:
    """Mean over the rows of the worst case of the excess losses, ()."""
    adversary = find(divergence)
    if radius is not None and tau is not None:
        raise ValueError(f"tau: give tau or radius, not both, got {tau} and {radius}")
    if not adversary.takes_budget and (tau is not None or radius is not None):
        raise ValueError(
            f"tau and radius must be None for {adversary.name!r}, got {tau} and {radius}"
        )
    if tau is not None:
        require_number("tau", tau, positive=True)
    elif radius is None and adversary.takes_budget:
        tau = defaults(unit).tau
    if tau is not None and adversary.has_log_means:
        return _soft_maximum(units, excess, tau, q)
    found = worst_case(excess, adversary, penalty=tau, radius=radius, mask=units.mask, prior=q)
    return found.value.mean()


def _soft_maximum(units: Units, excess: Tensor, tau: float, q: Tensor | None) -> Tensor:
    """τ·log Σ_i q_i exp(h_i/τ), mean over the rows, (): `worst_case` for KL with a penalty, in a few
    operations that a compiler can fuse and that make no GPU wait."""
    top = excess.detach().amax(-1, keepdim=True)  # else an offset would cost digits
    scores = (excess - top) / tau
    if q is not None:
        scores = scores + q.log()
    if units.mask is not None:
        scores = scores.masked_fill(~units.mask, -math.inf)
    value = top[..., 0] + tau * scores.logsumexp(-1)
    if q is None:
        value = value - tau * units.counts().log()
    return value.mean()


def _in_blocks(
    pairs: Pairs, tau: float | None, strength: float | str, epsilon: float | None
) -> Tensor:
    rows = 2 * len(pairs.image) * distributed.world_size()
    risk = adversary_of(rows, "pair", tau=tau, strength=strength, epsilon=epsilon, gamma=1.0)
    # In eval mode nothing is remembered: the estimates are those of this batch.
    return anchor_risks(risk.to(pairs.image.device).eval(), pairs)[0].mean()
