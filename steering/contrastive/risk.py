"""Risk of every row of a batch, whatever its loss items are: pairs in blocks where that can be, the
dense way elsewhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor

from steering import distributed
from steering.contrastive.blocked import DEFAULT_BUDGET, Sums, sums
from steering.contrastive.global_risk import with_gradient
from steering.contrastive.moments import pair_moments
from steering.contrastive.naive import info_nce, negatives
from steering.contrastive.problem import NOTHING, Features, Problem, Scales
from steering.dro.online.estimators import log_mean_exp
from steering.dro.online.metrics import Metrics
from steering.dro.online.stochastic import StochasticRisk
from steering.dro.online.told import spent_metrics
from steering.items import LossItems, Pairs, Units, gathered, own_part


@dataclass(frozen=True)
class RowRisks:
    """Risks of the rows of a batch.

    Attributes:
        risks: (...), with gradient; for pairs (2, b), image anchors first.
        metrics: detached scalars for a log, computed when they are read.
        weights: of this process's items, detached: (..., n), or for pairs, whose B² weights are
            never written down, their sum over each anchor's negatives, (2, b).
        sharded: whether the rows differ between the ranks.
    """

    risks: Tensor
    metrics: Metrics
    weights: Tensor
    sharded: bool = False


def row_risks(risk: StochasticRisk, items: LossItems) -> RowRisks:
    """The risk of each row of loss items; the running estimates of the rows are updated.

    Args:
        risk: whose adversary weighs the items of a row.
        items: `Units`, of which plain batches are gathered over the ranks, or `Pairs`, whose rows
            are the anchors.

    Raises:
        ValueError: fewer than 2 pairs over all ranks.
        TypeError: items of a kind that nobody knows.
    """
    return _row_risks(items, risk)


@singledispatch
def _row_risks(items: object, risk: StochasticRisk) -> RowRisks:  # noqa: ARG001
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_row_risks.register
def _(items: Units, risk: StochasticRisk) -> RowRisks:
    units = gathered(items)
    risks, weights, metrics = risk.per_row(units)
    return RowRisks(risks, metrics, own_part(weights, items.target.shape[-1]), units.sharded)


@_row_risks.register
def _(items: Pairs, risk: StochasticRisk) -> RowRisks:
    return _anchor_rows(risk, items, DEFAULT_BUDGET)


def reference_risks(risk: StochasticRisk, items: LossItems) -> Tensor | None:
    """The same risk of the reference's own losses on the same items, at the target's temperature,
    (...), without gradient; None without a reference. For KL; it has no history, as the reference
    stands still."""
    return _reference_risks(items, risk)


@singledispatch
def _reference_risks(items: object, risk: StochasticRisk) -> Tensor | None:  # noqa: ARG001
    raise TypeError(f"items must be Units or Pairs, got {type(items).__name__}")


@_reference_risks.register
@torch.no_grad()
def _(items: Units, risk: StochasticRisk) -> Tensor | None:
    units = gathered(items)
    if units.reference is None:
        return None
    # Read, not visited: the target's own step moves τ, and that one has yet to come.
    tau = risk.temperature.read(units.rows, units.sharded)
    log_means, _ = log_mean_exp(units.reference / tau[..., None], units.mask)
    return risk.standing(tau, log_means)


@_reference_risks.register
@torch.no_grad()
def _(items: Pairs, risk: StochasticRisk) -> Tensor | None:
    reference = items.reference()
    if reference is None:
        return None
    tau = risk.temperature.read(anchor_keys(items), distributed.active())
    # The reference stands in the target's place, and a strength of 0 leaves none beside it.
    found = sums(_problem(Pairs(*reference, items.index), tau, 0.0))
    return risk.standing(tau, found.log_means)


def anchor_risks(
    risk: StochasticRisk, pairs: Pairs, budget: int = DEFAULT_BUDGET
) -> tuple[Tensor, Metrics]:
    """Risk of each of this rank's anchors, (2, b), image anchors first, with gradient; and scalars
    for a log.

    Losses go in blocks, in memory linear in the batch (`blocked.py`), unless all B² of them are
    needed at once (`naive.py`): see `needs_all_losses`.

    Args:
        risk: its running estimates are updated; row key 2·index + direction.
        pairs: features of this rank.
        budget: bytes that blocks of exponentials may take to be kept for the backward pass; the
            others are computed again.

    Raises:
        ValueError: fewer than 2 pairs over all ranks.
    """
    found = _anchor_rows(risk, pairs, budget)
    return found.risks, found.metrics


def _anchor_rows(risk: StochasticRisk, pairs: Pairs, budget: int) -> RowRisks:
    ranks = distributed.active()
    if needs_all_losses(risk):
        risks, weights, metrics = risk.per_row(negatives(pairs))
        return RowRisks(risks, metrics, weights.sum(-1), ranks)
    # (26): an anchor's mean is over the other pairs of all ranks.
    others = len(pairs.image) * distributed.world_size() - 1
    # Not computed here: only "auto" asks for them, and they take products and exchanges.
    moments = None if pairs.reference_image is None else lambda: pair_moments(pairs)
    visit = risk.begin(anchor_keys(pairs), float(others), moments, pairs.image, ranks)
    # After `begin`, as the sums are in units of τ and of losses with this α.
    problem = _problem(pairs, visit.tau, visit.alpha, budget, risk.temperature.learned)
    found = sums(problem)
    log_means, means = found.log_means, found.means
    # Between the passes: û moves the running u, (19), and pass 2 weighs by this u, (20). It is not
    # differentiated, so the sums are taken without a graph.
    height = with_gradient(pairs, problem, found, risk.heights(visit, log_means))
    risks = risk.finish(visit, height, lambda: risk.log_slopes(height.detach(), log_means, means))
    sampled, shown = _sampled_metrics(problem, found)
    if visit.learn:
        risk.watch.size(others)
        if risk.watch.wants(others):
            share = sampled["effective_sample_share"]
            risk.watch.share(share, others, "negatives of each anchor")
    fixed = height.detach()
    plane = risk.plane_metrics(visit, fixed)

    # What an anchor's negatives weigh together, û/(ε + u): (28).
    pull = (log_means - fixed).exp()

    def make() -> dict[str, Tensor]:
        spent = spent_metrics(shown, float(others))
        return {**sampled, **spent, "weight_sum": pull.mean(), **plane}

    return RowRisks(risks, Metrics(make), pull, ranks)


def needs_all_losses(risk: StochasticRisk) -> bool:
    """Whether a batch of pairs must be written down, B² losses: other divergences than KL, a prior
    and τ = ∞ ask for more than log means."""
    log_means_do = risk.divergence.has_log_means and not risk.estimator.needs_scores
    return not log_means_do or risk.adversary.has_prior or risk.temperature.infinite


def info_nce_losses(pairs: Pairs, tau: Tensor, budget: int = DEFAULT_BUDGET) -> Tensor:
    """`naive.info_nce` in blocks, (2, b), with gradient in the features and in τ, ().

    A positive among the candidates is a margin: InfoNCE is log(B − 1) + log(ε + û) with ε = 1/(B −
    1), docs/theory.md, (27).
    """
    others = len(pairs.image) * distributed.world_size() - 1
    # A softmax over one candidate: its loss is 0, where log(B − 1) would be −∞.
    if others == 0:
        return info_nce(pairs.image, pairs.text, tau)
    # No graph leads from the sums to τ; its slope is put in below.
    problem = _problem(pairs, tau.detach(), 0.0, budget, tau.requires_grad)
    found = sums(problem)
    margin = pairs.image.new_full((), -math.log(others))
    height = with_gradient(pairs, problem, found, torch.logaddexp(found.log_means, margin))
    losses = height + math.log(others)
    if not tau.requires_grad:
        return losses
    # ∂/∂τ log(ε + û) = −û/(ε + û)·E_p[h/τ]/τ with p the normalised weights, as û is a mean of
    # e^(h/τ). Zero is added to the value, and this to the gradient.
    slope = -(found.log_means - height.detach()).exp() * found.means / tau.detach()
    return losses + (tau - tau.detach()) * slope


def anchor_keys(pairs: Pairs) -> Tensor:
    """Row keys of the anchors, (2, b)."""
    return 2 * pairs.index + torch.arange(2, device=pairs.index.device)[:, None]


def _problem(
    pairs: Pairs,
    tau: Tensor,
    strength: float | Tensor,
    budget: int = 0,
    with_means: bool = False,
) -> Problem:
    """The batch as the passes want it: features detached, those of texts gathered over the ranks."""
    if len(pairs.image) * distributed.world_size() < 2:
        raise ValueError(
            f"a contrastive batch needs at least 2 pairs over all ranks, got {len(pairs.image)}"
        )
    image, dtype = pairs.image.detach().contiguous(), pairs.image.dtype
    text = distributed.gather(pairs.text.detach().contiguous())
    tau = tau.to(dtype)
    # The rows of the problem are this rank's images, its columns the texts of all ranks.
    taus = (tau, tau) if tau.ndim == 0 else (tau[0], distributed.gather(tau[1]))
    # Nothing is kept for a backward pass that cannot come.
    needed = torch.is_grad_enabled() and (pairs.image.requires_grad or pairs.text.requires_grad)
    # Which path is safe is asked of the numbers, and asking would make a GPU wait: there two
    # exponentials are always taken.
    single = image.device.type == "cpu"
    features, scales = Features(image, text), Scales(*taus)
    # A strength in a tensor is not asked for its value, as that could make a GPU wait.
    ignored = not isinstance(strength, Tensor) and strength == 0.0
    if not ignored and pairs.reference_image is not None and pairs.reference_text is not None:
        guide_image = pairs.reference_image.detach().to(dtype)
        # Widened after the exchange: half travels as half.
        guide_text = distributed.gather(pairs.reference_text.detach().contiguous()).to(dtype)
        features = Features(image, text, guide_image, guide_text)
        scales = Scales(*taus, strength)
    return Problem(features, scales, budget if needed else 0, with_means, single)


@torch.no_grad()
def _sampled_metrics(problem: Problem, found: Sums) -> tuple[dict[str, Tensor], Tensor]:
    """Mean and variance of h and the effective sample share, of the first image anchors, and their
    weights, (m, B): all would be two more passes."""
    scales = problem.scales
    d, positive = found.sample.in_nats(scales)
    weights = d.softmax(-1)
    # A positive weighs exp(NOTHING) = 0, so B − 1 items share the weight.
    share = 1 / weights.square().sum(-1) / (d.shape[-1] - 1)
    # No D comes near NOTHING. Every row has one positive.
    negative, count = found.sample.rows > NOTHING / 2, d.numel() - len(d)
    tau = scales.tau if scales.shared else scales.tau[: len(d), None]
    # From units of τ back to those of the losses.
    h = ((d - positive) * tau).masked_fill(~negative, 0.0)
    mean = h.sum() / count
    variance = ((h - mean).square() * negative).sum() / count
    told = {
        "excess_mean": mean,
        "excess_variance": variance,
        "effective_sample_share": share.mean(),
    }
    return told, weights
