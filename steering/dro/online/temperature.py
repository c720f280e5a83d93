"""Temperatures τ of the adversaries: one for all rows, fixed or learned, or a learned one for every
row.

The risk of a row is min_τ≥0 τ·(ν + mean φ*(h/τ − ν)) + τR, and its slope in τ is R − D_φ(p), p
being the worst-case weights. One τ for all rows meets the radius on average; a τ of its own lets
every row meet it: an anchor with many near negatives gets a large one (tolerant), an anchor with
few gets a small one. Who moves a learned τ: somebody's optimiser (`Temperature`, in our trainer),
or the temperature itself (`SolvedTemperature`, in anybody's loop, and `IndividualTemperatures`);
`temperature_of` tells which.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steering.dro.online.estimator import learning

Follow = Callable[..., Tensor]


class Temperatures(nn.Module, ABC):
    """What the risk asks of its temperatures.

    Attributes:
        learned: whether they move, which takes their slopes.
        solves: whether they move by R − D_φ of the normalised weights.
        infinite: whether τ = ∞: the adversary stays at its prior.
    """

    learned: bool
    solves: bool = False
    infinite: bool = False

    @abstractmethod
    def visit(
        self,
        rows: Tensor,
        sharded: bool,
        items: Tensor | float | None = None,
        learn: bool | None = None,
    ) -> tuple[Tensor, Follow]:
        """τ of these rows, detached, () or (...), and how to learn from this batch.

        The second takes the slope of each row's risk in τ, (...), and R − D_φ of its normalised
        weights, (...), which may be left out: it is the same where ν is exact and ε = 0. It returns
        what to add to the risks: nothing in value, but it may carry the slopes into a parameter.
        Call it once.

        Args:
            items: how many items each row has, a number or (...); None: not known.
            learn: whether the state may change, see `steering.dro.online.estimator.learning`.
        """

    @abstractmethod
    def read(self, rows: Tensor, sharded: bool) -> Tensor:
        """τ of these rows, detached, () or (...)."""

    @abstractmethod
    def typical(self) -> Tensor:
        """One τ that stands for all, (), detached; all ranks call it together."""

    def at(self, tau: float) -> None:
        """Take the value of a schedule; ValueError unless it is a number > 0."""
        raise ValueError(f"tau moves by itself here, got a schedule's {tau}")


class Temperature(Temperatures):
    """One τ > 0 for all, fixed or learned through log τ, kept inside [minimum, maximum]."""

    def __init__(
        self, initial: float, learned: bool, minimum: float = 1e-4, maximum: float = math.inf
    ) -> None:
        super().__init__()
        require_range(initial, minimum, maximum, finite=learned)
        self.learned, self.infinite = learned, initial == math.inf
        self.bounds = (math.log(minimum), math.log(maximum) if math.isfinite(maximum) else math.inf)
        # Its logarithm: whatever step an optimiser takes, τ stays above 0.
        self.log_tau = nn.Parameter(
            torch.tensor(math.log(initial), dtype=torch.float32), requires_grad=learned
        )

    def forward(self) -> Tensor:
        if not self.learned:
            return self.log_tau.exp()
        if not learning(self):
            return self.log_tau.clamp(*self.bounds).exp()
        # A projection, as in the paper: a clamp inside the graph would trap τ at the border.
        with torch.no_grad():
            self.log_tau.clamp_(*self.bounds)
        return self.log_tau.exp()

    @torch.no_grad()
    def at(self, tau: float) -> None:
        # At ∞ the adversary is another formula, which is chosen when the risk is built.
        if not 0 < tau <= math.inf or (tau == math.inf) != self.infinite:
            raise ValueError(f"tau must be a number > 0 all the way, or ∞ all the way, got {tau}")
        self.log_tau.fill_(math.log(tau))

    def visit(
        self,
        rows: Tensor,  # noqa: ARG002
        sharded: bool,  # noqa: ARG002
        items: Tensor | float | None = None,  # noqa: ARG002
        learn: bool | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Follow]:
        tau = self()
        # No graph to leave, and nobody asks how to follow.
        if not self.learned:
            return tau, _stay
        # Zero in value. Its gradient in log τ is τ·slope, whatever the risk does with a detached τ.
        return tau.detach(), lambda slope, *_: (tau - tau.detach()) * slope

    def read(self, rows: Tensor, sharded: bool) -> Tensor:  # noqa: ARG002
        return self().detach()

    def typical(self) -> Tensor:
        return self().detach()


def _stay(slope: Tensor, *_: Tensor) -> Tensor:
    return torch.zeros_like(slope)


def require_range(initial: float, minimum: float, maximum: float, *, finite: bool = True) -> None:
    if not 0 < minimum <= maximum:
        raise ValueError(f"tau_min must lie in (0, {maximum}], got {minimum}")
    if not minimum <= initial <= maximum or (finite and not math.isfinite(initial)):
        raise ValueError(f"tau must be a number in [{minimum}, {maximum}], got {initial}")
