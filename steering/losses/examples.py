"""DRRho on per-example losses, and the soft filter: losses in, one loss out; no trainer, no
config."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from steering.dro.divergences import Divergence
from steering.items import Units, gathered, own_part
from steering.losses.checks import (
    one_row,
    require_count,
    require_index,
    require_number,
)
from steering.losses.estimate import Estimate
from steering.losses.risk import adversary_of
from steering.schedules import Schedule


class DRRho(nn.Module):
    """DRRho risk of per-example losses, estimated from mini-batches (arXiv 2505.06699;
    docs/theory.md).

        steer = DRRho(tau=1.0)
        loss = steer(losses, reference_losses[index])

    The loss's gradient is Σ_i p_i ∇ℓ_i. For KL p_i ∝ q_i·exp((ℓ_i − α·ℓ_ref,i)/τ), normalised by a
    running estimate, with the prior q_i ∝ exp(−κ·ℓ_ref,i). Under an initialised process group the
    adversary sees the batches of all ranks, and averaging parameter gradients over the ranks (what
    DDP does) gives the single-process gradient.

    Args:
        num_examples: size n of the training set. One adversary weighs the examples of a batch, and
            what it remembers does not depend on n: the number is only used to refuse an `index`
            outside [0, n). None: any index.
        unit: what a loss belongs to: "example", "sequence" or "token". It sets what None means for
            `tau`, `epsilon` and `gamma` (`steering.dro.defaults`); losses of tokens may have any
            shape, (b, T) for one.
        divergence: "kl", "chi2" (half chi-square), "cvar" with `level`, "cressie-read" with
            `order`, "tv" (total variation), or an object of `steering.dro`.
        level: share of the examples in CVaR's tail, in (0, 1]; for "cvar" only.
        order: order of the Cressie–Read family, 1 being KL; for "cressie-read" only.
        tau: temperature in nats: towards ∞ plain averaging, towards 0 the worst examples alone. The
            initial value when a `radius` is given. None is 1, and nothing for CVaR, which has no
            temperature. A schedule (`steering.schedules`) moves it with `at`; so it does `strength`
            and `prior`.
        radius: budget of the adversary in the unit of the divergence (nats for KL). The temperature
            then moves by itself, a little with each training call, to where the divergence of the
            weights averages to it; there is nothing to give to an optimiser. None: `tau` stays.
        strength: α ≥ 0, how much of the reference's loss is subtracted; "auto" tracks the α of
            least variance.
        prior: κ ≥ 0 per nat, KL only: the adversary starts from q ∝ exp(−κ·ℓ_ref), so examples that
            the reference finds wrong count less. 0: from equal weights.
        epsilon: ε ≥ 0, the margin of KL: examples whose excess loss is far below τ·ln ε pull no
            more. None is 0.
        estimator: how the normaliser is tracked over batches: "moving_average" or "mirror_descent"
            (both KL), "proximal", "batch" (`steering.dro.online.estimators`); None: by divergence.
        gamma: moving_average: rate in (0, 1]; 1 uses the batch alone. None is 0.9 for examples and
            sequences, 1 for tokens.
        gamma_decay_epochs: moving_average: epochs of the cosine that takes the rate from 1 to
            `gamma`; see `start_epoch`. 0: `gamma` from the start.
        log_alpha: mirror_descent: log of its step.
        step: proximal: step of the second visit, in units of τ; it falls with the square root of
            the visits.
        tau_min: how far a `radius` may take τ down.

    In eval mode, and under `no_grad`, a call leaves no trace in the state: a validation loss may go
    through the same object. If all weight lies on one or two examples for 50 training calls, or the
    radius is more than a batch can spend, one line in the log "steering" says so.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_examples: int | None = None,
        *,
        unit: str = "example",
        divergence: str | Divergence = "kl",
        level: float | None = None,
        order: float | None = None,
        tau: float | Schedule | None = None,
        radius: float | None = None,
        strength: float | str | Schedule = 1.0,
        prior: float | Schedule = 0.0,
        epsilon: float | None = None,
        estimator: str | None = None,
        gamma: float | None = None,
        gamma_decay_epochs: int = 0,
        log_alpha: float = 0.0,
        step: float = 1.0,
        tau_min: float = 1e-4,
    ) -> None:
        super().__init__()
        if num_examples is not None:
            require_count("num_examples", num_examples)
        if unit not in ("example", "sequence", "token"):
            raise ValueError(
                f"unit must be 'example', 'sequence' or 'token', got {unit!r}; "
                "for pairs use GlobalContrastiveLoss"
            )
        self.num_examples, self.unit = num_examples, unit
        self.risk = adversary_of(
            1,
            unit,
            divergence=divergence,
            level=level,
            order=order,
            tau=tau,
            radius=radius,
            strength=strength,
            epsilon=epsilon,
            estimator=estimator,
            gamma=gamma,
            gamma_decay_epochs=gamma_decay_epochs,
            log_alpha=log_alpha,
            step=step,
            tau_min=tau_min,
            prior=prior,
        )

    def start_epoch(self, epoch: int) -> None:
        """Move the rate `gamma` along its schedule; call with 0, 1, ... at the start of each pass
        over the data."""
        self.risk.start_epoch(epoch)

    def at(self, progress: float) -> None:
        """Move τ, α and κ along their schedules; call with the share of the training that is done,
        in [0, 1], before each step."""
        self.risk.at(progress)

    def forward(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of one batch, (), float32 or wider: its value estimates the risk, its gradient
        steers. See `estimate`."""
        return self.estimate(losses, reference_losses, index, mask).loss

    def estimate(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Estimate:
        """Loss, weights and metrics of one batch; a training call like `forward`, so call one of
        the two.

        Args:
            losses: target losses, (b,), nats, with gradient.
            reference_losses: the frozen reference's losses on the same examples, (b,); None for
                plain DRO.
            index: example numbers, int64, (b,). Messages then name the example; nothing else
                depends on them.
            mask: bool, (b,), False where an example does not count (it has no label, say); None:
                all do. Under a process group every rank gives one, or none does.

        Returns:
            The weights are p, ∂loss/∂losses. Over all ranks they sum to 1 with estimator "batch",
            or `gamma` 1, and `epsilon` 0; with a running estimate they do so on average.

        Raises:
            ValueError: shapes differ, the batch is empty, an index is out of range, or a loss that
                counts is not finite (on a GPU the last two are device-side assertions, so that
                nothing waits).
        """
        if index is not None and index.shape == losses.shape:
            require_index(index, self.num_examples)
        if self.risk.adversary.has_prior and reference_losses is None:
            raise ValueError("prior: needs reference_losses, got None")
        units = one_row(losses, reference_losses, mask, index=index, any_shape=self.unit == "token")
        found = self.risk(gathered(units))
        self.risk.watch.tell()
        weights = own_part(found.weights, losses.numel()).view(losses.shape)
        return Estimate(found.loss, weights, found.metrics)


class SoftFilter(nn.Module):
    """The reference as a soft filter: weights q ∝ exp(−κ·ℓ_ref) over the batch of all ranks.

        steer = SoftFilter(prior=1.0)
        loss = steer(losses, reference_losses[index])

    Examples that the reference finds wrong (mislabelled, corrupt) count less; the target's own loss
    plays no part in the weights. It is the limit of `DRRho` as τ → ∞ with the prior κ, and keeps no
    state. For image–text pairs see `NestedContrastiveLoss`, whose `outer_prior` it is.

    Args:
        prior: κ ≥ 0, per nat. 0 is plain training.

    Raises:
        ValueError: κ out of range.

    Source: docs/theory.md, section 12.
    """

    def __init__(self, *, prior: float = 1.0) -> None:
        super().__init__()
        require_number("prior", prior)
        self.prior = prior

    def forward(
        self, losses: Tensor, reference_losses: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Σ_i q_i ℓ_i over the batches of all ranks, (). See `estimate`."""
        return self.estimate(losses, reference_losses, mask).loss

    def estimate(
        self, losses: Tensor, reference_losses: Tensor, mask: Tensor | None = None
    ) -> Estimate:
        """Loss, weights and metrics of one batch.

        Args:
            losses: target losses, (b,), or any shape, item by item; with gradient.
            reference_losses: those of the reference, the same shape.
            mask: bool, the same shape, False where an item does not count.

        Returns:
            The weights are q; over all ranks they sum to 1.

        Raises:
            ValueError: as in `DRRho`, or nothing counts.
        """
        units = gathered(one_row(losses, reference_losses, mask, any_shape=True))
        weights = soft_filter_weights(units, self.prior)
        loss = (weights * units.excess(0.0)).sum()
        own = own_part(weights, losses.numel()).view(losses.shape)
        share = 1 / (weights.square().sum() * units.counts())
        return Estimate(loss, own, {"effective_sample_share": share})


@torch.no_grad()
def soft_filter_weights(units: Units, prior: float) -> Tensor:
    """q ∝ exp(−κ·ℓ_ref) over the items of each row that count, (..., n), zero where masked.

    Raises:
        ValueError: the items have no reference, or a row has none that counts.
    """
    if units.reference is None:
        raise ValueError("prior: needs reference_losses, got None")
    # Refuses a row without items, which would become a NaN.
    units.counts()
    scores = -prior * units.reference
    if units.mask is None:
        return scores.softmax(-1)
    # Not −κ·∞: with κ = 0 that would be NaN.
    return scores.masked_fill(~units.mask, -math.inf).softmax(-1)
