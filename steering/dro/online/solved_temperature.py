"""A temperature that finds by itself where the weights spend the radius: for loops that have no
optimiser to give it to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from steering import distributed
from steering.dro.divergences.base import Divergence, farthest
from steering.dro.online.estimator import learning
from steering.dro.online.temperature import Follow, Temperatures, require_range

FIRST_RATE, LAST_RATE = 0.5, 0.02  # of a solved τ, in log τ for a call
LARGEST_LOG = 69.0  # τ = 1e30, where R = 0 would send it


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
        # An initial τ beyond the largest may stay where it is; log τ must be a number in any case.
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
        items: Tensor | float | None = None,
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
    def _move(self, unspent: Tensor, items: Tensor | float | None) -> Tensor:
        gap = -distributed.mean(unspent.mean())  # D − R
        most = torch.full_like(gap, math.inf)
        if items is not None:
            items = torch.as_tensor(items, dtype=gap.dtype, device=gap.device)
            most = distributed.mean(farthest(self.divergence, items).mean())
        # Bounds of the gain: R = 0 would make it infinite, and so would R near M.
        radius = max(self.radius, 1e-6)
        gain = 0.5 / (radius * (1 - radius / most).clamp_min(0.05))
        # One batch moves log τ by the rate at most, whatever it has met.
        move = (gain * gap).clamp(-1, 1)
        # What is rounding moves nothing, nor does a row of one item.
        still = ~gap.isfinite() | (gap.abs() <= 8 * torch.finfo(gap.dtype).eps) | (most <= 0)
        self.visits += 1
        rate = (FIRST_RATE / self.visits.to(move.dtype).sqrt()).clamp_min(LAST_RATE)
        moved = self.log_tau + torch.where(still, 0.0, rate * move).to(self.log_tau.dtype)
        # Not copy_: torch.compile loses it in a buffer of `double()`.
        self.log_tau += moved.clamp(*self.bounds) - self.log_tau
        return torch.zeros_like(unspent)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Takes the state of a `Temperature`, too, as older versions wrote it."""
        if prefix + "log_tau" in state_dict:
            state_dict.setdefault(prefix + "visits", torch.zeros_like(self.visits))
        super()._load_from_state_dict(state_dict, prefix, *args)
