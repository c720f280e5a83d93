"""What the stored losses of an unguided target and of a reference say about steering by it.

Every signal is a pure function of losses; none needs a label, a class or a second training.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from steering.analysis.stored import Losses

CONFIDENT = 3.0
"""Nats from which on a loss is confidently wrong, of classes and tokens: the label has a probability
below 5 %. A pair's loss is compared with that of guessing (`Losses.guess`), as 3 nats are good there."""


@dataclass(frozen=True)
class Signals:
    """Of one reference, for one target on one data set.

    Attributes:
        n: training examples.
        variance_ratio: Var(ℓ − ℓ_ref)/Var(ℓ) within rows: below 1 the reference explains part of
            the target's loss, and the bound of DRRho falls (arXiv 2505.06699).
        strength: α* = Cov(ℓ, ℓ_ref)/Var(ℓ_ref) within rows, the control variate's coefficient.
        explained: share of Var(ℓ) that α*·ℓ_ref explains, in [0, 1].
        late_auc: probability that the reference's loss is higher on an example that the target has
            not yet learned (a loss above the mean after one short run) than on one that it has; ½ is
            chance. One snapshot cannot tell what is learned late from what is never learned.
        agreement: Spearman's rank correlation of the two losses over the examples.
        reference_wrong, target_wrong: shares of examples with a loss above `CONFIDENT`, of pairs above
            that of guessing.
        bound: √(2·Var(ℓ)/n) − √(2·Var(ℓ − ℓ_ref)/n), nats: how much the leading term of the
            bound falls when the reference is subtracted (ρ = 1).
        advantage: mean over held-out examples of the target's loss minus the reference's, nats;
            NaN without held-out losses.
        gap: held-out minus training loss of the unguided target, nats; NaN without held-out ones.
    """

    n: int
    variance_ratio: float
    strength: float
    explained: float
    late_auc: float
    agreement: float
    reference_wrong: float
    target_wrong: float
    bound: float
    advantage: float = math.nan
    gap: float = math.nan

    def values(self) -> dict[str, float]:
        """By name, with the logarithms of what spans decades: n and the ratio of variances."""
        found = asdict(self)
        logs = {
            "log_n": math.log(found.pop("n")),
            "log_variance_ratio": math.log(max(found.pop("variance_ratio"), 1e-12)),
        }
        return logs | found


def signals_of(
    target: Losses,
    reference: Losses,
    held_out: tuple[Losses, Losses] | None = None,
) -> Signals:
    """Signals of a reference.

    Args:
        target: of the unguided target after a short run, on the training data.
        reference: of the reference on the same examples.
        held_out: the same two on held-out examples.

    Raises:
        ValueError: the two are of other examples, or fewer than two could be read by both.
    """
    loss, guide = _common(target.examples, reference.examples)
    own, others = _rows(target.items, reference.items)
    cov, var_target, var_reference = _moments(own, others)
    var_excess = var_target + var_reference - 2 * cov
    explained = cov**2 / max(var_target * var_reference, 1e-300)
    found = Signals(
        n=len(loss),
        variance_ratio=var_excess / max(var_target, 1e-300),
        strength=cov / max(var_reference, 1e-300),
        explained=min(explained, 1.0),
        late_auc=auc(guide, loss > loss.mean()),
        agreement=spearman(loss, guide),
        reference_wrong=float((guide > confident(reference)).mean()),
        target_wrong=float((loss > confident(target)).mean()),
        bound=math.sqrt(2 / len(loss)) * (math.sqrt(var_target) - math.sqrt(max(var_excess, 0.0))),
    )
    if held_out is None:
        return found
    new, new_guide = _common(held_out[0].examples, held_out[1].examples)
    values = asdict(found) | {
        "advantage": float((new - new_guide).mean()),
        "gap": float(new.mean() - loss.mean()),
    }
    return Signals(**values)


def confident(losses: Losses) -> float:
    """Nats from which on a loss is confidently wrong."""
    return CONFIDENT if math.isnan(losses.guess) else losses.guess


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive's score is above a negative's, ties counting half; ½ when one of
    the two is empty.

    Args:
        score: (n,).
        positive: bool, (n,).
    """
    from scipy.stats import rankdata

    ups = int(positive.sum())
    downs = len(positive) - ups
    if not ups or not downs:
        return 0.5
    wins = rankdata(score)[positive].sum() - ups * (ups + 1) / 2
    return float(wins / (ups * downs))


def leading_terms(target: Losses, reference: Losses, n: int) -> tuple[float, float]:
    """√(2·Var(ℓ)/n) and √(2·Var(ℓ − ℓ_ref)/n), nats: what DRO and DRRho pay for n examples (ρ = 1).

    The variances are within rows and of the distribution that the examples come from, so the losses
    should be of held-out examples: on its own few examples a model's losses are near 0.

    Args:
        target, reference: losses of the same examples.
        n: examples that the target learns from.

    Source: arXiv 2505.06699, the leading terms of its bounds of DRO and of DRRho.

    Raises:
        ValueError: the two are of other examples.
    """
    own, others = _rows(target.items, reference.items)
    cov, var_target, var_reference = _moments(own, others)
    excess = max(var_target + var_reference - 2 * cov, 0.0)
    return math.sqrt(2 * var_target / n), math.sqrt(2 * excess / n)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation, (n,) and (n,); 0 when one of the two is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (one, other)]
    norm = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float((ranks[0] * ranks[1]).sum() / norm) if norm else 0.0


def _common(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if one.shape != other.shape:
        raise ValueError(f"losses of {len(one)} and of {len(other)} examples; expected the same")
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 2:
        raise ValueError(f"{both.sum()} examples have both losses; expected at least 2")
    return one[both], other[both]


def _rows(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Items of both, NaN where one of them has none."""
    if one.shape != other.shape:
        raise ValueError(f"items {one.shape} and {other.shape}; expected the same")
    missing = ~(np.isfinite(one) & np.isfinite(other))
    return np.where(missing, np.nan, one), np.where(missing, np.nan, other)


def _moments(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Covariance and variances within rows, averaged over the rows that have items."""
    some = np.isfinite(one).sum(1) > 0
    one, other = one[some], other[some]
    mine = one - np.nanmean(one, axis=1, keepdims=True)
    theirs = other - np.nanmean(other, axis=1, keepdims=True)
    return tuple(
        float(np.nanmean(np.nanmean(a * b, axis=1)))
        for a, b in ((mine, theirs), (mine, mine), (theirs, theirs))
    )  # type: ignore[return-value]
