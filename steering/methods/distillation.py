"""Knowledge distillation: the reference as a teacher of whole distributions instead of a judge of
losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
import torch.nn.functional as F
from torch import Tensor

from steering import distributed
from steering.dro.defaults import default_tau
from steering.dro.online.temperature import Temperature
from steering.errors import SteeringError
from steering.items import LossItems, Pairs, Units, rows_of
from steering.methods.erm import clip_temperature, logit_scale, mean_loss
from steering.methods.ranges import Ranges, by_log, evenly
from steering.methods.registry import Method, Needs, Step, register


@dataclass
class DistillationOptions:
    weight: float = 0.5
    """a in (1 − a)·loss + a·KD, in [0, 1]."""
    temperature: float = 2.0
    """T that softens both distributions; the gradient is kept in scale by T². For pairs 1 is
    customary."""
    reference_scale: float | None = None
    """Pairs: logit scale of the reference, 1/τ; null: its own (100 for OpenAI's models)."""
    tau: float = default_tau("pair")
    """Pairs: initial temperature of InfoNCE and of the student's distribution, learned."""
    tau_min: float = 0.01
    """Pairs: smallest temperature."""

    @staticmethod
    def search(unit: str) -> Ranges:
        temperature = [1.0, 2.0] if unit == "pair" else by_log(0.5, 4.0)
        return {"weight": evenly(0.2, 0.95), "temperature": temperature}

    def needs(self) -> Needs:
        return Needs(reference=self.weight > 0, logits=self.weight > 0)


@register("distillation", DistillationOptions, units=("example", "token", "pair"))
class Distillation(Method):
    """Knowledge distillation: the reference's distributions as soft labels beside the true ones.

    Formula: (1 − a)·mean_i ℓ_i + a·T²·mean_i KL(reference_T ‖ target_T), softmax at temperature T

    Source: arXiv 1503.02531; pairs: arXiv 2311.17049 (MobileCLIP)
    """

    def __init__(self, options: DistillationOptions, unit: str = "example") -> None:
        super().__init__()
        if not 0 <= options.weight <= 1:
            raise ValueError(f"weight must be in [0, 1], got {options.weight}")
        if not 0 < options.temperature < math.inf:
            raise ValueError(f"temperature must be a number > 0, got {options.temperature}")
        require_scale(options.reference_scale)
        self.options = options
        self.temperature = clip_temperature(options.tau, options.tau_min, unit)

    def logit_scale(self) -> float | None:
        return logit_scale(self.temperature)

    def forward(self, items: LossItems) -> Step:
        plain, a = mean_loss(items, self.temperature), self.options.weight
        if a == 0:
            return plain
        kd = divergence(items, self.options, self.temperature)
        metrics = plain.scalars() | {"distillation": kd.detach()}
        return Step((1 - a) * plain.loss + a * kd, metrics, plain.weights)


@singledispatch
def divergence(
    items: LossItems,
    options: DistillationOptions,
    temperature: Temperature | None,  # noqa: ARG001
) -> Tensor:
    """T²·KL(reference_T ‖ target_T) of the items, mean, ()."""
    return units_divergence(rows_of(items), options.temperature, "distillation")


@divergence.register
def _(items: Pairs, options: DistillationOptions, temperature: Temperature) -> Tensor:
    scale = reference_scale(items, options.reference_scale, "distillation")
    return pairs_divergence(items, 1 / temperature(), scale, options.temperature)


def units_divergence(units: Units, temperature: float, name: str) -> Tensor:
    """T²·KL(softmax(reference/T) ‖ softmax(target/T)), mean over the items that count, ().

    Averaged over the ranks it is the mean over the items of all ranks.  Source: arXiv 1503.02531,
    section 2.

    Raises:
        SteeringError: the items carry no logits, or they are over other classes than the
            reference's.
    """
    if units.logits is None or units.reference_logits is None:
        raise SteeringError(
            f"method ({name}): needs the logits of target and reference, and this task gives none"
        )
    if units.logits.shape != units.reference_logits.shape:
        shapes = f"{units.logits.shape[-1]} classes, the reference over {units.reference_logits.shape[-1]}"
        raise SteeringError(f"method ({name}): the target's distributions are over {shapes}")
    teacher = (units.reference_logits.detach().to(units.logits.dtype) / temperature).log_softmax(-1)
    # A class that the reference rules out (−∞) adds 0·log 0 = 0, not the NaN of 0·(−∞).
    teacher = teacher.clamp_(min=torch.finfo(teacher.dtype).min)
    student = (units.logits / temperature).log_softmax(-1)
    # At T the gradient is about T² times shorter: logits are divided by T, and the distributions differ
    # T times less.
    items = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2
    if units.mask is None:
        return items.mean()
    # Over all ranks, as in `mean_loss`: ranks may have different numbers of items that count.
    count = distributed.mean(units.mask.sum().to(items.dtype))
    return items.masked_fill(~units.mask, 0.0).sum() / count


def reference_scale(
    pairs: Pairs, given: float | None, name: str, key: str = "reference_scale"
) -> float | Tensor:
    """The logit scale of the reference: what the options say, else what came with its features, ().

    Raises:
        SteeringError: neither is there.
    """
    if given is not None:
        return given
    if pairs.reference_image is None:
        raise SteeringError(f"method ({name}): needs the reference's features")
    if pairs.reference_scale is None:
        raise SteeringError(
            f"method ({name}): the reference does not tell its logit scale (a model without one, or a cache of an older "
            f"version: delete that); set method.{key}, 100 for published CLIP models"
        )
    return pairs.reference_scale[0].detach().to(pairs.image.dtype)


def require_scale(value: float | None) -> None:
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"reference_scale must be a number > 0, got {value}")


def pairs_divergence(
    pairs: Pairs, scale: Tensor, teacher_scale: float | Tensor, temperature: float = 1.0
) -> Tensor:
    """T²·KL between the reference's and the target's distributions over the other modality, mean of
    both directions, ().

    Args:
        scale: logit scale of the target, (), or one for each anchor, (2, b), images first.
        teacher_scale: that of the reference.

    Source: the distillation term of arXiv 2311.17049 (MobileCLIP), less the teacher's entropy,
    which has no gradient.

    Raises:
        SteeringError: the pairs come without reference features.
    """
    if pairs.reference_image is None or pairs.reference_text is None:
        raise SteeringError("method: distillation needs the reference's features")
    # Every rank computes the divergence of the whole batch, so averaging gradients over the ranks
    # gives its gradient: (31) of docs/theory.md.
    image, text = distributed.gather(pairs.image), distributed.gather(pairs.text)
    reference_image = distributed.gather(pairs.reference_image.detach()).to(image.dtype)
    reference_text = distributed.gather(pairs.reference_text.detach()).to(image.dtype)
    cosines = image @ text.T / temperature  # (B, B), row = image
    teacher = teacher_scale * reference_image @ reference_text.T / temperature
    scales = [scale, scale]
    if scale.ndim:
        scales = [distributed.gather(one)[:, None] for one in scale.to(image.dtype)]  # (B, 1) each
    students = [one * s for one, s in zip(scales, (cosines, cosines.T), strict=True)]
    sides = [
        F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True)
        for s, t in zip(students, (teacher, teacher.T), strict=True)
    ]
    return temperature**2 * (sides[0] + sides[1]) / 2
