"""Contrastive losses written as their equations: dense, readable, the oracle for anything faster.

Legend: b anchors of this rank, B pairs over all ranks; direction 0 = image anchors, 1 = text
anchors. S_ij is the cosine of image i and text j. Memory is O(b·B).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from steering import distributed
from steering.items import Pairs, Units


def similarities(image: Tensor, text: Tensor) -> Tensor:
    """Cosines seen from this rank's anchors, (2, b, B): [0, i, j] = S_ij and [1, i, j] = S_ji."""
    # Cosines divided by τ ≈ 0.01 need all of float32.
    with torch.autocast(image.device.type, enabled=False):
        return torch.stack([image @ distributed.gather(text).T, text @ distributed.gather(image).T])


def own_columns(b: int, device: torch.device) -> Tensor:
    """Column of each local anchor's positive among the gathered pairs, (b,)."""
    return distributed.rank() * b + torch.arange(b, device=device)


def pairwise_losses(image: Tensor, text: Tensor) -> Tensor:
    """ℓ_1(i, j) = S_ij − S_ii and ℓ_2(i, j) = S_ji − S_ii, (2, b, B); zero on the positive itself.

    Source: arXiv 2505.06699, the loss of one negative (in units of the cosine; the temperature
    divides it later).
    """
    s = similarities(image, text)  # (2, b, B)
    own = own_columns(len(image), image.device)
    positive = s.gather(-1, own.expand(2, -1).unsqueeze(-1))  # (2, b, 1)
    return s - positive


def negatives(pairs: Pairs) -> Units:
    """Loss items of the global contrastive risk: each anchor's adversary reweights its B − 1
    negatives.

    Returns:
        Units of shape (2, b, B); the positive is masked out; row key 2·index + direction; rows are
        split over the ranks.

    Raises:
        ValueError: B < 2, an anchor without negatives.
    """
    b, device = len(pairs.index), pairs.image.device
    target = pairwise_losses(pairs.image, pairs.text)
    if target.shape[-1] < 2:
        raise ValueError(
            f"a contrastive batch needs at least 2 pairs over all ranks, got {target.shape[-1]}"
        )
    guide = pairs.reference()
    reference = None if guide is None else pairwise_losses(*guide)
    # The positive's own loss is 0. Left in, it would add e⁰/B to û, a margin that changes with the
    # batch (docs/theory.md, below (26)).
    mask = torch.ones(target.shape[1:], dtype=torch.bool, device=device)
    mask[torch.arange(b, device=device), own_columns(b, device)] = False
    rows = 2 * pairs.index + torch.arange(2, device=device)[:, None]  # (2, b)
    return Units(target, reference, rows, mask.expand_as(target), sharded=distributed.active())


def info_nce(image: Tensor, text: Tensor, tau: Tensor | float) -> Tensor:
    """Cross-entropy of each anchor's positive among all pairs, both directions, (2, b), nats; plain
    CLIP is its mean.

    Args:
        image, text: unit-norm features, (b, d).
        tau: temperature; open_clip's logit scale is 1/τ.
    """
    logits = similarities(image, text) / tau  # (2, b, B)
    own = own_columns(len(image), image.device)
    # Torch wants the candidates on the second axis: (2, B, b).
    return F.cross_entropy(logits.movedim(-1, 1), own.expand(2, -1), reduction="none")
