"""Nested risk in anybody's loop: pairs are weighted, too, on top of each anchor's negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steering.contrastive.risk import anchor_risks, reference_risks
from steering.dro.online.row_table import Layout
from steering.items import Units, gathered, own_part
from steering.losses.checks import (
    checked_pairs,
    require_count,
    require_index,
)
from steering.losses.estimate import Estimate
from steering.losses.risk import adversary_of
from steering.schedules import Schedule


class NestedContrastiveLoss(nn.Module):
    """Nested risk: pairs are weighted, too, against those that the reference finds wrong (ours;
    docs/theory.md, "Nested risk").

        criterion = NestedContrastiveLoss(num_examples=len(train_set))
        loss = criterion(image_features, text_features, index, reference_image_features,
        reference_text_features)

    The inner adversary of each anchor weighs its negatives, as in `GlobalContrastiveLoss`; its
    worst case is G_i. The outer one weighs the pairs i by G_i − β·G_i^ref, from the prior q ∝
    exp(−κ·G_i^ref), at the temperature λ. With noisy captions try κ in 2 to 4. λ → ∞ is a soft
    filter over pairs; κ = 0 and λ → ∞ is `GlobalContrastiveLoss`.

    Args:
        num_examples: pairs in the training set, n; the state holds 2n running estimates.
        tau, radius, strength, epsilon, gamma, gamma_decay_epochs, individual_tau,
            individual_tau_lr: of the inner adversaries, see `GlobalContrastiveLoss`. Strength 0
            leaves the reference to the outer adversary.
        tau_min: smallest temperature, inner or outer.
        outer_tau: λ, in units of the cosine; initial value if `outer_radius` is given.
        outer_radius: KL budget over pairs, nats; λ then moves by itself. None: λ stays.
        outer_strength: β, or "auto".
        outer_prior: κ ≥ 0, per unit of the cosine.
        outer_gamma: rate of the outer moving average over calls, in (0, 1]; 1 uses the batch alone.
        layout: of the inner estimates, as in `GlobalContrastiveLoss`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        tau: float | Schedule | None = None,
        radius: float | None = None,
        strength: float | str | Schedule = 0.0,
        epsilon: float | None = None,
        gamma: float | None = None,
        gamma_decay_epochs: int = 0,
        tau_min: float = 0.01,
        individual_tau: bool = False,
        individual_tau_lr: float = 0.01,
        outer_tau: float | Schedule = 1.0,
        outer_radius: float | None = None,
        outer_strength: float | str | Schedule = 1.0,
        outer_prior: float | Schedule = 3.0,
        outer_gamma: float = 1.0,
        layout: Layout | None = None,
    ) -> None:
        super().__init__()
        require_count("num_examples", num_examples)
        self.num_examples = num_examples
        self.inner = adversary_of(
            2 * num_examples,
            "pair",
            layout,
            tau=tau,
            radius=radius,
            strength=strength,
            epsilon=epsilon,
            gamma=gamma,
            gamma_decay_epochs=gamma_decay_epochs,
            tau_min=tau_min,
            individual_tau=individual_tau,
            individual_tau_lr=individual_tau_lr,
        )
        try:
            self.outer = adversary_of(
                1,
                "pair",
                tau=outer_tau,
                radius=outer_radius,
                strength=outer_strength,
                epsilon=0.0,
                gamma=outer_gamma,
                tau_min=tau_min,
                prior=outer_prior,
            )
        except ValueError as error:
            raise ValueError(f"outer_{error}") from error

    def start_epoch(self, epoch: int) -> None:
        """Move the inner γ along its schedule; call with 0, 1, ... at the start of each pass over
        the data."""
        self.inner.start_epoch(epoch)

    def at(self, progress: float) -> None:
        """Move scheduled temperatures, strengths and priors; call with the share of the training
        that is done, in [0, 1], before each step."""
        self.inner.at(progress)
        self.outer.at(progress)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        index: Tensor,
        reference_image: Tensor | None = None,
        reference_text: Tensor | None = None,
    ) -> Tensor:
        """Loss of one batch; arguments and errors as in `GlobalContrastiveLoss`. Without reference
        features both adversaries see the target's losses alone."""
        return self.estimate(image, text, index, reference_image, reference_text).loss

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

        Returns:
            The weights are q of this process's pairs, (b,): which captions are trusted. Over all
            ranks they sum to 1 with `outer_gamma` 1. Metrics of the outer adversary begin with
            "outer_".
        """
        pairs = checked_pairs(image, text, index, reference_image, reference_text)
        require_index(index, self.num_examples)
        # Before the call moves the temperatures: G and G^ref are compared at one τ.
        reference = reference_risks(self.inner, pairs)
        risks, metrics = anchor_risks(self.inner, pairs)
        # One weight for a pair: its caption is wrong for both directions.
        anchors = Units(
            risks.mean(0),
            None if reference is None else reference.mean(0),
            torch.zeros((), dtype=torch.int64, device=risks.device),
        )
        # (37) of docs/theory.md: the outer sum runs over the pairs of all ranks.
        everything = gathered(anchors)
        found = self.outer(everything)
        self.inner.watch.tell()
        self.outer.watch.tell()
        weights = own_part(found.weights, len(image))
        return Estimate(found.loss, weights, metrics | found.metrics.prefixed("outer_"))
