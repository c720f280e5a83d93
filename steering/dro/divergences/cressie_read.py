"""The Cressie–Read family φ_k(t) = (t^k − k t + k − 1) / (k (k − 1)): KL at k = 1, half chi-square
at k = 2.

Its worst weights are a one-parameter family, p ∝ q·exp_k(βx), with the deformed exponential

    exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)},    exp_1(y) = e^y,

so that both a penalty and a radius are one search over β. With Z = Σ q exp_k(βx), in the unit of x:
τ = Z^{k−1}/β and ν = (Z^{k−1} − 1)/((k − 1)β), which for KL are 1/β and log(Z)/β. Source: our
derivation from φ_k′(t) = (t^{k−1} − 1)/(k − 1) = (x − ν)/τ. KL and half chi-square have shorter
ways, written out as classes of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence, Rows, Solution, tilted
from steering.dro.divergences.proximal import of_ramps
from steering.dro.search import LOG_RANGE, falling_bracket, falling_root


@DIVERGENCES.register("kl")
@dataclass(frozen=True)
class KL(Divergence):
    """Kullback–Leibler, φ(t) = t log t − t + 1, φ*(s) = e^s − 1, nats."""

    has_log_means: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        # Around t = 1, φ is (t − 1)²/2: log(t) would drown it in rounding, log1p(t − 1) does not.
        # Around t = 0, where t − 1 has lost t, the clamp keeps 0 · log 0 = 0 and costs less than
        # one rounding of φ = 1.
        e = t - 1
        floor = torch.finfo(t.dtype).eps / 2 - 1
        return (t * e.clamp_min(floor).log1p() - e).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        return s.expm1()

    def ratio(self, s: Tensor) -> Tensor:
        return s.exp()

    def most(self, items: int) -> float:
        return math.log(items)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = exp(s_i − ν), ν = log Σ q exp(s). Source: φ′(t) = log t = s − ν, our derivation."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows) -> Solution:
        """p ∝ q·exp(x), value = ν = log Σ q exp(x)."""
        e, level, log_z = _exp(rows, rows.x, rows.extent)
        return Solution(rows.weights(e, level), log_z, torch.ones_like(log_z), log_z)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """p ∝ q·exp(βx) with D(β) = β E_p[x] − Λ(β) = R, Λ = log Σ q exp(βx), by Newton steps on
        log β; D′ = β Var_p(x).

        The root is sought for the logit of D / max D: a straight line of slope 2 in log β where the
        row is nearly uniform, and still finite in slope near the maximum, where D itself goes flat.
        A bracket guards each step.
        """
        x = rows.x
        most = -rows.share(x == 0).log()  # D of the largest items
        log_beta = (2 * radius / _variance(rows)).log() / 2  # exact for a Gaussian row
        low, high = (
            (8 * radius).log() / 2 - 1e-6,
            torch.full_like(log_beta, math.inf),
        )  # D ≤ β²/8 on [−1, 0]
        log_beta = torch.maximum(log_beta, low).clamp(*_LOG_BETA[x.dtype])
        eps = torch.finfo(x.dtype).eps
        for _ in range(200):
            beta = log_beta.exp()
            e, level, log_z = _exp(rows, torch.mul(x, rows.column(beta), out=rows.like_x(0)), beta)
            mean = rows.mean(torch.mul(e, x, out=rows.like_x(1))) / level
            variance = rows.mean(rows.like_x(1).mul_(x)) / level - mean.square()
            spent = beta * mean - log_z
            found = (spent - radius).abs() <= 4 * eps * (beta * mean.abs() + log_z.abs() + radius)
            low = torch.where(~found & (spent < radius), log_beta, low)
            high = torch.where(~found & (spent > radius), log_beta, high)
            if (found | (high - low <= 4e-16 * (1 + low.abs()))).all():
                break
            logit = (spent / radius).log() - (
                (most - spent).clamp_min(1e-300) / (most - radius)
            ).log()
            slope = beta.square() * variance * (1 / spent + 1 / (most - spent).clamp_min(1e-300))
            step = (log_beta - logit / slope).nan_to_num(math.inf)
            middle = torch.where(high.isinf(), low + 2, (low + high) / 2)
            inside = (step > low) & (step < torch.minimum(high, low + 4))
            log_beta = torch.where(found, log_beta, torch.where(inside, step, middle)).clamp(
                *_LOG_BETA[x.dtype]
            )
        return Solution(rows.weights(e, level), mean, 1 / beta, log_z / beta)


@DIVERGENCES.register("chi2")
@dataclass(frozen=True)
class ChiSquare(Divergence):
    """HALF chi-square, φ(t) = (t − 1)²/2, φ*(s) = s + s²/2 for s ≥ −1 and −1/2 below.

    Where the literature drops the 1/2, its radius is twice ours and its penalty half of ours.

    Both solutions are water filling, t = [x − η]_+ / C. If the items above η are known, η is known
    in closed form; starting from all items, η only rises and items only drop out, so the exact set
    is met after a few passes, without a sort.
    """

    def phi(self, t: Tensor) -> Tensor:
        return ((t - 1).square() / 2).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        s = s.clamp_min(-1)
        return s + s.square() / 2

    def ratio(self, s: Tensor) -> Tensor:
        return (1 + s).clamp_min(0)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = [1 + s_i − ν]_+: a projection onto the simplex. Source: our derivation from φ′(t) =
        t − 1 = s − ν."""
        return tilted(self, scores, mask, prior)

    def proximal(
        self, s: Tensor, mask: Tensor | None, before: Tensor, lam: Tensor
    ) -> tuple[Tensor, Tensor]:
        """By a sort: its ratios are ramps."""
        return of_ramps(s, mask, before, lam)

    def penalised(self, rows: Rows) -> Solution:
        """t = [1 + x − ν]_+; over the active items A, Σ_A q t = 1 reads ν = (Σ_A q x − q(not A)) /
        q(A)."""
        x, work = rows.x, rows.like_x(0)
        nu, inside = rows.mean(x), torch.full_like(rows.extent, 2.0)
        while True:
            active = torch.gt(x, rows.column(nu - 1), out=work)
            share = rows.mean(active)
            if (share >= inside).all():
                break
            inside = share
            outside = rows.mean(torch.sub(1, active, out=rows.like_x(1)))
            nu = torch.maximum(nu, (rows.mean(active.mul_(x)) - outside) / share)
        excess = x.sub_(rows.column(nu)).clamp_min_(-1)  # t − 1
        # Σ p x = ν + Σ q (t − 1)², as x − ν = t − 1 wherever t > 0; the price takes half of the
        # second term.
        value = nu + rows.mean(torch.square(excess, out=work)) / 2
        t = excess.add_(1)
        return Solution(rows.weights(t, rows.mean(t)), value, torch.ones_like(nu), nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """t = [x − η]_+ / C; over the active items A with share Q, mean μ, variance v: (μ − η)² = v
        / (2 R Q − q(not A)).

        Source: our derivation, from Σ_A q t² = 1 + 2R with C = Q (μ − η); τ = C, ν = η + C.
        """
        x, work, other = rows.x, rows.like_x(0), rows.like_x(1)
        eta, inside = torch.full_like(radius, -math.inf), torch.full_like(radius, 2.0)
        while True:
            active = torch.gt(x, rows.column(eta), out=work)
            share = rows.mean(active)
            if (share >= inside).all():
                break
            inside, outside = share, rows.mean(torch.sub(1, active, out=other))
            mu = rows.mean(torch.mul(active, x, out=other)) / share
            variance = (
                rows.mean(active.mul_(torch.sub(x, rows.column(mu), out=other)).square_()) / share
            )
            surplus = (2 * radius * share - outside).clamp_min(torch.finfo(torch.float64).tiny)
            eta = torch.maximum(eta, mu - (variance / surplus).sqrt())
        t = torch.sub(x, rows.column(eta), out=work).clamp_min_(0)
        level = rows.mean(t)
        value = rows.mean(torch.mul(t, x, out=other)) / level
        return Solution(rows.weights(t, level), value, level, eta + level)


@DIVERGENCES.register("cressie-read")
@dataclass(frozen=True)
class CressieRead(Divergence):
    """φ_k(t) = (t^k − k t + k − 1)/(k (k − 1)), φ*_k(s) = ([1 + (k − 1)s]_+^{k/(k−1)} − 1)/k; k = 0
    reverse KL, −log t + t − 1.

    For k > 1 weights can be zero, and the larger k the fewer items share the worst case. For k < 1
    none is zero, and φ* is ∞ from s = 1/(1 − k) on. Orders within 1e-6 of 1 would lose digits;
    there, use KL. So do orders above 4 if an item sits where weights become zero: t rises there
    like the (k − 1)-th root. The gap of the solution tells how many.

    Attributes:
        order: k, any finite number but 1.

    Source: Cressie and Read (1984), with the factor that makes φ″(1) = 1 for every order;
    conjugate: our derivation.
    """

    order: float
    """k of the family: any finite number but 1, which is KL; 2 is half chi-square."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.order) or abs(self.order - 1) < 1e-6:
            raise ValueError(
                f"order: expected a finite number other than 1 (which is 'kl'), got {self.order}"
            )

    def phi(self, t: Tensor) -> Tensor:
        k, e = self.order, t - 1
        if k == 0:
            far = e - t.clamp_min(0).log()
        else:
            far = (t.clamp_min(0) ** k - 1 - k * e) / (k * (k - 1))
        # Around t = 1 the binomial series of t^k, from its second term on: the difference above
        # would be all rounding.
        near = torch.ones_like(t)
        for j in range(10, 2, -1):
            near = 1 + near * e * ((k - j + 1) / j)
        close = e.abs() * max(1.0, abs(k)) < 0.05
        return torch.where(close, e.square() / 2 * near, far).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        k = self.order
        log_base = ((k - 1) * s).clamp_min(-1).log1p()
        found = -log_base if k == 0 else (k / (k - 1) * log_base).expm1() / k
        return found if k > 1 else found.masked_fill((k - 1) * s < -1, torch.inf)

    def ratio(self, s: Tensor) -> Tensor:
        return _deformed_exp(s, self.order)

    def tilt(
        self, scores: Tensor, mask: Tensor, prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """t_i = exp_k(s_i − ν), by a search for ν. Source: our derivation."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows) -> Solution:
        """The β at which Z^{k−1}/β = 1."""
        x = rows.x.double()

        def too_dear(log_beta: Tensor) -> Tensor:
            z = rows.mean(_deformed_exp(x * log_beta.exp()[:, None], self.order))
            return (self.order - 1) * z.log() - log_beta

        t, _, nu = self._tilt(
            rows, x, falling_root(too_dear, torch.zeros_like(rows.extent), LOG_RANGE).exp()
        )
        value = rows.mean(t * x) - rows.mean(self.phi(t))
        return Solution(rows.weights(t), value, torch.ones_like(nu), nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """The β at which D = R, and the weights between its two neighbours in floating point.

        An item near the wall has t = e^{1/(k−1)} with a small e = 1 + (k − 1)βx, of which β keeps
        few digits: no β may spend the radius to within rounding. A mix of the weights on both sides
        does, and as D is convex the mix spends no more than its parts do on average.
        """
        x = rows.x.double()

        def unspent(log_beta: Tensor) -> Tensor:
            e = _deformed_exp(x * log_beta.exp()[:, None], self.order)
            spent = rows.mean(self.phi(e / rows.mean(e)[:, None]))
            return radius.log() - spent.clamp_min(1e-300).log()

        start = (2 * radius / _variance(rows)).log() / 2
        below, above = falling_bracket(unspent, start, LOG_RANGE)
        less, _, _ = self._tilt(rows, x, below.exp())
        more, tau, nu = self._tilt(rows, x, above.exp())
        spent_less, spent_more = rows.mean(self.phi(less)), rows.mean(self.phi(more))
        share = ((radius - spent_less) / (spent_more - spent_less)).nan_to_num(1.0).clamp(0, 1)
        t = torch.lerp(less, more, share[:, None])
        return Solution(rows.weights(t.clone()), rows.mean(t * x), tau, nu)

    def _tilt(self, rows: Rows, x: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ratios, (m, n), τ and ν, (m,), at one β."""
        k, e = self.order, _deformed_exp(x * beta[:, None], self.order)
        z = rows.mean(e)
        log_power = (k - 1) * z.log()
        return e / z[:, None], log_power.exp() / beta, log_power.expm1() / ((k - 1) * beta)


_LOG_BETA = {torch.float32: (-30.0, 85.0), torch.float64: LOG_RANGE}


def _deformed_exp(y: Tensor, k: float) -> Tensor:
    """exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)}; for k < 1 ∞ where the bracket is not positive."""
    return (((k - 1) * y).clamp_min(-1).log1p() / (k - 1)).exp()


def _exp(rows: Rows, s: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp(s) times a constant of each row, (m, n), in the memory of s; its mean; and log Σ q
    exp(s). −min s is the extent.

    torch's softmax is the faster exponential, but sums a long row so carelessly that its mean is
    taken again.
    """
    flat = extent < 0.5  # nearly flat rows lose their digits in a mean near 1
    dip = rows.mean(s.expm1()) if flat.any() else extent
    if rows.prior is None:
        e = torch.softmax(s, -1, out=s if s.device.type == "cpu" else None)
        level = rows.mean(e)
        log_z = (level / e.amax(-1)).log()  # the largest item has s = 0
    else:
        e = s.exp_()
        level = rows.mean(e)
        log_z = level.log()
    return e, level, torch.where(flat, dip.log1p(), log_z)


def _variance(rows: Rows) -> Tensor:
    """Var_q(x), (m,), and never below what a row with x = 0 and x = −1 can have; float64."""
    deviation = rows.x - rows.column(rows.mean(rows.x))
    return rows.mean(deviation.square_()).clamp_min(torch.finfo(torch.float64).tiny)
