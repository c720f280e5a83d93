"""What the methods share that choose examples before they train on them: RHO-LOSS, its soft form,
JEST."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steering.errors import SteeringError
from steering.items import Units
from steering.methods.erm import Erm, ErmOptions


class Selecting(Erm):
    """Plain training on a share of the drawn examples.

    Args:
        name: of the method, for messages.
        keep: share of the drawn examples to train on, in (0, 1].

    Raises:
        ValueError: `keep` out of range.
    """

    def __init__(self, name: str, keep: float, options: ErmOptions | None = None) -> None:
        super().__init__(options or ErmOptions(), "example" if options is None else "pair")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie in (0, 1], got {keep}")
        self.name, self.keep = name, keep

    def scores(self, losses: Units) -> Tensor:
        """Excess losses of the candidates, (n,), detached.

        Raises:
            SteeringError: the losses are not one row of examples.
        """
        if losses.target.ndim != 1 or losses.mask is not None:
            raise SteeringError(
                f"method ({self.name}): selects examples by one loss each, got {losses.target.shape}"
            )
        return losses.excess().detach()


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest scores, (count,); of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count]


def sampled(log_weights: Tensor, count: int) -> Tensor:
    """`count` different positions, drawn one after another with probability ∝ exp(log_weights)
    among those left.

    By the Gumbel trick: the largest of log w + Gumbel noise is such a draw, and the next largest
    the next one. Weights of any range will do, and zero weights (−∞) are drawn last.  Source: arXiv
    1903.06059, section 2.
    """
    uniform = torch.rand(log_weights.shape, dtype=torch.float64).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    noise = -(-uniform.log()).log()
    return largest(log_weights.double() + noise.to(log_weights.device), count)


def require_temperature(value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be a number > 0, got {value}")
