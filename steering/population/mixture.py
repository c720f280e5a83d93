"""A mixture of models as one module: a teacher, or a model that is served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MixtureOfProbabilities(nn.Module):
    """log Σ_m w_m·softmax(logits_m): scores of a mixture, whose softmax is the mixture itself.

    Args:
        members: modules of equal inputs, that give logits (..., C).
        weights: one for each member, at least 0; they are normalised. None: equal ones.

    Raises:
        ValueError: no members, or weights that are no weights of them.
    """

    log_weights: Tensor

    def __init__(self, members: Sequence[nn.Module], weights: Tensor | None = None) -> None:
        super().__init__()
        w = torch.ones(len(members)) if weights is None else weights.detach().float()
        sound = w.shape == (len(members),) and bool((w >= 0).all())
        if not members or not sound or not 0 < float(w.sum()) < math.inf:
            raise ValueError(
                f"weights must be {len(members)} numbers ≥ 0, one for each member, got {w.tolist()}"
            )
        # A member without weight would cost a forward pass and say nothing.
        used = [number for number in range(len(members)) if w[number] > 0]
        self.members = nn.ModuleList([members[number] for number in used])
        self.register_buffer("log_weights", (w[used] / w.sum()).log())

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(..., C), float32; one member after another, so that two distributions are in memory."""
        found: Tensor | None = None
        for member, log_weight in zip(self.members, self.log_weights, strict=True):
            mine = member(*args, **kwargs).float().log_softmax(-1) + log_weight
            found = mine if found is None else torch.logaddexp(found, mine)
        assert found is not None
        return found
