"""Temperatures τ of the adversaries: one for all rows, fixed or learned, or a learned one for every row.

The risk of a row is min_τ≥0 τ·(ν + mean φ*(h/τ − ν)) + τR, and its slope in τ is R − D_φ(p), p being the worst-case weights. One
τ for all rows meets the radius on average; a τ of its own lets every row meet it: an anchor with many near negatives gets a
large one (tolerant), an anchor with few gets a small one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from steering.dro.duals import Duals, Layout

BETAS = (0.9, 0.999)
EPS = 1e-8
LARGEST_SLOPE = 5.0


class Temperatures(nn.Module, ABC):
    """What the risk asks of its temperatures.

    Attributes:
        learned: whether they move, which takes their slopes.
    """

    learned: bool

    @abstractmethod
    def visit(self, rows: Tensor, sharded: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """τ of these rows, detached, () or (...), and how to learn from this batch.

        The second takes the slope of each row's risk in τ, (...), and returns what to add to the risks: nothing in value, but
        it may carry the slopes into a parameter. Call it once.
        """

    @abstractmethod
    def read(self, rows: Tensor, sharded: bool) -> Tensor:
        """τ of these rows, detached, () or (...)."""


class Temperature(Temperatures):
    """One τ > 0 for all, fixed or learned through log τ, kept inside [minimum, maximum]."""

    def __init__(self, initial: float, learned: bool, minimum: float = 1e-4, maximum: float = math.inf) -> None:
        super().__init__()
        require_range(initial, minimum, maximum)
        self.learned = learned
        self.bounds = (math.log(minimum), math.log(maximum) if math.isfinite(maximum) else math.inf)
        self.log_tau = nn.Parameter(torch.tensor(math.log(initial), dtype=torch.float32), requires_grad=learned)

    def forward(self) -> Tensor:
        with torch.no_grad():  # a projection, as in the paper: a clamp inside the graph would trap τ at the border
            self.log_tau.clamp_(*self.bounds)
        return self.log_tau.exp()

    def visit(self, rows: Tensor, sharded: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:  # noqa: ARG002
        tau = self()
        return tau.detach(), lambda slope: (tau - tau.detach()) * slope

    def read(self, rows: Tensor, sharded: bool) -> Tensor:  # noqa: ARG002
        return self().detach()


class IndividualTemperatures(Temperatures):
    """A learned τ for every row of the data set, inside [minimum, maximum], moved by an Adam of its own when its row is seen.

    Adam's bias correction counts the visits of the row. Slopes are clamped to ±5, and one that is not finite is passed over.
    Four numbers a row (τ, two moments, visits), float32 whatever the format of the running estimates.

    Args:
        num_rows: in the whole data set.
        initial: τ of a row that has never been seen.
        lr: of Adam, in the unit of τ: about how far a visit moves it.
        layout: how the table is kept.

    Raises:
        ValueError: a temperature out of range.

    Source: arXiv 2305.11965 (iSogCLR) for the idea, arXiv 2407.01445 (FastCLIP v2) for Adam and the clamp. There the bias
    correction counts epochs.
    """

    learned = True

    def __init__(
        self,
        num_rows: int,
        initial: float,
        lr: float,
        minimum: float = 0.01,
        maximum: float = 1.0,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        require_range(initial, minimum, maximum)
        self.initial, self.lr, self.minimum, self.maximum = initial, lr, minimum, maximum
        self.duals = Duals(num_rows, replace(layout or Layout(), dtype="float32"), columns=4)

    @torch.no_grad()
    def _recall(self, rows: Tensor, sharded: bool) -> Tensor:
        """τ, moments and visits, (..., 4)."""
        state, visited = self.duals.read(rows, sharded)
        first = torch.zeros_like(state)
        first[..., 0] = self.initial
        return torch.where(visited[..., None], state, first)

    def visit(self, rows: Tensor, sharded: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        state = self._recall(rows, sharded)
        return state[..., 0], lambda slope: self._learn(rows, sharded, state, slope)

    def read(self, rows: Tensor, sharded: bool) -> Tensor:
        return self._recall(rows, sharded)[..., 0]

    @torch.no_grad()
    def _learn(self, rows: Tensor, sharded: bool, state: Tensor, slope: Tensor) -> Tensor:
        slope = slope.detach()
        g = slope.to(state.dtype).clamp(-LARGEST_SLOPE, LARGEST_SLOPE)
        tau, mean, square, visits = state.unbind(-1)
        visits = visits + 1
        mean = torch.lerp(g, mean, BETAS[0])
        square = torch.lerp(g * g, square, BETAS[1])
        deviation = (square / (1 - BETAS[1] ** visits)).sqrt() + EPS
        tau = (tau - self.lr * mean / (1 - BETAS[0] ** visits) / deviation).clamp(self.minimum, self.maximum)
        after = torch.stack([tau, mean, square, visits], -1)
        self.duals.write(rows, torch.where(slope.isfinite()[..., None], after, state), sharded)
        return torch.zeros_like(slope)


def require_range(initial: float, minimum: float, maximum: float) -> None:
    if not 0 < minimum <= maximum:
        raise ValueError(f"tau_min must lie in (0, {maximum}], got {minimum}")
    if not (minimum <= initial <= maximum and math.isfinite(initial)):
        raise ValueError(f"tau must be a number in [{minimum}, {maximum}], got {initial}")
