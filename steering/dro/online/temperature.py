"""Temperatures τ of the adversaries: one for all rows, fixed or learned, or a learned one for every
row.

The risk of a row is min_τ≥0 τ·(ν + mean φ*(h/τ − ν)) + τR, and its slope in τ is R − D_φ(p), p
being the worst-case weights. One τ for all rows meets the radius on average; a τ of its own lets
every row meet it: an anchor with many near negatives gets a large one (tolerant), an anchor with
few gets a small one. Who moves a learned τ: somebody's optimiser (`Temperature`, in our trainer),
or the temperature itself (`SolvedTemperature`, in anybody's loop, and `IndividualTemperatures`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.divergences.base import Divergence, farthest
from steering.dro.online.estimator import learning
from steering.dro.online.row_table import Layout, RowTable

BETAS = (0.9, 0.999)
EPS = 1e-8
LARGEST_SLOPE = 5.0
FIRST_RATE, LAST_RATE = 0.5, 0.02  # of a solved τ, in log τ for a call
LARGEST_LOG = 69.0  # τ = 1e30, where R = 0 would send it


Follow = Callable[..., Tensor]


class Temperatures(nn.Module, ABC):
    """What the risk asks of its temperatures.

    Attributes:
        learned: whether they move, which takes their slopes.
        solves: whether they move by R − D_φ of the normalised weights.
    """

    learned: bool
    solves: bool = False

    @abstractmethod
    def visit(
        self, rows: Tensor, sharded: bool, items: Tensor | None = None, learn: bool | None = None
    ) -> tuple[Tensor, Follow]:
        """τ of these rows, detached, () or (...), and how to learn from this batch.

        The second takes the slope of each row's risk in τ, (...), and R − D_φ of its normalised
        weights, (...), which may be left out: it is the same where ν is exact and ε = 0. It returns
        what to add to the risks: nothing in value, but it may carry the slopes into a parameter.
        Call it once.

        Args:
            items: how many items each row has, () or (...); None: not known.
            learn: whether the state may change, see `steering.dro.online.estimator.learning`.
        """

    @abstractmethod
    def read(self, rows: Tensor, sharded: bool) -> Tensor:
        """τ of these rows, detached, () or (...)."""

    @abstractmethod
    def typical(self) -> Tensor:
        """One τ that stands for all, (), detached; all ranks call it together."""


class Temperature(Temperatures):
    """One τ > 0 for all, fixed or learned through log τ, kept inside [minimum, maximum]."""

    def __init__(
        self, initial: float, learned: bool, minimum: float = 1e-4, maximum: float = math.inf
    ) -> None:
        super().__init__()
        require_range(initial, minimum, maximum)
        self.learned = learned
        self.bounds = (math.log(minimum), math.log(maximum) if math.isfinite(maximum) else math.inf)
        self.log_tau = nn.Parameter(
            torch.tensor(math.log(initial), dtype=torch.float32), requires_grad=learned
        )

    def forward(self) -> Tensor:
        if not learning(self):
            return self.log_tau.clamp(*self.bounds).exp()
        with (
            torch.no_grad()
        ):  # a projection, as in the paper: a clamp inside the graph would trap τ at the border
            self.log_tau.clamp_(*self.bounds)
        return self.log_tau.exp()

    def visit(
        self,
        rows: Tensor,  # noqa: ARG002
        sharded: bool,  # noqa: ARG002
        items: Tensor | None = None,  # noqa: ARG002
        learn: bool | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Follow]:
        tau = self()
        return tau.detach(), lambda slope, *_: (tau - tau.detach()) * slope

    def read(self, rows: Tensor, sharded: bool) -> Tensor:  # noqa: ARG002
        return self().detach()

    def typical(self) -> Tensor:
        return self().detach()


class SolvedTemperature(Temperatures):
    """One τ for all, inside [minimum, maximum], that solves E D_φ(p) = R by itself, a little with
    each training call.

        log τ ← log τ + r_t · clip(c·(D − R), ±1),    c = ½·M / (R·(M − R)),    r_t = max(0.02, ½/√t)

    D is that of the normalised weights of a batch: a running ν that is late does not touch it. M is
    the most that weights on a row's items can spend, and c the slope by which log τ answers to D: D
    falls as τ⁻², and goes flat near M, so that D/(M − D) is nearly a power of τ. No unit and no
    learning rate is left to choose, which is why this is not the Adam of individual temperatures,
    whose step is in the unit of τ. As the step is linear in D, the mean over batches meets the
    radius (Robbins and Monro). R ≥ M sends τ to its minimum. A D that is not finite is passed over.
    All ranks take the mean.

    Source: our derivation; stochastic approximation is Robbins and Monro (1951).

    Args:
        initial: τ before the first call.
        radius: R ≥ 0, unit of the divergence.
        divergence: φ.

    Raises:
        ValueError: a temperature out of range.
    """

    learned = solves = True

    def __init__(
        self,
        initial: float,
        radius: float,
        divergence: Divergence,
        minimum: float = 1e-4,
        maximum: float = math.inf,
    ) -> None:
        super().__init__()
        require_range(initial, minimum, maximum)
        self.radius, self.divergence = radius, divergence
        top = math.log(maximum) if math.isfinite(maximum) else LARGEST_LOG
        self.bounds = (math.log(minimum), max(top, math.log(initial)))
        self.log_tau: Tensor
        self.visits: Tensor
        self.register_buffer("log_tau", torch.tensor(math.log(initial), dtype=torch.float32))
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self) -> Tensor:
        return self.log_tau.clamp(*self.bounds).exp()

    def visit(
        self,
        rows: Tensor,  # noqa: ARG002
        sharded: bool,  # noqa: ARG002
        items: Tensor | None = None,
        learn: bool | None = None,
    ) -> tuple[Tensor, Follow]:
        learn = learning(self, learn)
        return (
            self(),
            lambda slope, *unspent: (
                self._move((*unspent, slope)[0], items) if learn else torch.zeros_like(slope)
            ),
        )

    def read(self, rows: Tensor, sharded: bool) -> Tensor:  # noqa: ARG002
        return self()

    def typical(self) -> Tensor:
        return self()

    @torch.no_grad()
    def _move(self, unspent: Tensor, items: Tensor | None) -> Tensor:
        gap = -distributed.mean(unspent.mean())  # D − R
        most = torch.full_like(gap, math.inf)
        if items is not None:
            most = distributed.mean(farthest(self.divergence, items).mean())
        radius = max(self.radius, 1e-6)
        gain = 0.5 / (radius * (1 - radius / most).clamp_min(0.05))
        move = (gain * gap).clamp(-1, 1)
        # What is rounding moves nothing, nor does a row of one item.
        still = ~gap.isfinite() | (gap.abs() <= 8 * torch.finfo(gap.dtype).eps) | (most <= 0)
        self.visits += 1
        rate = (FIRST_RATE / self.visits.to(move.dtype).sqrt()).clamp_min(LAST_RATE)
        moved = self.log_tau + torch.where(still, 0.0, rate * move).to(self.log_tau.dtype)
        self.log_tau += (
            moved.clamp(*self.bounds) - self.log_tau
        )  # torch.compile loses a copy_ into a buffer of `double()`
        return torch.zeros_like(unspent)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Takes the state of a `Temperature`, too, as older versions wrote it."""
        if prefix + "log_tau" in state_dict:
            state_dict.setdefault(prefix + "visits", torch.zeros_like(self.visits))
        super()._load_from_state_dict(state_dict, prefix, *args)


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
        items: Tensor | None = None,  # noqa: ARG002
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
        sums = [table[:, 0].double().masked_fill(~seen, 0.0).sum().item(), float(seen.sum())]
        total, count = distributed.total(sums) if self.duals.ranks > 1 else sums
        return torch.tensor(total / count if count else self.initial)

    @torch.no_grad()
    def _learn(self, rows: Tensor, sharded: bool, state: Tensor, slope: Tensor) -> Tensor:
        slope = slope.detach()
        g = slope.to(state.dtype).clamp(-LARGEST_SLOPE, LARGEST_SLOPE)
        tau, mean, square, visits = state.unbind(-1)
        visits = visits + 1
        mean = torch.lerp(g, mean, BETAS[0])
        square = torch.lerp(g * g, square, BETAS[1])
        deviation = (square / (1 - BETAS[1] ** visits)).sqrt() + EPS
        tau = (tau - self.lr * mean / (1 - BETAS[0] ** visits) / deviation).clamp(
            self.minimum, self.maximum
        )
        after = torch.stack([tau, mean, square, visits], -1)
        self.duals.write(rows, torch.where(slope.isfinite()[..., None], after, state), sharded)
        return torch.zeros_like(slope)


def require_range(initial: float, minimum: float, maximum: float) -> None:
    if not 0 < minimum <= maximum:
        raise ValueError(f"tau_min must lie in (0, {maximum}], got {minimum}")
    if not (minimum <= initial <= maximum and math.isfinite(initial)):
        raise ValueError(f"tau must be a number in [{minimum}, {maximum}], got {initial}")
