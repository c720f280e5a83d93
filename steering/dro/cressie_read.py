"""The Cressie–Read family φ_k(t) = (t^k − k t + k − 1) / (k (k − 1)): KL at k = 1, half chi-square at k = 2.

Its worst weights are a one-parameter family, p ∝ q·exp_k(βx), with the deformed exponential

    exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)},    exp_1(y) = e^y,

so that both a penalty and a radius are one search over β. With Z = Σ q exp_k(βx), in the unit of x:
τ = Z^{k−1}/β and ν = (Z^{k−1} − 1)/((k − 1)β), which for KL are 1/β and log(Z)/β. Source: our derivation from
φ_k′(t) = (t^{k−1} − 1)/(k − 1) = (x − ν)/τ. KL and half chi-square have shorter ways, written out as classes of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.base import Divergence, Rows, Solution, tilted
from steering.dro.search import LOG_RANGE, falling_root


@dataclass(frozen=True)
class KL(Divergence):
    """Kullback–Leibler, φ(t) = t log t − t + 1, φ*(s) = e^s − 1, nats."""

    name: ClassVar[str] = "kl"
    takes_budget: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        # Around t = 1, φ is (t − 1)²/2: log(t) would drown it in rounding, log1p(t − 1) does not. Around t = 0, where
        # t − 1 has lost t, the clamp keeps 0 · log 0 = 0 and costs less than one rounding of φ = 1.
        e = t - 1
        floor = torch.finfo(t.dtype).eps / 2 - 1
        return (t * e.clamp_min(floor).log1p() - e).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        return s.expm1()

    def ratio(self, s: Tensor) -> Tensor:
        return s.exp()

    def tilt(self, scores: Tensor, mask: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """t_i = exp(s_i − ν), ν = log Σ q exp(s). Source: φ′(t) = log t = s − ν, our derivation."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows, tau: Tensor) -> Solution:
        """p ∝ q·exp(x/τ), value = ν = τ log Σ q exp(x/τ)."""
        s = rows.x.mul_(rows.column(1 / tau))
        log_z = _log_mean_exp(rows, s, 1 / tau) if (tau > 2).any() else None
        e = s.exp_()
        z = rows.mean(e)
        value = tau * (z.log() if log_z is None else log_z)
        return Solution(rows.weights(e.div_(rows.column(z))), value, tau, value)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """p ∝ q·exp(βx) with D(β) = β E_p[x] − Λ(β) = R, Λ = log Σ q exp(βx), by Newton steps on log β; D′ = β Var_p(x).

        The root is sought for the logit of D / max D: a straight line of slope 2 in log β where the row is nearly uniform,
        and still finite in slope near the maximum, where D itself goes flat. A bracket guards each step.
        """
        x = rows.x
        most = -rows.share(x == 0).log()  # D of the largest items
        log_beta = (2 * radius / _variance(rows)).log() / 2  # exact for a Gaussian row
        low, high = (8 * radius).log() / 2 - 1e-6, torch.full_like(log_beta, math.inf)  # D ≤ β²/8 on [−1, 0]
        log_beta = torch.maximum(log_beta, low).clamp(*_LOG_BETA[x.dtype])
        eps = torch.finfo(x.dtype).eps
        e, ex = rows.like_x(0), rows.like_x(1)
        for _ in range(200):
            beta = log_beta.exp()
            torch.mul(x, rows.column(beta), out=e)
            near = _log_mean_exp(rows, e, beta) if (beta < 0.5).any() else None
            z = rows.mean(e.exp_())
            log_z = z.log() if near is None else near
            mean = rows.mean(torch.mul(e, x, out=ex)) / z
            variance = rows.mean(ex.mul_(x)) / z - mean.square()
            spent = beta * mean - log_z
            found = (spent - radius).abs() <= 4 * eps * (beta * mean.abs() + log_z.abs() + radius)
            low = torch.where(~found & (spent < radius), log_beta, low)
            high = torch.where(~found & (spent > radius), log_beta, high)
            if (found | (high - low <= 4e-16 * (1 + low.abs()))).all():
                break
            logit = (spent / radius).log() - ((most - spent).clamp_min(1e-300) / (most - radius)).log()
            slope = beta.square() * variance * (1 / spent + 1 / (most - spent).clamp_min(1e-300))
            step = (log_beta - logit / slope).nan_to_num(math.inf)
            middle = torch.where(high.isinf(), low + 2, (low + high) / 2)
            inside = (step > low) & (step < torch.minimum(high, low + 4))
            log_beta = torch.where(found, log_beta, torch.where(inside, step, middle)).clamp(*_LOG_BETA[x.dtype])
        return Solution(rows.weights(e.div_(rows.column(z))), mean, 1 / beta, log_z / beta)


@dataclass(frozen=True)
class ChiSquare(Divergence):
    """HALF chi-square, φ(t) = (t − 1)²/2, φ*(s) = s + s²/2 for s ≥ −1 and −1/2 below.

    Where the literature drops the 1/2, its radius is twice ours and its penalty half of ours.

    Both solutions are water filling, t = [x − η]_+ / C. If the items above η are known, η is known in closed form; starting
    from all items, η only rises and items only drop out, so the exact set is met after a few passes, without a sort.
    """

    name: ClassVar[str] = "chi2"
    takes_budget: ClassVar[bool] = True

    def phi(self, t: Tensor) -> Tensor:
        return ((t - 1).square() / 2).masked_fill(t < 0, torch.inf)

    def conjugate(self, s: Tensor) -> Tensor:
        s = s.clamp_min(-1)
        return s + s.square() / 2

    def ratio(self, s: Tensor) -> Tensor:
        return (1 + s).clamp_min(0)

    def tilt(self, scores: Tensor, mask: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """t_i = [1 + s_i − ν]_+: a projection onto the simplex. Source: our derivation from φ′(t) = t − 1 = s − ν."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows, tau: Tensor) -> Solution:
        """t = [1 + (x − ν)/τ]_+; over the active items A, Σ_A q t = 1 reads ν = (Σ_A q x − τ·q(not A)) / q(A)."""
        x, work = rows.x, rows.like_x(0)
        nu, inside = rows.mean(x), torch.full_like(tau, 2.0)
        while True:
            active = torch.gt(x, rows.column(nu - tau), out=work)
            share = rows.mean(active)
            if (share >= inside).all():
                break
            inside = share
            outside = rows.mean(torch.sub(1, active, out=rows.like_x(1)))
            nu = torch.maximum(nu, (rows.mean(active.mul_(x)) - tau * outside) / share)
        excess = x.sub_(rows.column(nu)).div_(rows.column(tau)).clamp_min_(-1)  # t − 1
        # Σ p x = ν + τ Σ q (t − 1)², as (x − ν)/τ = t − 1 wherever t > 0; the price takes half of the second term.
        value = nu + tau * rows.mean(torch.square(excess, out=work)) / 2
        t = excess.add_(1)
        return Solution(rows.weights(t.div_(rows.column(rows.mean(t)))), value, tau, nu)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """t = [x − η]_+ / C; over the active items A with share Q, mean μ, variance v: (μ − η)² = v / (2 R Q − q(not A)).

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
            variance = rows.mean(active.mul_(torch.sub(x, rows.column(mu), out=other)).square_()) / share
            surplus = (2 * radius * share - outside).clamp_min(torch.finfo(torch.float64).tiny)
            eta = torch.maximum(eta, mu - (variance / surplus).sqrt())
        t = torch.sub(x, rows.column(eta), out=work).clamp_min_(0)
        level = rows.mean(t)
        value = rows.mean(torch.mul(t, x, out=other)) / level
        return Solution(rows.weights(t.div_(rows.column(level))), value, level, eta + level)


@dataclass(frozen=True)
class CressieRead(Divergence):
    """φ_k(t) = (t^k − k t + k − 1)/(k (k − 1)), φ*_k(s) = ([1 + (k − 1)s]_+^{k/(k−1)} − 1)/k; k = 0 reverse KL, −log t + t − 1.

    For k > 1 weights can be zero, and the larger k the fewer items share the worst case. For k < 1 none is zero, and φ*
    is ∞ from s = 1/(1 − k) on. Orders within 1e-6 of 1 would lose digits; there, use KL. So do orders above 4 if an item
    sits where weights become zero: t rises there like the (k − 1)-th root. The gap of the solution tells how many.

    Attributes:
        order: k, any finite number but 1.

    Source: Cressie and Read (1984), with the factor that makes φ″(1) = 1 for every order; conjugate: our derivation.
    """

    order: float

    name: ClassVar[str] = "cressie-read"
    takes_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.order) or abs(self.order - 1) < 1e-6:
            raise ValueError(f"order: expected a finite number other than 1 (which is 'kl'), got {self.order}")

    def phi(self, t: Tensor) -> Tensor:
        k, e = self.order, t - 1
        if k == 0:
            far = e - t.clamp_min(0).log()
        else:
            far = (t.clamp_min(0) ** k - 1 - k * e) / (k * (k - 1))
        # Around t = 1 the binomial series of t^k, from its second term on: the difference above would be all rounding.
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

    def tilt(self, scores: Tensor, mask: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """t_i = exp_k(s_i − ν), by a search for ν. Source: our derivation."""
        return tilted(self, scores, mask, prior)

    def penalised(self, rows: Rows, tau: Tensor) -> Solution:
        """The β at which Z^{k−1}/β = τ."""
        rows = Rows(rows.x.double(), rows.prior)

        def too_dear(log_beta: Tensor) -> Tensor:  # log of the price at β over τ
            z = rows.mean(_deformed_exp(rows.x * log_beta.exp()[:, None], self.order))
            return (self.order - 1) * z.log() - log_beta - tau.log()

        return self._solution(rows, falling_root(too_dear, -tau.log(), LOG_RANGE).exp(), tau)

    def constrained(self, rows: Rows, radius: Tensor) -> Solution:
        """The β at which D = R."""
        rows = Rows(rows.x.double(), rows.prior)

        def unspent(log_beta: Tensor) -> Tensor:
            e = _deformed_exp(rows.x * log_beta.exp()[:, None], self.order)
            spent = rows.mean(self.phi(e / rows.mean(e)[:, None]))
            return radius.log() - spent.clamp_min(1e-300).log()

        log_beta = falling_root(unspent, (2 * radius / _variance(rows)).log() / 2, LOG_RANGE)
        return self._solution(rows, log_beta.exp(), None)

    def _solution(self, rows: Rows, beta: Tensor, tau: Tensor | None) -> Solution:
        """Weights, value, τ and ν at one β; with a penalty τ the value is less τ D."""
        k = self.order
        e = _deformed_exp(rows.x * beta[:, None], k)
        z = rows.mean(e)
        t = e / z[:, None]
        value = rows.mean(t * rows.x)
        if tau is not None:
            value = value - tau * rows.mean(self.phi(t))
        price = ((k - 1) * z.log()).exp() / beta
        nu = ((k - 1) * z.log()).expm1() / ((k - 1) * beta)
        return Solution(rows.weights(t), value, price if tau is None else tau, nu)


_LOG_BETA = {torch.float32: (-30.0, 85.0), torch.float64: LOG_RANGE}


def _deformed_exp(y: Tensor, k: float) -> Tensor:
    """exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)}; for k < 1 ∞ where the bracket is not positive."""
    return (((k - 1) * y).clamp_min(-1).log1p() / (k - 1)).exp()


def _log_mean_exp(rows: Rows, s: Tensor, beta: Tensor) -> Tensor:
    """log Σ q exp(s) for s = βx; nearly flat rows need log1p of the mean of expm1, for which β < 1/2 is the sign."""
    dip = rows.mean(s.expm1())  # in (−1, 0]
    return torch.where(beta < 0.5, dip.log1p(), rows.mean(s.exp()).log())


def _variance(rows: Rows) -> Tensor:
    """Var_q(x), (m,), and never below what a row with x = 0 and x = −1 can have; float64."""
    deviation = rows.x - rows.column(rows.mean(rows.x))
    return rows.mean(deviation.square_()).clamp_min(torch.finfo(torch.float64).tiny)
