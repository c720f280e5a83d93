"""Losses for labels that somebody weaker gave: a teacher, a crowd, the model itself.

All take logits, (..., C), and return a loss for each item, (...), so that any method can weigh them.
Shapes: C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RAMP = 0.1  # share of the training over which the confidence loss comes in
ADAPTIVE_RAMP = 0.25


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 − p_y^q)/q: cross entropy for q → 0, and for q = 1 half the L1 distance to the label.

    Its gradient is p_y^q times that of cross entropy, so an item whose label the model finds
    impossible pulls less, and a wrong label does less harm.

    Args:
        logits: (..., C).
        labels: class numbers, int64, (...).
        q: order, in [0, 1]; 0 is cross entropy itself.

    Returns:
        (...), in [0, 1/q].

    Raises:
        ValueError: q out of range.

    Source: arXiv 1805.07836 (generalised cross entropy).
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q must lie in [0, 1], got {q}")
    log_p = -F.cross_entropy(
        logits.movedim(-1, 1) if logits.ndim > 2 else logits, labels, reduction="none"
    )
    if q == 0:
        return -log_p
    return -torch.expm1(q * log_p) / q


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """−Σ_c t_c log p_c for distributions t, (..., C), as labels."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def confidence_loss(logits: Tensor, weak: Tensor, progress: float, strength: float = 0.5) -> Tensor:
    """Cross entropy to a mixture of the weak labels and the model's own hardened answer.

        target = (1 − c)·weak + c·1[model's answer],   c = strength·min(1, progress/0.1)

    The model's answer is hardened by a threshold that gives each class the share that it has in the
    weak labels of the batch. For two classes that is the published rule; for more, the class whose
    probability exceeds its own quantile the most. c rises in a straight line, where the public code
    of the paper jumps from a tenth of it to the whole.

    Args:
        logits: (b, C).
        weak: the teacher's distributions, (b, C).
        progress: share of the training that is done.

    Source: arXiv 2312.09390 (weak-to-strong generalisation), the auxiliary confidence loss.
    """
    c = strength * min(1.0, progress / RAMP)
    hard = F.one_hot(balanced_answers(logits.detach(), weak), logits.shape[-1]).to(logits.dtype)
    return soft_cross_entropy(logits, (1 - c) * weak + c * hard)


def balanced_answers(logits: Tensor, weak: Tensor) -> Tensor:
    """The class of each item, int64, (b,), when each class gets the share that it has in `weak`."""
    # Quantiles are of float32 or float64 alone.
    probability = (logits if logits.dtype == torch.float64 else logits.float()).softmax(-1)
    shares = weak.to(probability).mean(0)
    quantiles = torch.stack(
        [
            torch.quantile(probability[:, c], (1 - shares[c]).clamp(0, 1))
            for c in range(logits.shape[-1])
        ]
    )
    return (probability - quantiles).argmax(-1)


def adaptive_confidence_loss(
    logits: Tensor, weak: Tensor, progress: float, temperature: float = 1.0
) -> Tensor:
    """Each item has weights of its own for the teacher's label and for the model's own answer: more
    for the one that it fits worse, as in the public code of the paper.

        loss = (1 − a)·CE(weak) + a·CE(own),   a = e^{CE(own)/T} / (e^{CE(own)/T} + e^{CE(weak)/T})

    T is the temperature. So a sure model that the teacher contradicts hears the teacher. a is
    detached and comes in over the first quarter of the training.

    Args:
        logits: (b, C).
        weak: the teacher's distributions, (b, C).
        progress: share of the training that is done.

    Source: arXiv 2402.03749 (vision superalignment), adaptive confidence.
    """
    own = F.cross_entropy(logits, logits.detach().argmax(-1), reduction="none")
    teacher = soft_cross_entropy(logits, weak)
    share = torch.softmax(torch.stack([own, teacher]).detach() / temperature, 0)[0]
    a = share * min(1.0, progress / ADAPTIVE_RAMP)
    return (1 - a) * teacher + a * own
