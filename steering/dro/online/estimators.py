"""Dual variables from mini-batches: one running ν per adversary, four ways to move it.

For a row of scores s = h/τ the worst case of a penalty is  min_ν ν + mean φ*(s − ν)  with ratios t
= φ*′(s − ν). A mini-batch sees some of the items; what differs is how much of ν it believes:

    batch            ν solves the batch. No memory; biased, the more the smaller the batch
    moving_average   e^ν ← (1 − γ) e^ν + γ mean e^s                                  KL   SogCLR, FastCLIP, DRRho-CLIP
    mirror_descent   the same with γ = σ(log α + ν), large while ν is too large      KL   SCENT
    proximal         ν ← argmin ν + mean φ*(s − ν) + (ν − ν′)²/2λ                    any

The state is in log space for KL (ν = log u), keyed by row, with an explicit "never visited"; a
first visit takes the batch. On every rank the table is whole and the same, unless a `Layout` says
otherwise. `specs.py` has the four as parts that a config chooses.  Legend: (...) rows, n items in a row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steering.dro.divergences.base import Divergence
from steering.dro.online.estimator import (
    Estimator,
    Remembering,
    of_all_ranks,
    picked,
    require_rows,
    stateful,
    store,
)
from steering.dro.online.row_table import Layout
from steering.dro.online.steps import mirror_step, proximal_step


class MiniBatchDual(Estimator):
    """ν of the batch alone: what a softmax over the batch does. Biased by about (κ − 1)/2m;
    docs/theory.md, (18)."""

    needs_scores = False

    def __init__(self, divergence: Divergence) -> None:
        super().__init__()
        self.divergence = divergence

    def start_epoch(self, epoch: int) -> None: ...

    def track(
        self,
        rows: Tensor,  # noqa: ARG002
        log_g: Tensor,
        sharded: bool = False,  # noqa: ARG002
        *,
        learn: bool | None = None,  # noqa: ARG002
    ) -> Tensor:
        return log_g

    @stateful
    def forward(
        self,
        rows: Tensor,  # noqa: ARG002
        scores: Tensor,
        mask: Tensor | None,
        sharded: bool = False,  # noqa: ARG002
        *,
        learn: bool,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        # Written out: the general way waits for the device.
        if self.divergence.has_log_means:
            nu, scores = log_mean_exp(scores, mask)
            return (scores - nu[..., None]).exp(), nu
        return self.divergence.tilt(scores, all_of(scores, mask))


class _LogMeanDual(Remembering):
    """KL: the scores of a row count by one number alone, log mean e^s. How ν moves by it is `track`."""

    @stateful
    def forward(
        self,
        rows: Tensor,
        scores: Tensor,
        mask: Tensor | None,
        sharded: bool = False,
        *,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        log_g, scores = log_mean_exp(scores, mask)
        nu = self.track(rows, log_g, sharded, learn=learn)
        return (scores - nu[..., None]).exp(), nu


class MovingAverageDual(_LogMeanDual):
    """log u of every row of the data set: u ← (1−γ)·u + γ·g, and u ← g on the first visit, in log
    space (KL).

    A flag per row says "never visited": zero, and any other number, is a legal value of log u.

    Args:
        num_rows: adversaries in the whole data set: 1 for a plain batch of examples, 2n for n pairs
            in two directions.
        gamma: final rate in (0, 1]; 1 forgets the past.
        decay_epochs: epochs of the cosine from 1 to `gamma`; 0 uses `gamma` from the start.
        layout: how the table is kept.

    Source: arXiv 2407.01445 (FastCLIP).
    """

    log_u: Tensor

    def __init__(
        self, num_rows: int, gamma: float = 1.0, decay_epochs: int = 0, layout: Layout | None = None
    ) -> None:
        super().__init__(num_rows, "log_u", layout)
        self.final, self.decay_epochs = gamma, decay_epochs
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        self.gamma = gamma_schedule(epoch, self.final, self.decay_epochs)

    def track(
        self, rows: Tensor, log_g: Tensor, sharded: bool = False, *, learn: bool | None = None
    ) -> Tensor:
        found: Tensor = self.update(rows, log_g, self.gamma, sharded, learn=learn)
        return found

    @stateful
    def update(
        self, rows: Tensor, log_g: Tensor, gamma: float, sharded: bool = False, *, learn: bool
    ) -> Tensor:
        """Take in one batch's estimates and return the new log u of its rows, in the dtype of
        `log_g`.

        Args:
            rows: keys, as in `forward`.
            log_g: log of the batch mean of exp(h/τ), (...).
            gamma: rate in (0, 1].
            sharded: as in `forward`.
        """
        if not 0 < gamma <= 1:
            raise ValueError(f"gamma must lie in (0, 1], got {gamma}")
        # What is kept is not asked for: a table in parts would have to be read.
        if gamma == 1:
            if learn:
                self.remember(rows, log_g, sharded)
            return log_g
        # (19) of docs/theory.md in logarithms, as e^(h/τ) leaves float32 beyond h/τ = 88.
        share, rest = math.log(gamma), math.log1p(-gamma)
        return self.moved(
            rows, log_g, lambda log_u: torch.logaddexp(log_u + rest, log_g + share), sharded, learn
        )


class MirrorDescentDual(_LogMeanDual):
    """ν ← ν′ + log(1 + α e^s) − log(1 + α e^ν′) with e^s the batch mean of exp(h/τ): stochastic
    proximal mirror descent (KL).

    It is a moving average of u = e^ν whose rate is σ(log α + ν′): a row whose ν is too large moves
    fast, one whose ν is too small moves slowly, since the Bregman divergence of e^−ν is steep
    there. α → ∞ is the batch, α → 0 keeps ν′.

    Args:
        num_rows: as in `MovingAverageDual`.
        log_alpha: log of the step size α, in the unit of −ν: log α = −ν gives the rate 1/2.

    Source: arXiv 2602.02877 (SCENT), closed form of the dual step.
    """

    nu: Tensor

    def __init__(self, num_rows: int, log_alpha: float = 0.0, layout: Layout | None = None) -> None:
        super().__init__(num_rows, "nu", layout)
        self.log_alpha = log_alpha

    def start_epoch(self, epoch: int) -> None: ...

    @stateful
    def track(self, rows: Tensor, log_g: Tensor, sharded: bool = False, *, learn: bool) -> Tensor:
        return self.moved(
            rows, log_g, lambda nu: mirror_step(nu, log_g, self.log_alpha), sharded, learn
        )


class ProximalDual(Estimator):
    """ν ← argmin_ν ν + mean φ*(s − ν) + (ν − ν′)²/(2λ), λ = step/√visits: stochastic proximal
    point, for any φ.

    Joint minimisation over the model and ν is free of the mini-batch's bias, as ν stands outside of
    every expectation but linearly inside. The proximal step, unlike a gradient step on ν, is stable
    for any λ: λ → ∞ is the batch. At the kink of CVaR, the items at ν get the ratio that the
    optimality condition leaves them.

    Args:
        num_rows: as in `MovingAverageDual`.
        divergence: φ; not total variation, whose φ* is a wall.
        step: λ of the second visit, in units of τ (for CVaR in the unit of the losses).

    Source: opt4ml.org, section 2.2, for the joint problem; the proximal step is our choice.
    """

    def __init__(self, num_rows: int, divergence: Divergence, step: float = 1.0) -> None:
        super().__init__()
        require_rows(num_rows)
        self.nu: Tensor
        self.visits: Tensor
        self.register_buffer("nu", torch.zeros(num_rows))
        self.register_buffer("visits", torch.zeros(num_rows, dtype=torch.int32))
        self.divergence, self.step = divergence, step

    def start_epoch(self, epoch: int) -> None: ...

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        self.nu.mul_(factor)

    @stateful
    def forward(
        self,
        rows: Tensor,
        scores: Tensor,
        mask: Tensor | None,
        sharded: bool = False,
        *,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        visits = picked(self.visits, rows)
        # Rows on their first visit run along, and what they get is replaced below.
        step = self.step / visits.clamp_min(1).to(scores.dtype).sqrt()
        nu = picked(self.nu, rows).to(scores.dtype)
        t, new = proximal_step(self.divergence, scores, mask, nu, step)
        # Whether any row is new is not asked of a GPU, which would have to wait.
        if scores.device.type != "cpu" or not (visits > 0).all():
            first, first_nu = self.divergence.tilt(scores, all_of(scores, mask))
            t, new = (
                torch.where((visits > 0)[..., None], t, first),
                torch.where(visits > 0, new, first_nu),
            )
        if learn:
            # Each row comes at most once in a batch, so adding to a copy counts every visit.
            all_rows, all_new = of_all_ranks(rows, new, sharded)
            store(self.nu, all_rows, all_new.to(self.nu.dtype))
            store(self.visits, all_rows, self.visits[all_rows] + 1)
        return t, new


def gamma_schedule(epoch: int, final: float, decay_epochs: int) -> float:
    """Rate of the moving average: γ_min + (1 − γ_min)(1 + cos(πe/E))/2, γ_min from epoch E on.

    Epoch 0 gives 1: a young model's history is worthless. Source: arXiv 2407.01445 (FastCLIP), γ
    schedule.
    """
    if epoch >= decay_epochs:
        return final
    return final + (1 - final) * (1 + math.cos(math.pi * epoch / decay_epochs)) / 2


def log_mean_exp(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """log mean exp(s) over the items that count, (...), and the scores with −∞ elsewhere."""
    if mask is None:
        return scores.logsumexp(-1) - math.log(scores.shape[-1]), scores
    scores = scores.masked_fill(~mask, -math.inf)
    return scores.logsumexp(-1) - mask.sum(-1).to(scores.dtype).log(), scores


def all_of(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The mask, or one that is True throughout."""
    return torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
