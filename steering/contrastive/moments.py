"""Within-row moments of all negatives' cosines without making a matrix of them: what strength
"auto" asks of a batch of pairs.

With x̃ for features less their mean, row i of S = X Tᵀ deviates from its mean by x_i·t̃_j, column j
by x̃_i·t_j. So sums of products of two models' deviations are quadratic forms of the d × d′ matrix
G = Σ_j t̃_j r̃_jᵀ,  and O(B·d²) in place of O(B²·d):

    Σ_ij (x_i·t̃_j)(y_i·r̃_j) = Σ_i x_iᵀ G y_i           Σ_ij (x̃_i·t_j)(ỹ_i·r_j) = Σ_i x̃_iᵀ G ỹ_i + B (x̃_i·t̄)(ỹ_i·r̄)

x, t are images and texts of one model, y, r of another. The positive of a row is taken out by an
update of rank one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steering import distributed
from steering.items import Pairs


@torch.no_grad()
def pair_moments(pairs: Pairs) -> Tensor:
    """Sums as `Strength.track` wants them, of the negatives of this rank's share, float64, (3,);
    mean over ranks is taken.

    Reference cosines whose spread within the rows is that of rounding count as constant. Takes
    pairs with a reference.
    """
    reference, dtype = pairs.reference(), pairs.image.dtype
    assert reference is not None
    # Deviations of nearly equal cosines: half precision would leave little of them.
    with torch.autocast(pairs.image.device.type, enabled=False):
        target = _Side(pairs.image.detach(), pairs.text.detach())
        guide = _Side(*reference)
        covariance, variance = _products(target, guide), _products(guide, guide)
    b = len(pairs.image)
    # Of this rank's rows and columns: b images, b texts, and the B − 1 negatives of each.
    count = torch.full_like(variance, 2.0 * b * (b * distributed.world_size() - 1))
    found = distributed.mean(torch.stack([covariance, variance, count]))
    # Cosines are at most 1, so their rounding is about ε. Decided by the mean over the ranks, so
    # that all say the same.
    resolved = (found[1] / found[2]).sqrt() > 64 * torch.finfo(dtype).eps
    return torch.stack(
        [torch.where(resolved, found[0], 0.0), torch.where(resolved, found[1], 0.0), found[2]]
    )


class _Side:
    """Features of one model, their means over all ranks, and their deviations from these."""

    def __init__(self, image: Tensor, text: Tensor) -> None:
        self.image, self.text = image, text
        # As many pairs on each rank, so the mean of the ranks' means is that of all.
        self.image_mean, self.text_mean = distributed.mean(
            torch.stack([image.mean(0), text.mean(0)])
        )
        self.images, self.texts = image - self.image_mean, text - self.text_mean


def _products(one: _Side, other: _Side) -> Tensor:
    """Sum of the products of two models' deviations over the negatives of this rank's rows and
    columns, ()."""
    K = distributed.world_size()
    B = len(one.image) * K
    gram = distributed.mean(one.texts.T @ other.texts) * K  # (d, d′)
    # Each is (b,), for this rank's images. The columns' sum runs over all images, too, those of
    # this rank here and those of the others there.
    rows = ((one.image @ gram) * other.image).sum(-1)
    columns = ((one.images @ gram) * other.images).sum(-1)
    columns += B * (one.images @ one.text_mean) * (other.images @ other.text_mean)
    # An item that leaves B of them moves their mean as well, so its product of deviations counts
    # B/(B − 1) times. Item (i, i) is in row i and in column i.
    positives = torch.stack([_dot(side.image, side.texts) for side in (one, other)]).prod(0)
    positives += torch.stack([_dot(side.images, side.text) for side in (one, other)]).prod(0)
    return (rows + columns - positives * B / (B - 1)).double().sum()


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)
