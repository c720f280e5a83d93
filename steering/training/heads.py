"""Linear heads on frozen features: convex problems, solved to the end in float64.

A frozen backbone's features are stored once (`steering.outputs`), and then a head is fitted in
milliseconds, so a study can fit thousands of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

HeadLoss = Callable[[Tensor, float], Tensor]
"""(logits (n, C), share of the fit that is done) → a loss for each item, (n,)."""


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each feature, (d,): heads see features of one size."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(features: Tensor) -> Scale:
        # A feature that never moves stays 0, instead of becoming 0/0.
        return Scale(features.mean(0), features.std(0).clamp_min(1e-6))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation


@dataclass(frozen=True)
class Head:
    """logits = x·W + b, with W (d, C) and b (C,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight + self.bias


def fit_head(
    features: Tensor,
    loss: HeadLoss,
    classes: int,
    *,
    decay: float = 1e-3,
    start: Head | None = None,
    rounds: int = 1,
    steps: int = 200,
) -> Head:
    """The head of least mean loss plus decay·‖W‖²/2, by L-BFGS with a strong Wolfe search.

    Args:
        features: (n, d), float64.
        loss: of the logits; what depends on the progress is held fixed within a round.
        decay: keeps the problem strongly convex where the loss is convex, and the weights finite
            where the classes can be told apart.
        start: where to begin; None: at zero. A loss that is not convex (generalised cross entropy)
            finds the valley next to it.
        rounds: for losses with targets of their own that move with the model: the progress is
            1/rounds, 2/rounds, ... 1.
        steps: the most of each round.
    """
    d = features.shape[-1]
    weight = (
        torch.zeros(d, classes, dtype=features.dtype) if start is None else start.weight.clone()
    )
    bias = torch.zeros(classes, dtype=features.dtype) if start is None else start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    for number in range(rounds):
        progress = (number + 1) / rounds
        # A new one for each round: the curvature that L-BFGS remembers is that of another function.
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=steps,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            history_size=20,
            line_search_fn="strong_wolfe",
        )

        def closure(progress: float = progress, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(features @ weight + bias, progress).mean()
            value = value + 0.5 * decay * weight.square().sum()
            value.backward()
            return value

        optimizer.step(closure)
    return Head(weight.detach(), bias.detach())
