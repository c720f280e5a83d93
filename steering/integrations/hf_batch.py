"""From a model's outputs on a micro-batch to the loss that the trainer descends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steering import distributed
from steering.errors import SteeringError
from steering.integrations.hf_frozen import Frozen
from steering.integrations.hf_log import Meter
from steering.integrations.hf_losses import LossOf
from steering.integrations.hf_reference import NO_INDEX
from steering.integrations.hf_steer import Caller, Steered, needs_index
from steering.integrations.hf_units import PerItem
from steering.integrations.numbers import checked_index
from steering.reading import report_once


class Batches:
    """The steered loss of micro-batches, several of which may make a step.

    A step's loss is Σ_m (n_m/N)·R_m: R_m the steer's risk of micro-batch m, over all ranks if the
    steer knows of them, n_m its items that count, and N those of the step. Of a plain mean that is
    the mean over the whole step, whatever the padding. An adversary sees one micro-batch at a time.

    Args:
        steer: from `hf_steer.as_steer`.
        reference: asked for the same items; None: there is none.
        loss_of: the target's.
        count: examples of the training set, n; None if nobody knows.
        device: of the losses.
        must_be_numbered: whether an example without a number is refused.

    Attributes:
        silent: examples seen that had no label that counts.
        meter: what the log has not told yet.
        inside: whether a trainer's step is under way, so that it will divide the losses.
    """

    def __init__(
        self,
        steer: Any,
        reference: Frozen | None,
        loss_of: LossOf,
        count: int | None,
        device: torch.device,
        must_be_numbered: bool,
    ) -> None:
        self.reference, self.loss_of = reference, loss_of
        self.count, self.device = count, device
        self.must_be_numbered = must_be_numbered
        self.silent = 0
        self._steered = Caller(steer)
        self.inside = False
        self._step: list[Mapping[str, Any]] = []  # until N is known
        self._items: int | None = None  # N
        self.meter = Meter()

    # ---- a step ----

    def begin_step(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """The micro-batches that the trainer is about to ask for."""
        self.inside, self._step, self._items = True, list(batches), None

    def end_step(self) -> None:
        """A batch is the whole of its step from now on."""
        self.inside, self._step, self._items = False, [], None

    def loss(self, model: nn.Module, inputs: Mapping[str, Any], parts: int) -> tuple[Tensor, Any]:
        """Loss of one micro-batch, and the model's outputs.

        Args:
            inputs: with "index" if the examples are numbered.
            parts: what the trainer will divide the loss by, if this is a micro-batch of a step.

        Raises:
            SteeringError: a number outside 0 .. n − 1 or none at all, a model whose loss is not one
                of ours.
        """
        index, inputs = self._split(inputs)
        outputs = model(**inputs)
        items = self.loss_of(outputs, inputs, None if index is None else len(index))
        items = items.to(self.device)
        guide = None
        if self.reference is not None:
            guide = self.reference.losses(inputs, items, index).to(self.device)
        self._note_silent(items, index)
        return self._weighed(items, guide, index, parts), outputs

    def _split(self, inputs: Mapping[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
        rest = {key: value for key, value in inputs.items() if key != "index"}
        index = inputs.get("index")
        if index is not None:
            return checked_index(index, self.count).to(self.device), rest
        if self.must_be_numbered:
            raise SteeringError(NO_INDEX)
        return None, rest

    def _weighed(
        self, items: PerItem, guide: Tensor | None, index: Tensor | None, parts: int
    ) -> Tensor:
        """n_m/N of the risk, times what the trainer divides by."""
        own = int(items.counts().sum())
        everywhere, longest = self._of_all_ranks(own, len(items.losses))
        numbers = None if index is None else index[items.owners()]
        if everywhere == 0:
            return items.losses.sum() * 0.0
        if self._steered.takes_mask and (distributed.active() or own < len(items.losses)):
            found, share = self._over_all(items, guide, numbers, longest), everywhere
        elif own == 0:
            return items.losses.sum() * 0.0
        else:  # a mean of this rank's alone: the ranks' are averaged with their counts
            found, share = self._over_own(items, guide, numbers), own * distributed.world_size()
        self._tell(found, items, guide)
        factor = parts * share / self._total(everywhere)
        return found.loss if factor == 1 else found.loss * factor

    def _of_all_ranks(self, own: int, length: int) -> tuple[int, int]:
        """Items that count, over all ranks, and the most that one of them holds."""
        if not distributed.active():
            return own, length
        pairs = distributed.gather(torch.tensor([[own, length]], device=self.device))
        return int(pairs[:, 0].sum()), int(pairs[:, 1].max())

    def _total(self, everywhere: int) -> int:
        """N, over all ranks. Outside of a trainer's step a batch is the whole of it."""
        if self._items is None:
            if len(self._step) < 2:
                return everywhere
            own = sum(self._counted(batch) for batch in self._step)
            self._items, _ = self._of_all_ranks(own, 0)
            self._step = []
        return self._items

    def _counted(self, batch: Mapping[str, Any]) -> int:
        index = batch.get("index")
        return self.loss_of.items(batch, None if index is None else len(index))

    # ---- the steer's call ----

    def _over_all(
        self, items: PerItem, guide: Tensor | None, index: Tensor | None, longest: int
    ) -> Steered:
        """Every rank gathers the same things: as many items on each, marked where they count."""
        losses, mask = items.losses, items.counts()
        missing = longest - len(losses)
        if missing:
            losses, mask = F.pad(losses, (0, missing)), F.pad(mask, (0, missing))
            guide = None if guide is None else F.pad(guide, (0, missing))
            index = None if index is None else F.pad(index, (0, missing))
        return self._steered(losses, guide, index, mask)

    def _over_own(self, items: PerItem, guide: Tensor | None, index: Tensor | None) -> Steered:
        """The items that count alone; all of them as they are, if all do."""
        losses, mask = items.losses, items.counted
        if mask is not None and not mask.all():
            losses = losses[mask]
            guide = None if guide is None else guide[mask]
            index = None if index is None else index[mask]
        return self._steered(losses, guide, index, None)

    def _note_silent(self, items: PerItem, index: Tensor | None) -> None:
        """Tell of examples in which nothing counts."""
        if items.counted is None:
            return
        heard = torch.zeros(items.examples, dtype=torch.int64, device=self.device)
        heard.index_add_(0, items.owners(), items.counted.long())
        silent = (heard == 0).nonzero()[:, 0]
        if len(silent):
            self.silent += len(silent)
            place = int(silent[0])
            who = f"example {int(index[place])}" if index is not None else f"row {place} of a batch"
            report_once(
                f"{who} has no label that counts: it, and others like it, are left out of the loss"
            )

    @torch.no_grad()
    def _tell(self, found: Steered, items: PerItem, guide: Tensor | None) -> None:
        """For the log: the steer's own scalars, and the plain means of what it weighs."""
        self.meter.add(found.metrics)
        counts = items.counts()
        values = {"target_loss": items.losses, "reference_loss": guide}
        for name, losses in values.items():
            if losses is not None:
                mean = losses.masked_fill(~counts, 0.0).sum() / counts.sum().clamp_min(1)
                self.meter.add({name: mean}, counts.sum())


def numbered(steer: Any, stored: Any) -> bool:
    """Whether examples must carry numbers: something is looked up by them."""
    return stored is not None or needs_index(steer)
