"""Knowledge distillation: the reference as a teacher of whole distributions instead of a judge of
losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from steering import distributed
from steering.dro.defaults import default_tau
from steering.errors import SteeringError
from steering.items import Pairs, Units
from steering.methods.erm import Erm, ErmOptions
from steering.methods.registry import Method, Step, register


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


class Distillation(Erm):
    """(1 − a)·mean loss + a·T²·KL(teacher_T ‖ student_T)."""

    def __init__(self, options: DistillationOptions) -> None:
        super().__init__(ErmOptions(options.tau, options.tau_min))
        for name, value, ok, expected in [
            ("weight", options.weight, 0 <= options.weight <= 1, "in [0, 1]"),
            (
                "temperature",
                options.temperature,
                0 < options.temperature < math.inf,
                "a number > 0",
            ),
        ]:
            if not ok:
                raise ValueError(f"{name} must be {expected}, got {value}")
        require_scale(options.reference_scale)
        self.options = options
        self.uses_reference = self.needs_logits = options.weight > 0

    def forward(self, losses: Units | Pairs) -> Step:
        plain = super().forward(losses)
        if not self.uses_reference:
            return plain
        temperature = self.options.temperature
        if isinstance(losses, Pairs):
            scale = reference_scale(losses, self.options.reference_scale, "distillation")
            kd = pairs_divergence(losses, 1 / self.temperature(), scale, temperature)
        else:
            kd = units_divergence(losses, temperature, "distillation")
        a = self.options.weight
        return Step((1 - a) * plain.loss + a * kd, {**plain.metrics, "distillation": kd.detach()})


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
    student = (units.logits / temperature).log_softmax(-1)
    items = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2
    if units.mask is None:
        return items.mean()
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
    pairs: Pairs, scale: Tensor, guide_scale: float | Tensor, temperature: float = 1.0
) -> Tensor:
    """T²·KL between the reference's and the target's distributions over the other modality, mean of
    both directions, ().

    Args:
        scale: logit scale of the target, (), or one for each anchor, (2, b), images first.
        guide_scale: that of the reference.

    Source: the distillation term of arXiv 2311.17049 (MobileCLIP), less the teacher's entropy,
    which has no gradient.

    Raises:
        SteeringError: the pairs come without reference features.
    """
    if pairs.reference_image is None or pairs.reference_text is None:
        raise SteeringError("method: distillation needs the reference's features")
    image, text = distributed.gather(pairs.image), distributed.gather(pairs.text)
    guide_image = distributed.gather(pairs.reference_image.detach()).to(image.dtype)
    guide_text = distributed.gather(pairs.reference_text.detach()).to(image.dtype)
    cosines = image @ text.T / temperature
    teacher = guide_scale * guide_image @ guide_text.T / temperature
    scales = (
        (scale, scale)
        if scale.ndim == 0
        else (distributed.gather(one)[:, None] for one in scale.to(image.dtype))
    )
    students = [one * s for one, s in zip(scales, (cosines, cosines.T), strict=True)]
    sides = [
        F.kl_div(s.log_softmax(-1), t.log_softmax(-1), reduction="batchmean", log_target=True)
        for s, t in zip(students, (teacher, teacher.T), strict=True)
    ]
    return temperature**2 * (sides[0] + sides[1]) / 2


@register("distillation", DistillationOptions, units=("example", "token", "pair"))
def build(options: DistillationOptions, num_examples: int) -> Method:  # noqa: ARG001
    """Knowledge distillation: the reference's distributions as soft labels beside the true ones.

    Formula: (1 − a)·mean_i ℓ_i + a·T²·mean_i KL(reference_T ‖ target_T), softmax at temperature T
    Source: arXiv 1503.02531; pairs: arXiv 2311.17049 (MobileCLIP)
    """
    return Distillation(options)
