"""Steering in anybody's loop: losses in, one loss out; no trainer, no config, state in
`state_dict()`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steering.contrastive.risk import anchor_risks
from steering.dro.defaults import defaults
from steering.dro.divergences import Divergence
from steering.dro.flat import flat_adversary
from steering.dro.online.row_table import Layout
from steering.dro.online.stochastic import StochasticRisk
from steering.items import Pairs, Units, gathered


class DRRho(nn.Module):
    """DRRho risk of per-example losses, estimated from mini-batches (arXiv 2505.06699;
    docs/theory.md).

        steer = DRRho(num_examples=len(train_set), tau=1.0)
        loss = steer(losses, reference_losses[index], index)

    The loss's gradient is Σ_i p_i ∇ℓ_i; for KL p_i ∝ exp((ℓ_i − α·ℓ_ref,i)/τ), normalised by a
    running estimate. Under an initialised process group the adversary sees the batches of all
    ranks, and averaging parameter gradients over the ranks (what DDP does) gives the single-process
    gradient.

    Args:
        num_examples: size n of the training set; indices lie in [0, n).
        divergence: "kl", "chi2" (half chi-square), "cvar" with `level`, "cressie-read" with
            `order`, "tv" (total variation), or an object of `steering.dro`.
        tau: temperature in nats; towards ∞ plain averaging, towards 0 the worst examples alone. The
            initial value when a `radius` is given. None is 1, and nothing for CVaR, which has no
            temperature.
        radius: budget of the adversary in the unit of the divergence (nats for KL): the temperature
            then moves by itself, a little with each training call, to where the divergence of the
            weights averages to it (`steering.dro.online.solved_temperature.SolvedTemperature`). There is nothing
            to give to an optimiser. None: `tau` stays.
        strength: α, how much of the reference's loss is subtracted; "auto" tracks the α of least
            variance.
        options: `level` of CVaR; `order` of Cressie–Read; `epsilon` ≥ 0, the margin of KL: examples
            whose excess loss is far below τ·ln ε pull no more; `estimator` and its `gamma` (rate of
            the moving average, default 0.9; 1 uses the batch alone), `log_alpha` or `step`: see
            `steering.dro.online.estimators`; `tau_min`, how far a radius may take τ down.

    In eval mode, and under `no_grad`, a call leaves no trace in the state: a validation loss may go
    through the same object. If all weight lies on one or two examples for 50 training calls, or the
    radius is more than a batch can spend, one line in the log "steering" says so.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        divergence: str | Divergence = "kl",
        tau: float | None = None,
        radius: float | None = None,
        strength: float | str = 1.0,
        **options: Any,
    ) -> None:
        super().__init__()
        _require_positive(num_examples)
        self.num_examples = num_examples
        adversary = flat_adversary(
            divergence=divergence,
            tau=tau,
            radius=radius,
            strength=strength,
            **{"tau_min": 1e-4, **options},
        )
        self.risk = StochasticRisk(1, adversary.for_unit("example"), solve_tau=True)

    def forward(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """One batch.

        Args:
            losses: target losses, (b,), nats, with gradient.
            reference_losses: the frozen reference's losses on the same examples, (b,); None for
                plain DRO.
            index: example numbers, int64, (b,).
            mask: bool, (b,), False where an example does not count (it has no label, say); None:
                all do. Under a process group every rank gives one, or none does.

        Returns:
            Scalar, float32 or wider: its value estimates the risk, its gradient steers.

        Raises:
            ValueError: shapes differ, the batch is empty, an index or a loss is out of range or not
                finite (on a GPU the last two are device-side assertions, so that nothing waits).
        """
        self._check(losses, reference_losses, index)
        reference = None if reference_losses is None else _wide(reference_losses.detach())
        rows = torch.zeros((), dtype=torch.int64, device=losses.device)
        loss = self.risk(gathered(Units(_wide(losses), reference, rows, mask))).loss
        self.risk.watch.tell()
        return loss

    def _check(self, losses: Tensor, reference: Tensor | None, index: Tensor) -> None:
        if losses.ndim != 1 or len(losses) == 0:
            raise ValueError(
                f"losses must be (b,) with b ≥ 1, got {tuple(losses.shape)}; use reduction='none'"
            )
        if reference is not None and reference.shape != losses.shape:
            raise ValueError(
                f"reference_losses must be {tuple(losses.shape)}, got {tuple(reference.shape)}"
            )
        if index.shape != losses.shape:
            raise ValueError(f"index must be {tuple(losses.shape)}, got {tuple(index.shape)}")
        _require_index(index, self.num_examples)
        _require(torch.isfinite(losses.detach()), index, "losses: not finite")
        if reference is not None:
            _require(torch.isfinite(reference), index, "reference_losses: not finite")


class GlobalContrastiveLoss(nn.Module):
    """The global contrastive risk with a reference: DRRho-CLIP's loss (arXiv 2505.06699); without
    one FastCLIP's.

        criterion = GlobalContrastiveLoss(num_examples=len(train_set), tau=0.07)
        loss = criterion(image_features, text_features, index, reference_image_features,
        reference_text_features)

    Every image is an anchor whose adversary reweights the texts of the batch, and every text one
    over the images; the mean of both directions is returned. Works under DDP: features are gathered
    from all ranks, with gradient.

    Args:
        num_examples: pairs in the training set, n; the state holds 2n running estimates.
        tau: temperature in units of the cosine; initial value if `radius` is given.
        radius, strength, epsilon: see `DRRho`; so is what happens in eval mode, and what is told.
        gamma: final rate of the moving average over visits, in (0, 1]; `start_epoch` moves it there
            from 1.
        gamma_decay_epochs: epochs of that cosine; 0: `gamma` from the start.
        individual_tau: with a radius, a temperature for every image and every text, in [0.01, 1].
            They move by an Adam of their own (`steering.dro.online.individual_temperatures`) whenever `forward` sees
            them: there is nothing to give to an optimiser.
        individual_tau_lr: step of that Adam, in the unit of τ.
        layout: how the estimates are kept (`steering.dro.online.row_table.Layout`): in half precision, in a
            file, split over the ranks. If they are split, each rank's `state_dict` holds its own
            part; `steering.dro.online.row_table.merged` joins them. None: whole.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        tau: float = defaults("pair").tau,
        radius: float | None = None,
        strength: float | str = 1.0,
        epsilon: float = defaults("pair").epsilon,
        gamma: float = defaults("pair").gamma,
        gamma_decay_epochs: int = 0,
        individual_tau: bool = False,
        individual_tau_lr: float = 0.01,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        _require_positive(num_examples)
        self.num_examples = num_examples
        layout = layout or Layout()
        adversary = flat_adversary(
            tau=tau,
            radius=radius,
            strength=strength,
            epsilon=epsilon,
            gamma=gamma,
            gamma_decay_epochs=gamma_decay_epochs,
            individual_tau=individual_tau,
            individual_tau_lr=individual_tau_lr,
            duals=layout.dtype,
            duals_folder=layout.folder,
        )
        self.risk = StochasticRisk(2 * num_examples, adversary, solve_tau=True, split=layout.split)

    def start_epoch(self, epoch: int) -> None:
        """Move γ along its schedule; call with 0, 1, ... at the start of each pass over the
        data."""
        self.risk.start_epoch(epoch)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        index: Tensor,
        reference_image: Tensor | None = None,
        reference_text: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch.

        Args:
            image, text: unit-norm features, (b, d) each, with gradient; at least 2 pairs over all
                ranks, as many on each.
            index: example numbers, int64, (b,). If one is there twice, which of its two new
                estimates stays is left open.
            reference_image, reference_text: the frozen reference's features of the same pairs, (b,
                d′); both or neither.

        Raises:
            ValueError: as in `DRRho`.
        """
        pairs = Pairs(_wide(image), _wide(text), index, reference_image, reference_text)
        _require_index(index, self.num_examples)
        for name in ("image", "text", "reference_image", "reference_text"):
            if (features := getattr(pairs, name)) is not None:
                _require(torch.isfinite(features.detach()).all(-1), index, f"{name}: not finite")
        loss = anchor_risks(self.risk, pairs)[0].mean()
        self.risk.watch.tell()
        return loss


def _wide(x: Tensor) -> Tensor:
    """At least float32, whatever autocast made of it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _require_positive(num_examples: int) -> None:
    if num_examples < 1:
        raise ValueError(f"num_examples must be at least 1, got {num_examples}")


def _require_index(index: Tensor, num_examples: int) -> None:
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64, got {index.dtype}")
    _require((index >= 0) & (index < num_examples), index, f"index: outside [0, {num_examples})")


def _require(ok: Tensor, index: Tensor, what: str) -> None:
    if ok.device.type != "cpu":
        torch._assert_async(ok.all(), what)
    elif not ok.all():
        place = int((~ok).nonzero()[0, 0])
        raise ValueError(f"{what} at position {place} of the batch (example {int(index[place])})")
