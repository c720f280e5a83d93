"""A temperature for every row of a data set, each moved by an Adam of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from steering import distributed
from steering.dro.online.estimator import learning
from steering.dro.online.row_table import Layout, RowTable
from steering.dro.online.temperature import Follow, Temperatures, require_range

BETAS = (0.9, 0.999)
EPS = 1e-8
LARGEST_SLOPE = 5.0


class IndividualTemperatures(Temperatures):
    """A learned τ for every row of the data set, inside [minimum, maximum], moved by an Adam of its
    own when its row is seen.

    Adam's bias correction counts the visits of the row. Slopes are clamped to ±5, and one that is
    not finite is passed over. Four numbers a row (τ, two moments, visits), float32 whatever the
    format of the running estimates.

    Args:
        num_rows: in the whole data set.
        initial: τ of a row that has never been seen.
        lr: of Adam, in the unit of τ: about how far a visit moves it.
        layout: how the table is kept.

    Raises:
        ValueError: a temperature out of range.

    Source: arXiv 2305.11965 (iSogCLR) for the idea, arXiv 2407.01445 (FastCLIP v2) for Adam and the
    clamp. There the bias correction counts epochs.
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
        # Always float32: float16 counts visits to 2048 alone, and squares of small slopes vanish in it.
        # `row_table.merged` finds the table by this name.
        self.duals = RowTable(num_rows, replace(layout or Layout(), dtype="float32"), columns=4)

    @torch.no_grad()
    def _recall(self, rows: Tensor, sharded: bool) -> Tensor:
        """τ, moments and visits, (..., 4)."""
        state, visited = self.duals.read(rows, sharded)
        first = torch.zeros_like(state)
        first[..., 0] = self.initial
        return torch.where(visited[..., None], state, first)

    def visit(
        self,
        rows: Tensor,
        sharded: bool,
        items: Tensor | float | None = None,  # noqa: ARG002
        learn: bool | None = None,
    ) -> tuple[Tensor, Follow]:
        learn, state = learning(self, learn), self._recall(rows, sharded)
        return (
            state[..., 0],
            lambda slope, *_: (
                self._learn(rows, sharded, state, slope) if learn else torch.zeros_like(slope)
            ),
        )

    def read(self, rows: Tensor, sharded: bool) -> Tensor:
        return self._recall(rows, sharded)[..., 0]

    @torch.no_grad()
    def typical(self) -> Tensor:
        """The mean over the rows that have been seen."""
        table = self.duals.table[: self.duals.count]
        seen = table[:, 3] > 0
        # A row may have been written without a visit, when its slope was not finite.
        sums = [table[:, 0].double().masked_fill(~seen, 0.0).sum().item(), float(seen.sum())]
        total, count = distributed.total(sums) if self.duals.ranks > 1 else sums
        return torch.tensor(total / count if count else self.initial)

    @torch.no_grad()
    def _learn(self, rows: Tensor, sharded: bool, state: Tensor, slope: Tensor) -> Tensor:
        slope = slope.detach()
        g = slope.to(state.dtype).clamp(-LARGEST_SLOPE, LARGEST_SLOPE)
        tau, mean, square, visits = state.unbind(-1)
        visits = visits + 1
        # lerp(g, m, β) is β·m + (1 − β)·g.
        mean = torch.lerp(g, mean, BETAS[0])
        square = torch.lerp(g * g, square, BETAS[1])
        deviation = (square / (1 - BETAS[1] ** visits)).sqrt() + EPS
        tau = (tau - self.lr * mean / (1 - BETAS[0] ** visits) / deviation).clamp(
            self.minimum, self.maximum
        )
        after = torch.stack([tau, mean, square, visits], -1)
        self.duals.write(rows, torch.where(slope.isfinite()[..., None], after, state), sharded)
        # Learned already: the risks get no graph of it.
        return torch.zeros_like(slope)
