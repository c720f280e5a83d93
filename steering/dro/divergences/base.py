"""What a φ-divergence is to the solver, and the solution of one that knows nothing but its tilt.

D_φ(p‖q) = Σ_i q_i φ(p_i / q_i) is the price that the adversary of a row pays for leaving the prior
q, uniform as a rule.

Legend: m rows, n items in a row, t_i = p_i / q_i the likelihood ratio of item i (mean 1 under q). A
row is solved scaled: x = (h − max h) / (max h − min h) ∈ [−1, 0], so neither the unit nor the
offset of the losses costs digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.divergences.proximal import by_sections
from steering.dro.divergences.rows import EPS, Rows, Solution
from steering.dro.search import LOG_RANGE, falling_bracket, falling_root
from steering.registry import Registry


class Divergence(ABC):
    """Convex φ ≥ 0 on t ≥ 0 with φ(1) = 0; +∞ for t < 0. φ, φ* and φ*′ are elementwise, of any
    floating dtype.

    A new divergence brings these three, in a frozen dataclass that `DIVERGENCES` registers. Tilt,
    `penalised`, `constrained` and `proximal` then work by search, in float64; those that can do
    better override them.
    """

    takes_budget: ClassVar[bool] = True
    """Whether a penalty or a radius sets its strength; False when φ is 0 or +∞ only: scaling would
    change nothing."""
    has_log_means: ClassVar[bool] = False
    """Whether log mean e^s of a row is all that its worst case needs to know: KL alone. It brings
    running averages of u, a margin ε, a prior, and pairs in memory linear in the batch."""
    has_wall: ClassVar[bool] = False
    """Whether φ* is +∞ from a finite score on which every optimum reaches, so that ν cannot follow
    its slope."""

    has_ceiling: ClassVar[bool] = False
    """Whether φ is +∞ from a finite ratio on, so that a price of zero does not buy the largest item
    alone."""

    @property
    def name(self) -> str:
        """What a config calls it; of one that is not registered the name of its class."""
        known = type(self) in DIVERGENCES.parts().values()
        return DIVERGENCES.name_of(self) if known else type(self).__name__

    @abstractmethod
    def phi(self, t: Tensor) -> Tensor:
        """φ(t)."""

    @abstractmethod
    def conjugate(self, s: Tensor) -> Tensor:
        """φ*(s) = max_t (t s − φ(t))."""

    @abstractmethod
    def ratio(self, s: Tensor) -> Tensor:
        """t = φ*′(s) ≥ 0, the likelihood ratio that a score s buys: 1 at s = 0. The smaller one
        where φ* has a kink, +∞ where φ* is."""

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Best reply to each row of scores: the maximiser of Σ q (t s − φ(t)) over t ≥ 0 with Σ q t
        = 1.

        Equal scores get equal ratios.

        Args:
            scores: s, (..., n), pure numbers, finite where the mask is True.
            mask: bool, (..., n), True where an item counts; at least one in each row.
            prior: q, (..., n), zero where masked, each row sums to 1; None is uniform over the
                mask.

        Returns:
            t, (..., n), zero where masked, and the multiplier ν of Σ q t = 1, (...): t_i ∈ ∂φ*(s_i
            − ν).
        """
        return _tilted_by_search(self, scores, mask, prior)

    def most(self, items: int) -> float:
        """The most that weights on n items can spend, all of it on one; may be ∞."""
        return farthest(self, torch.tensor(float(items), dtype=torch.float64, device="cpu")).item()

    def proximal(
        self, s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One proximal step of ν, argmin_x x + mean φ*(s − x) + (x − ν)²/(2λ), and its ratios.

        Args:
            s: scores, (..., n), float64.
            mask: bool, (..., n), True where an item counts; None: all do.
            before: ν before the step, (...), float64.
            lam: λ > 0, (...), float64.

        Returns:
            t, (..., n), zero where masked, and x, (...). At a kink of φ* the ratios are those that
            make the slope zero: mean t = 1 + (x − ν)/λ.
        """
        return by_sections(self.ratio, s, mask, before, lam)

    def penalised(self, rows: Rows) -> Solution:
        """max_p Σ p x − D(p‖q): x in units of the penalty. May overwrite rows.x."""
        t, nu = self.tilt(rows.x.double(), _mask(rows), rows.prior)
        value = rows.mean(t * rows.x) - rows.mean(self.phi(t))
        return Solution(rows.weights(t).to(rows.x.dtype), value, torch.ones_like(nu), nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """max_p Σ p x with D(p‖q) ≤ R, for 0 < R < the divergence of the largest items, float64,
        (m,); x in [−1, 0]."""
        x = rows.x.double()
        # Rounding in log D: ratios are good to ε, and stray from 1 by about √R.
        noise = (8 * EPS * (1 + radius.rsqrt())).clamp_max(1e-3)

        def excess(log_tau: Tensor) -> Tensor:
            t, _ = self.tilt(x / log_tau.exp()[:, None], _mask(rows), rows.prior)
            # In logarithms: D is near Var(x)/(2τ²) on flat rows, a straight line that interpolation
            # hits at once.
            gap = rows.mean(self.phi(t)).clamp_min(1e-300).log() - radius.log()
            return torch.where(gap.abs() <= noise, 0.0, gap)

        # From where D ≤ about Var(x)/(2τ²) ≤ 1/(8τ²) meets the radius: x ∈ [−1, 0] has a variance of
        # 1/4 at most.
        tau = falling_root(excess, -(8 * radius).log() / 2, LOG_RANGE).exp()
        t, nu = self.tilt(x / tau[:, None], _mask(rows), rows.prior)
        return Solution(rows.weights(t.clone()).to(rows.x.dtype), rows.mean(t * x), tau, tau * nu)


DIVERGENCES: Registry[Divergence] = Registry("divergence", "steering.divergences")


def _tilted_by_search(
    divergence: Divergence, scores: Tensor, mask: Tensor, prior: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`tilt` from φ*′ alone: the ν at which the ratios have mean 1, which falls as ν rises.

    Between the two neighbours of the root the ratios are mixed, which settles kinks.
    """
    shape = scores.shape
    s = scores.masked_fill(~mask, 0.0).double().reshape(-1, shape[-1])
    counted = mask.double() if prior is None else prior.double()
    q = (counted / counted.sum(-1, keepdim=True)).expand(shape).reshape(s.shape)
    top = s.masked_fill(q == 0, -torch.inf).amax(-1)
    width = top - s.masked_fill(q == 0, torch.inf).amin(-1) + 1
    rows = Rows(s, width, q)

    def ratios(place: Tensor) -> Tensor:
        return divergence.ratio(s - (top + place * width)[:, None])

    def excess(place: Tensor) -> Tensor:
        # φ*′ may be ∞ on the way, and an interpolation of ∞ is NaN.
        return rows.mean(ratios(place)).clamp_max(1e300) - 1

    # As φ*′(0) = 1, ν lies between the smallest score, less 1, and the largest: place −1 and 0.
    below, above = falling_bracket(excess, torch.full_like(top, -0.5), (-1.0, 0.0))
    many, few = ratios(below), ratios(above)
    spent_many, spent_few = rows.mean(many), rows.mean(few)
    # 0/0 where both neighbours have the mean 1: then either will do.
    share = ((1 - spent_few) / (spent_many - spent_few)).nan_to_num(0.0).clamp(0, 1)
    t = torch.lerp(few, many, share[:, None]).masked_fill(q == 0, 0.0)
    nu = (top + above * width).reshape(shape[:-1])
    return t.to(scores.dtype).reshape(shape), nu.to(scores.dtype)


def tilted(
    divergence: Divergence, scores: Tensor, mask: Tensor, prior: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`tilt` by way of `penalised`, on the scores less their maximum."""
    shape = scores.shape
    top = scores.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True)
    x = (scores - top).masked_fill(~mask, 0.0).double().reshape(-1, shape[-1])
    q = mask.double() / mask.sum(-1, keepdim=True) if prior is None else prior.double()
    rows = Rows(x, -x.amin(-1), q.expand(shape).reshape(-1, shape[-1]))
    solution = divergence.penalised(rows)
    t = rows.ratios(solution.weights).to(scores.dtype)
    return t.reshape(shape), (top[..., 0].double() + solution.nu.reshape(shape[:-1])).to(
        scores.dtype
    )


def _mask(rows: Rows) -> Tensor:
    return torch.ones_like(rows.x, dtype=torch.bool) if rows.prior is None else rows.prior > 0


def distance(
    p: Tensor, phi: Divergence, mask: Tensor | None = None, prior: Tensor | None = None
) -> Tensor:
    """D_φ(p‖q) = Σ_i q_i φ(p_i / q_i) of each row, over the items that the mask leaves.

    Args:
        p: weights, (..., n); those that count are non-negative and sum to 1, the others are not
            looked at.
        phi: which divergence.
        mask: bool, broadcasts to p, True where an item counts; None means all do.
        prior: q, broadcasts to p, ≥ 0, any scale; None is uniform over the mask. Items of prior
            zero are not looked at.

    Returns:
        (...), dtype of p: nats for KL, pure numbers else; +∞ where a weight leaves the domain of φ.
        Nothing is raised.
    """
    mask = torch.ones_like(p, dtype=torch.bool) if mask is None else mask.expand_as(p)
    if prior is None:
        return masked_mean(phi.phi(p * mask.sum(-1, keepdim=True)), mask)
    q = prior.to(p.dtype).expand_as(p).masked_fill(~mask, 0.0)
    q = q / q.sum(-1, keepdim=True)
    # Where q is 0, so is p as a rule, and 0/0 is not looked at.
    return (q * phi.phi(p / q)).masked_fill(q == 0, 0.0).sum(-1)


def farthest(phi: Divergence, items: Tensor) -> Tensor:
    """The most that weights on n items can spend, all of it on one: φ(n)/n + (1 − 1/n)·φ(0), same
    shape; log n for KL; may be ∞.

    Args:
        items: n ≥ 1, any shape, a floating dtype.
    """
    share = 1 / items
    others = torch.where(share < 1, (1 - share) * phi.phi(torch.zeros_like(share)), 0.0)
    return share * phi.phi(items) + others


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the items that count, (..., n) → (...); what stands at the others does not matter,
    not even NaN. None: all count."""
    if mask is None:
        return values.mean(-1)
    return values.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
