"""Knowledge distillation in anybody's loop: the reference's distributions as soft labels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from steering import distributed
from steering.contrastive.risk import info_nce_losses
from steering.dro.online.temperature import Temperature
from steering.items import Units, require_items
from steering.losses.checks import checked_pairs, one_row, require_number, wide
from steering.losses.estimate import Estimate
from steering.methods.distillation import (
    DistillationOptions,
    pairs_divergence,
    units_divergence,
)


class Distillation(nn.Module):
    """(1 − a)·mean loss + a·T²·KL(reference_T ‖ target_T), over classes or tokens (arXiv
    1503.02531).

        steer = Distillation(weight=0.5, temperature=2.0)
        loss = steer(losses, logits, reference_logits)

    It keeps no state. Averaged over the ranks, as DDP does, its gradient is that of the mean over
    the items of all ranks.

    Args:
        weight: a in [0, 1].
        temperature: T > 0 that softens both distributions.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        weight: float = DistillationOptions().weight,
        temperature: float = DistillationOptions().temperature,
    ) -> None:
        super().__init__()
        _require(weight, temperature)
        self.weight, self.temperature = weight, temperature

    def forward(
        self,
        losses: Tensor,
        logits: Tensor,
        reference_logits: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch, (). See `estimate`."""
        return self.estimate(losses, logits, reference_logits, mask).loss

    def estimate(
        self,
        losses: Tensor,
        logits: Tensor,
        reference_logits: Tensor,
        mask: Tensor | None = None,
    ) -> Estimate:
        """Loss and metrics of one batch; the weights are None, as every item counts alike.

        Args:
            losses: target losses, (b,) or any shape (...), with gradient.
            logits: scores of the target, (..., C), with gradient.
            reference_logits: those of the reference over the same C classes, (..., C).
            mask: bool, (...), False where an item does not count.

        Raises:
            ValueError: shapes differ, or no item counts.
        """
        _require_logits(losses, logits, reference_logits)
        units = replace(
            one_row(losses, None, mask, any_shape=True),
            logits=wide(logits).flatten(0, -2),
            reference_logits=wide(reference_logits.detach()).flatten(0, -2),
        )
        divergence = units_divergence(units, self.temperature, "distillation")
        loss = (1 - self.weight) * _mean(units) + self.weight * divergence
        return Estimate(loss, None, {"distillation": divergence.detach()})


class ContrastiveDistillation(nn.Module):
    """(1 − a)·InfoNCE + a·T²·KL between the distributions of reference and target over the other
    modality (arXiv 2311.17049, MobileCLIP).

        steer = ContrastiveDistillation(reference_scale=100.0)
        loss = steer(image_features, text_features, reference_image_features,
        reference_text_features)

    τ of InfoNCE and of the student is a parameter, log τ: give `parameters()` to the optimiser,
    without weight decay.

    Args:
        reference_scale: logit scale of the reference, 1/τ: 100 for published CLIP models.
        weight: a in [0, 1].
        temperature: T > 0; 1 is customary for pairs.
        tau: initial temperature of the target.
        tau_min: smallest temperature. The largest is 1.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        *,
        reference_scale: float,
        weight: float = DistillationOptions().weight,
        temperature: float = DistillationOptions().temperature,
        tau: float = DistillationOptions().tau,
        tau_min: float = DistillationOptions().tau_min,
    ) -> None:
        super().__init__()
        _require(weight, temperature)
        require_number("reference_scale", reference_scale, positive=True)
        self.reference_scale = reference_scale
        self.weight, self.softening = weight, temperature
        self.temperature = Temperature(tau, learned=True, minimum=tau_min, maximum=1.0)

    def forward(
        self, image: Tensor, text: Tensor, reference_image: Tensor, reference_text: Tensor
    ) -> Tensor:
        """The loss of one batch, (). See `estimate`."""
        return self.estimate(image, text, reference_image, reference_text).loss

    def estimate(
        self, image: Tensor, text: Tensor, reference_image: Tensor, reference_text: Tensor
    ) -> Estimate:
        """Loss and metrics of one batch; the weights are None, as every pair counts alike.

        Args:
            image, text: unit-norm features of the target, (b, d) each, with gradient.
            reference_image, reference_text: those of the reference, (b, d′) each.

        Raises:
            ValueError: shapes differ, or a feature is not finite.
        """
        pairs = checked_pairs(image, text, None, reference_image, reference_text)
        tau = self.temperature()
        plain = info_nce_losses(pairs, tau).mean()
        divergence = pairs_divergence(pairs, 1 / tau, self.reference_scale, self.softening)
        loss = (1 - self.weight) * plain + self.weight * divergence
        return Estimate(loss, None, {"tau": tau.detach(), "distillation": divergence.detach()})


def _mean(units: Units) -> Tensor:
    """Mean loss of the items that count; averaged over the ranks that over the items of all."""
    if units.mask is None:
        return units.target.mean()
    total = units.target.masked_fill(~units.mask, 0.0).sum()
    count = distributed.mean(units.mask.sum().to(total.dtype))
    require_items(count)
    return total / count


def _require(weight: float, temperature: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")
    require_number("temperature", temperature, positive=True)


def _require_logits(losses: Tensor, logits: Tensor, reference_logits: Tensor) -> None:
    if logits.ndim < 2 or logits.shape[:-1] != losses.shape:
        raise ValueError(f"logits must be {(*losses.shape, 'C')}, got {tuple(logits.shape)}")
    if reference_logits.shape != logits.shape:
        raise ValueError(
            f"reference_logits must be {tuple(logits.shape)}, got {tuple(reference_logits.shape)}"
        )
