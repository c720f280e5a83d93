"""The Cressie–Read family φ_k(t) = (t^k − k t + k − 1) / (k (k − 1)): KL at k = 1, half chi-square
at k = 2.

Its worst weights are a one-parameter family, p ∝ q·exp_k(βx), with the deformed exponential

    exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)},    exp_1(y) = e^y,

so that both a penalty and a radius are one search over β. With Z = Σ q exp_k(βx), in the unit of x:
τ = Z^{k−1}/β and ν = (Z^{k−1} − 1)/((k − 1)β), which for KL are 1/β and log(Z)/β. Source: our
derivation from φ_k′(t) = (t^{k−1} − 1)/(k − 1) = (x − ν)/τ. KL and half chi-square have shorter
ways, in `kl.py` and `chi_square.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steering.dro.divergences.base import DIVERGENCES, Divergence, tilted
from steering.dro.divergences.rows import Rows, Solution, variance_of
from steering.dro.search import LOG_RANGE, falling_bracket, falling_root


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

        # D is near β²·Var(x)/2 on flat rows, whatever the order, as φ″(1) = 1.
        start = (2 * radius / variance_of(rows)).log() / 2
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


def _deformed_exp(y: Tensor, k: float) -> Tensor:
    """exp_k(y) = [1 + (k − 1) y]_+^{1/(k−1)}; for k < 1 ∞ where the bracket is not positive."""
    # By log1p, as an order near 1 makes the bracket nearly 1 and its power large.
    return (((k - 1) * y).clamp_min(-1).log1p() / (k - 1)).exp()
