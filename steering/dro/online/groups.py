"""Groups instead of examples: mean losses of groups, and weights over them that are learned by
mirror ascent.

The exact solver takes groups as it takes examples:
`worst_case(means, ..., prior=shares, mask=counts > 0)`. This file has what training needs beside
it. A mini-batch shows few examples of a group, or none, so group DRO and DoReMi keep the weights q
and let them move a little with each batch.

Legend: b examples (or tokens) of a batch, k groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.estimator import stateful
from steering.items import require_items


def group_means(losses: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean loss and number of items of each group, over the batches of all ranks.

    Args:
        losses: (b,), with or without gradient.
        groups: int64, (b,), in [0, num_groups).

    Returns:
        Means, (k,), zero where a group is absent, and counts, (k,), in the dtype of the losses. The
        same on every rank; averaging parameter gradients over the ranks gives the gradient of one
        process.

    Raises:
        ValueError: shapes differ, or a group out of range.
    """
    if losses.ndim != 1 or groups.shape != losses.shape:
        raise ValueError(
            f"losses and groups must both be (b,), got {tuple(losses.shape)}, {tuple(groups.shape)}"
        )
    _require_groups(groups, num_groups)
    sums = losses.new_zeros(num_groups).index_add(0, groups, losses)
    counts = losses.new_zeros(num_groups).index_add(0, groups, torch.ones_like(losses))
    if distributed.active():
        # Sums, not means: a rank with few items of a group counts by these few. Gathered with
        # gradient, so that (31) of docs/theory.md holds.
        sums, counts = (distributed.gather(x[None]).sum(0) for x in (sums, counts))
    return sums / counts.clamp_min(1), counts


class GroupWeights(nn.Module):
    """Weights q over groups by exponentiated gradient: the primal–dual way to a robust risk.

        q_g ← q_g·exp(η·L_g),  normalised;  q ← (1 − c)·q + c·q⁰                       group DRO; DoReMi with c > 0
        with a penalty τ:  log q ← (log q + η·(L + τ·log q⁰)) / (1 + η·τ),  normalised   resting at q ∝ q⁰·exp(L/τ)

    Without a penalty the adversary goes for the worst group, however slowly. With one, its resting
    point on standing losses is `worst_case(L, "kl", penalty=τ, prior=q⁰)`. An absent group keeps
    its last loss.

    Args:
        num_groups: k.
        step: η ≥ 0; 0 keeps the prior.
        smoothing: c in [0, 1): the least share of q⁰ in every q. DoReMi's is 1e-3.
        penalty: τ ≥ 0 in the unit of the losses; 0 is none.
        prior: q⁰, (k,), > 0, any scale; None is uniform. See `without` for groups that have no
            examples at all.

    Attributes:
        mean: running mean of q over the updates, (k,): DoReMi's data mix, and the iterate that
            theory speaks of.

    Raises:
        ValueError: an argument out of range.

    Source: arXiv 1911.08731 (group DRO), arXiv 2305.10429 (DoReMi); the penalised step is the
    proximal one, our derivation.
    """

    def __init__(
        self,
        num_groups: int,
        *,
        step: float = 1.0,
        smoothing: float = 0.0,
        penalty: float = 0.0,
        prior: Tensor | None = None,
    ) -> None:
        super().__init__()
        for name, value, ok, expected in [
            ("num_groups", num_groups, num_groups >= 1, "at least 1"),
            ("step", step, 0 <= step < math.inf, "a number ≥ 0"),
            ("smoothing", smoothing, 0 <= smoothing < 1, "in [0, 1)"),
            ("penalty", penalty, 0 <= penalty < math.inf, "a number ≥ 0"),
        ]:
            if not ok:
                raise ValueError(f"{name} must be {expected}, got {value}")
        prior = torch.ones(num_groups) if prior is None else torch.as_tensor(prior)
        if prior.shape != (num_groups,) or not (prior > 0).all() or not prior.isfinite().all():
            raise ValueError(f"prior must be {num_groups} finite numbers > 0, got {prior.tolist()}")
        self.log_prior: Tensor
        self.log_q: Tensor
        self.losses: Tensor
        self.mean: Tensor
        self.updates: Tensor
        # In float64 and as logarithms: q moves by many small factors, and may come close to 0.
        log_prior = prior.double().log().log_softmax(0)
        self.register_buffer("log_prior", log_prior)
        self.register_buffer("log_q", log_prior.clone())
        self.register_buffer("losses", torch.zeros(num_groups, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_groups, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.present: Tensor
        # Of the data, no state.
        self.register_buffer("present", torch.ones(num_groups, dtype=torch.bool), persistent=False)
        self.step, self.smoothing, self.penalty = step, smoothing, penalty

    @torch.no_grad()
    def without(self, groups: Sequence[int]) -> None:
        """Take all weight from groups that no example belongs to; q and q⁰ are shared out over the
        others, as they stand.

        Raises:
            ValueError: no such group, or none would be left.
        """
        k = len(self.present)
        if any(not 0 <= group < k for group in groups) or len({*groups}) == k:
            raise ValueError(
                f"groups must be numbers in [0, {k}), not all of them, got {list(groups)}"
            )
        self.present[list(groups)] = False
        for log_weights in (self.log_prior, self.log_q):
            log_weights.copy_(self._shared(log_weights))

    def _shared(self, log_weights: Tensor) -> Tensor:
        """Normalised over the groups that have examples; −∞ at the others."""
        return log_weights.masked_fill(~self.present, -math.inf).log_softmax(0)

    def forward(self, means: Tensor, counts: Tensor) -> Tensor:
        """Σ_g q_g L_g over the groups that are present, (), after an update of q; the gradient is
        that of the losses alone.

        Args:
            means: L, (k,), with gradient: `group_means` of the losses, or of excess losses.
            counts: (k,), > 0 where a group is present.

        Raises:
            ValueError: as `update`.
        """
        q = self.update(means, counts).to(means.dtype)
        # q is detached, by (16); an absent group has no loss to weigh, only one that is remembered.
        return (q * means.masked_fill(counts == 0, 0.0)).sum()

    @stateful
    def update(self, scores: Tensor, counts: Tensor, *, learn: bool) -> Tensor:
        """Take in a batch's group losses and return q, (k,), float64; in eval mode or under
        `no_grad` q without keeping it.

        DoReMi's scores are means of [ℓ − ℓ_ref]_+, clipped for each token before `group_means`.

        Raises:
            ValueError: no group is present, or the score of one that is is not finite (on a GPU
                device-side assertions).
        """
        require_items(counts.sum())
        present = counts > 0
        # One NaN would stay in q.
        _require(scores.isfinite() | ~present, scores, "losses of groups", "finite numbers")
        losses = torch.where(present, scores.detach().double(), self.losses)
        # A penalty of zero times −∞ would be NaN.
        anchor = self.log_prior.masked_fill(~self.present, 0.0)
        # (41) of docs/theory.md; without a penalty it is exponentiated gradient.
        pulled = self.log_q + self.step * (losses + self.penalty * anchor)
        log_q = self._shared(pulled / (1 + self.step * self.penalty))
        if self.smoothing:
            # (1 − c)·q + c·q⁰ of logarithms; where both are −∞, logaddexp gives −∞ and no NaN.
            mixed = self.log_prior + math.log(self.smoothing)
            log_q = torch.logaddexp(log_q + math.log1p(-self.smoothing), mixed)
        if learn:
            self.losses.copy_(losses)
            self.log_q.copy_(log_q)
            self.updates += 1
            self.mean += (log_q.exp() - self.mean) / self.updates
        return log_q.exp()

    def item_weights(self, groups: Tensor, shares: Tensor, q: Tensor | None = None) -> Tensor:
        """q_g over the share of the group in the data, for each item, (b,): weights that make a
        batch look like the mix q.

        Args:
            groups: int64, (b,).
            shares: probability of each group under the sampling, (k,), > 0.
            q: what `update` returned, (k,); None: the weights that are kept.
        """
        _require_groups(groups, len(self.log_q))
        q = self.log_q.exp() if q is None else q
        return (q / shares.double())[groups].to(shares.dtype)


def _require_groups(groups: Tensor, num_groups: int) -> None:
    _require(
        (groups >= 0) & (groups < num_groups), groups, "groups", f"numbers in [0, {num_groups})"
    )


def _require(ok: Tensor, values: Tensor, name: str, expected: str) -> None:
    if ok.device.type != "cpu":
        torch._assert_async(ok.all(), f"{name}: expected {expected}")
    elif not ok.all():
        place = int((~ok).nonzero()[0, 0])
        raise ValueError(f"{name}: {values[place].item()} at position {place}, expected {expected}")
