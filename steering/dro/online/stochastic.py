"""The DRO risk of excess losses from mini-batches: an estimator's ratios, a temperature, a
strength, one scalar to descend.

For each row i the problem  max_p Σ_j p_j h_ij − τ·D_φ(p ‖ q)  has the dual  min_ν τ·(ν + Σ_j q_j
φ*(h_ij/τ − ν))  and the weights p_ij = q_j φ*′(h_ij/τ − ν). ν is tracked over batches
(`estimators.py`). Legend: (...) rows, n items in a row.

One seam serves losses that stand in memory (`per_row` below) and those that are never written down
(pairs in blocks, `steering.contrastive`): `begin` reads τ and α, `heights` takes in what the batch
says of ν, and `finish` makes risks of that, with the slope of a learned τ.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from steering.dro.adversary import Adversary
from steering.dro.divergences.base import masked_mean
from steering.dro.online import told
from steering.dro.online.estimator import learning
from steering.dro.online.estimators import log_mean_exp
from steering.dro.online.metrics import Metrics
from steering.dro.online.prior import soft_filter
from steering.dro.online.specs import usual_estimator
from steering.dro.online.strength import Strength, unit_moments
from steering.dro.online.temperature import Temperatures
from steering.dro.online.temperatures import temperature_of
from steering.dro.online.visit import Estimate, Reply, Visit
from steering.dro.online.watch import Watch
from steering.items import Units
from steering.schedules import Constant


class StochasticRisk(nn.Module):
    """The DRO risk of excess losses, estimated from mini-batches.

        F(w, τ) = mean_i τ·( ν_i + Σ_j q_j φ*(h_ij/τ − ν_i) + R ),   h = ℓ − α·ℓ_ref
        KL:       mean_i τ·( log(ε + u_i) + R ),   u_i = Σ_j q_j exp(h_ij / τ),   q_j ∝ exp(−κ·ℓ_ref,j)

    Penalised form (radius None): τ fixed, R = 0. Constrained form: τ is learned, and at the optimum
    the divergence of the weights averages to the radius R; a radius beyond what the items of a row
    can spend sends τ to its minimum. ε > 0 is a margin: a row stops pulling once its losses are all
    below τ·log ε. The prior q is normalised over the items of the batch. At τ = ∞ the weights are
    the prior, and the risk the mean under it.

    In eval mode, and under `no_grad`, nothing of the state changes: the value is that of a training
    call without its traces.

    Args:
        num_rows: rows in the whole data set, the size of the running estimates.
        adversary: one whose `tau` is given unless its divergence takes none; an epsilon of None is
            0, a rate of None 1.
        solve_tau: the one learned τ moves by itself in each training call (`SolvedTemperature`);
            False: it is a parameter, log τ, for somebody's optimiser.
        split: whether the tables are split over the ranks.
        tau_max: where a learned temperature may go; None is ∞, and 1 for individual ones.

    Raises:
        ValueError: an argument out of range, or two that do not fit.

    Source: arXiv 2505.06699, 2407.01445 and 2602.02877; derivation in docs/theory.md.
    """

    def __init__(
        self,
        num_rows: int,
        adversary: Adversary,
        *,
        solve_tau: bool = False,
        split: bool = False,
        tau_max: float | None = None,
    ) -> None:
        super().__init__()
        adversary.require_valid()
        self.adversary, self.divergence = adversary, adversary.divergence
        layout = adversary.layout(split)
        self.temperature: Temperatures = temperature_of(
            adversary, num_rows, solve_tau, tau_max, layout
        )
        spec = adversary.estimator or usual_estimator(self.divergence)
        self.estimator = spec.build(self.divergence, num_rows, layout)
        self.strength = Strength(adversary.strength)
        self.prior = adversary.prior(0.0)
        self.radius = adversary.radius or 0.0
        self.moves_one_row = num_rows == 1 and self.temperature.solves
        epsilon = adversary.epsilon or 0.0
        self.watch = Watch(self.divergence, adversary.radius, margin=epsilon > 0)
        self.log_epsilon = math.log(epsilon) if epsilon > 0 else -math.inf

    def start_epoch(self, epoch: int) -> None:
        self.estimator.start_epoch(epoch)

    def at(self, progress: float) -> None:
        """Move τ, α and κ along their schedules, to this share of the run, in [0, 1]; ValueError
        where a schedule leaves what they may be."""
        self.strength.at(progress)
        tau = self.adversary.tau
        if tau is not None and not isinstance(tau, Constant):
            self.temperature.at(tau(progress))
        self.prior = self.adversary.prior(progress)
        if not 0 <= self.prior < math.inf:
            raise ValueError(f"prior must be a number ≥ 0, got {self.prior}")

    @property
    def uses_reference(self) -> bool:
        return self.adversary.uses_reference

    def forward(self, units: Units, log_prior: Tensor | None = None) -> Estimate:
        """Risk of one batch of loss items, averaged over its rows; updates the running estimates of
        the rows.

        Args:
            log_prior: log(n·q), (..., n), of a prior q over the items of a row, in place of the
                adversary's own; KL only.
        """
        risks, weights, metrics = self.per_row(units, log_prior)
        return Estimate(risks if risks.ndim == 0 else risks.mean(), weights, metrics)

    # ---- the seam that dense and blocked losses share

    def begin(
        self,
        keys: Tensor,
        items: Tensor | float,
        moments: Callable[[], Tensor] | None,
        like: Tensor,
        sharded: bool,
    ) -> Visit:
        """τ and α of a batch; "auto" takes its moments in.

        Args:
            keys: of the rows, int64, (...).
            items: how many items each row has, a number or (...).
            moments: see `Strength.now`; None without a reference.
            like: of the losses' dtype.
            sharded: whether the rows differ between the ranks.
        """
        # Asked once, here: further down gradients are off, and then the answer would be no.
        learn = learning(self)
        alpha = self.strength.now(moments, like.dtype, learn=learn)
        tau, follow = self.temperature.visit(keys, sharded, items, learn)
        return Visit(keys, sharded, learn, tau.to(like.dtype), alpha, follow)

    def heights(self, visit: Visit, log_means: Tensor) -> Tensor:
        """log(ε + u) after the running estimates of these rows have taken in log û, (...); KL. Takes
        numbers without gradient."""
        nu = self.estimator.track(visit.keys, log_means, visit.sharded, learn=visit.learn)
        return self._with_margin(nu)

    def finish(
        self, visit: Visit, height: Tensor, slopes: Callable[[], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Risks τ·(height + R), (...), whose gradient is that of the heights, in units of τ.

        Args:
            slopes: makes ∂F/∂τ of each row, and R − D_φ of its normalised weights, (...); asked
                only if τ learns.
        """
        # (25) of docs/theory.md. τ is detached: what it learns comes from `follow`, which adds
        # nothing to the value.
        risks = visit.tau * (height + self.radius if self.radius else height)
        return risks + visit.follow(*slopes()) if self.temperature.learned else risks

    @torch.no_grad()
    def log_slopes(self, height: Tensor, log_means: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
        """The slopes of `finish` for KL, (...).

        Args:
            height: log(ε + u) of the running estimate.
            log_means: log û of the batch.
            means: mean of h/τ under the batch's own normalised weights.
        """
        # ∂/∂τ of τ·(log(ε + u) + R) with ∂û/∂τ = −û·E_p[h/τ]/τ; for u = û and ε = 0 it is (10). The
        # second is (10) itself, D_KL = E_p[h/τ] − log û, whatever the running u.
        weight_sum = (log_means - height).exp()
        slope = height + self.radius - weight_sum * means
        return slope, self.radius - means + log_means

    def standing(self, tau: Tensor, log_means: Tensor) -> Tensor:
        """τ·log(ε + û), (...): the risk of losses that stand still, such as a reference's; KL.

        Args:
            tau: temperatures of the rows, () or (...).
            log_means: log û of their losses at these temperatures, (...).
        """
        return tau * self._with_margin(log_means)

    def _with_margin(self, nu: Tensor) -> Tensor:
        if self.log_epsilon == -math.inf:
            return nu
        return torch.logaddexp(nu, torch.full_like(nu, self.log_epsilon))

    def per_row(
        self, units: Units, log_prior: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Metrics]:
        """The risk of each row, (...), with its stochastic gradient; weights and metrics as in
        `Estimate`."""
        mask, n = units.mask, units.target.shape[-1]
        counts = float(n) if mask is None else units.counts()
        moments = None if units.reference is None else lambda: unit_moments(units)
        visit = self.begin(units.rows, counts, moments, units.target, units.sharded)
        excess = units.excess(visit.alpha)  # (..., n), with gradient
        log_prior = soft_filter(units, self.prior) if log_prior is None else log_prior
        reply = self._reply(units, excess.detach(), visit, log_prior, counts)
        risks = told.row_dot(reply.weights, excess)
        if not self.temperature.infinite:
            # The weights are detached, so Σ p·h has the gradient of the risk, but not its value. At
            # τ = ∞ it has both, and τ·height would be ∞·0.
            value = self.finish(visit, reply.height, reply.slopes)
            risks = risks + (value - risks.detach())
        if visit.learn and self.moves_one_row:
            # ν is in units of τ, and τ has just moved.
            self.estimator.rescale(visit.tau / self.temperature.read(units.rows, units.sharded))
        share = self._looked_at(units, reply.weights, counts, visit.learn)
        return risks, reply.weights, self._metrics(units, excess.detach(), visit, reply, share)

    @torch.no_grad()
    def _reply(
        self,
        units: Units,
        excess: Tensor,
        visit: Visit,
        log_prior: Tensor | None,
        counts: Tensor | float,
    ) -> Reply:
        s = excess / told.beside(visit.tau)
        if self.divergence.has_log_means:
            return self._log_reply(units, s, visit, log_prior, counts)
        if log_prior is not None:
            raise ValueError(f"log_prior: works for 'kl' only, got {self.divergence.name!r}")
        mask, phi = units.mask, self.divergence.phi
        ratios, nu = self.estimator(units.rows, s, mask, units.sharded, learn=visit.learn)
        # mean φ*(s − ν) by Fenchel's equality with these ratios: at a kink φ*′ is not one number.
        paid = masked_mean(phi(ratios), mask)
        height = nu + masked_mean(ratios * (s - nu[..., None]), mask) - paid

        def slopes() -> tuple[Tensor, Tensor]:
            # A running ν leaves ratios whose mean is not 1; a divergence is one of weights that sum
            # to 1.
            whole = ratios / masked_mean(ratios, mask)[..., None]
            # The envelope theorem, τ·ν held: ∂F/∂τ = R − mean φ(t).
            return self.radius - paid, self.radius - masked_mean(phi(whole), mask)

        return Reply(ratios / told.column(counts), height, slopes)

    def _log_reply(
        self,
        units: Units,
        s: Tensor,
        visit: Visit,
        log_prior: Tensor | None,
        counts: Tensor | float,
    ) -> Reply:
        """KL: p = q·exp(s − height)."""
        # log_prior is log(n·q), so a plain mean over the n items is one under q.
        tilted = s if log_prior is None else s + log_prior
        log_means, shown = log_mean_exp(tilted, units.mask)
        if self.estimator.needs_scores:
            _, nu = self.estimator(units.rows, tilted, units.mask, units.sharded, learn=visit.learn)
            height = self._with_margin(nu)
        else:
            height = self.heights(visit, log_means)
        # (26): divided by the number of items, as the running u takes the place of their own sum.
        weights = (shown - told.beside(height)).exp() / told.column(counts)

        def slopes() -> tuple[Tensor, Tensor]:
            # Items that do not count weigh 0, and their s is 0, not NaN (`Units.excess`).
            means = (shown.softmax(-1) * s).sum(-1)
            return self.log_slopes(height, log_means, means)

        return Reply(weights, height, slopes)

    @torch.no_grad()
    def _looked_at(
        self, units: Units, weights: Tensor, counts: Tensor | float, learn: bool
    ) -> Tensor | None:
        """The effective sample share, if the watch wants to know it."""
        if not learn or torch.compiler.is_compiling():
            return None
        n = units.target.shape[-1]
        self.watch.size(n)
        if not self.watch.wants(n):
            return None
        share = told.share_of(weights, counts)
        what = "items of each row" if units.rows.ndim else "examples of each batch"
        self.watch.share(share, n if units.mask is None else units.counts().mean(), what)
        return share

    def _metrics(
        self, units: Units, excess: Tensor, visit: Visit, reply: Reply, share: Tensor | None
    ) -> Metrics:
        # Now, not when somebody reads them: a schedule may have moved on by then.
        plane = self.plane_metrics(visit, excess)

        def make() -> dict[str, Tensor]:
            counts = float(excess.shape[-1]) if units.mask is None else units.counts()
            weights = told.weight_metrics(reply.weights, counts, share)
            return {**told.excess_metrics(units.mask, excess), **weights, **plane}

        return Metrics(make)

    def plane_metrics(self, visit: Visit, like: Tensor) -> Metrics:
        """`told.plane_metrics` of this risk, κ as it is now."""
        return told.plane_metrics(visit, self.prior if self.adversary.has_prior else None, like)
