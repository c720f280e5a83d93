"""The global contrastive risk in anybody's loop: DRRho-CLIP, and FastCLIP without a reference."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from steering import distributed
from steering.contrastive.naive import negatives
from steering.contrastive.risk import anchor_keys, anchor_risks, needs_all_losses
from steering.dro.divergences import Divergence
from steering.dro.online.estimators import ProximalDual
from steering.dro.online.row_table import Layout
from steering.items import Pairs
from steering.losses.checks import checked_pairs, require_count, require_index
from steering.losses.estimate import Estimate
from steering.losses.risk import adversary_of
from steering.schedules import Schedule


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
        tau: temperature in units of the cosine; initial value if `radius` is given. None: 0.07.
        radius, strength: see `DRRho`; so is what happens in eval mode, and what is told.
        divergence, level, order, prior: see `DRRho`; what they shape here is each anchor's
            adversary over its negatives. Other divergences than KL, and a prior, write all B²
            losses of a batch down.
        epsilon: ε ≥ 0, the margin of KL: an anchor lets go once its excess losses are below τ·ln ε.
            None: 1e-4 for KL, else 0.
        estimator, log_alpha, step: how an anchor's dual is tracked over its visits, see `DRRho`.
            None: by divergence.
        gamma: final rate of the moving average over visits, in (0, 1]; `start_epoch` moves it there
            from 1. None: 1, the batch alone.
        gamma_decay_epochs: epochs of that cosine; 0: `gamma` from the start.
        tau_min: how far a `radius` may take τ down.
        individual_tau: with a radius, a temperature for every image and every text, in [tau_min,
            1]. They move by an Adam of their own whenever `forward` sees them: there is nothing to
            give to an optimiser.
        individual_tau_lr: step of that Adam, in the unit of τ.
        layout: how the estimates are kept (`steering.dro.online.row_table.Layout`): in half
            precision, in a file, split over the ranks. If they are split, each rank's `state_dict`
            holds its own part; `steering.dro.online.row_table.merged` joins them. None: whole. Those of
            the proximal point are always whole.

    Raises:
        ValueError: an argument out of range, or two that do not fit: a divergence without τ and a
            `tau`, `epsilon` or `prior` with another divergence than KL, an estimator that does not
            work for the divergence, a `layout` for the proximal point.
    """

    def __init__(
        self,
        num_examples: int,
        *,
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
        tau_min: float = 0.01,
        individual_tau: bool = False,
        individual_tau_lr: float = 0.01,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        require_count("num_examples", num_examples)
        self.num_examples = num_examples
        self.risk = adversary_of(
            2 * num_examples,
            "pair",
            layout,
            divergence=divergence,
            level=level,
            order=order,
            tau=tau,
            radius=radius,
            strength=strength,
            prior=prior,
            epsilon=epsilon,
            estimator=estimator,
            gamma=gamma,
            gamma_decay_epochs=gamma_decay_epochs,
            log_alpha=log_alpha,
            step=step,
            tau_min=tau_min,
            individual_tau=individual_tau,
            individual_tau_lr=individual_tau_lr,
        )
        # Better refused than whole in memory where somebody counted on its parts.
        if layout not in (None, Layout()) and isinstance(self.risk.estimator, ProximalDual):
            raise ValueError(
                "layout must be None for the estimator 'proximal', whose state is always whole and "
                f"in memory, got {layout}"
            )

    def start_epoch(self, epoch: int) -> None:
        """Move γ along its schedule; call with 0, 1, ... at the start of each pass over the
        data."""
        self.risk.start_epoch(epoch)

    def at(self, progress: float) -> None:
        """Move scheduled temperatures, strengths and priors; call with the share of the training
        that is done, in [0, 1], before each step."""
        self.risk.at(progress)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        index: Tensor,
        reference_image: Tensor | None = None,
        reference_text: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch, in memory linear in its size for KL without a prior.

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
        pairs = self._pairs(image, text, index, reference_image, reference_text)
        return self._risks(pairs)[0].mean()

    def estimate(
        self,
        image: Tensor,
        text: Tensor,
        index: Tensor,
        reference_image: Tensor | None = None,
        reference_text: Tensor | None = None,
    ) -> Estimate:
        """Loss, weights and metrics of one batch; a training call like `forward`, so call one of
        the two.

        The loss is that of `forward`, to the bit. The weights are written out, B² numbers over all
        ranks, which `forward` does not do for KL: call it now and then, for a plot.

        Returns:
            The weights are p_ij of this process's anchors, (2, b, B), images first; the item j of
            an image is the text of pair j of the global batch. Zero at the anchor's own pair. A row
            sums to u/(ε + u): 1 without a margin.
        """
        pairs = self._pairs(image, text, index, reference_image, reference_text)
        if needs_all_losses(self.risk):
            per_anchor, weights, told = self.risk.per_row(negatives(pairs))
            self.risk.watch.tell()
            return Estimate(per_anchor.mean(), weights, told)
        # The τ of this batch, which moves in the next line.
        tau = self.risk.temperature.read(anchor_keys(pairs), distributed.active())
        risks, metrics = self._risks(pairs)
        # log(ε + u) from the risk τ·(log(ε + u) + R): what the blocks do not hand out.
        height = risks.detach() / tau - self.risk.radius
        weights = _anchor_weights(pairs, tau, height, metrics["strength"])
        return Estimate(risks.mean(), weights, metrics)

    def _pairs(
        self, image: Tensor, text: Tensor, index: Tensor, *reference: Tensor | None
    ) -> Pairs:
        pairs = checked_pairs(image, text, index, *reference)
        require_index(index, self.num_examples)
        return pairs

    def _risks(self, pairs: Pairs) -> tuple[Tensor, Mapping[str, Tensor]]:
        found = anchor_risks(self.risk, pairs)
        self.risk.watch.tell()
        return found


@torch.no_grad()
def _anchor_weights(pairs: Pairs, tau: Tensor, height: Tensor, strength: Tensor) -> Tensor:
    """exp(h/τ − log(ε + u))/(B − 1) of every negative, (2, b, B); the B² numbers at once."""
    units = negatives(pairs)
    scores = units.excess(strength) / tau[..., None] - height[..., None]
    weights = scores.exp() / units.counts()[..., None]
    return weights if units.mask is None else weights.masked_fill(~units.mask, 0.0)
