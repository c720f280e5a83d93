"""Where the reference's losses of a batch come from: a table of the whole set, or the frozen model
itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, Trainer

from steering.errors import SteeringError
from steering.integrations.hf_losses import LossOf, bare
from steering.integrations.hf_units import PerItem


class Frozen(Protocol):
    """A reference, asked batch by batch."""

    def losses(self, inputs: Mapping[str, Any], items: PerItem, index: Tensor | None) -> Tensor:
        """Losses of the same items, (m,), without gradient; anything where one does not count.

        Args:
            inputs: of the target.
            items: what the target has made of them.
            index: number of each example, int64, (c,); None if the data have none.
        """
        ...


class Stored:
    """Losses of every example, made beforehand by `reference_losses`.

    Args:
        table: (n,), one an example; (n, K), those of the items of each example that count, in
            order, NaN behind the last. It stays where it is; a batch's rows are moved.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def losses(
        self,
        inputs: Mapping[str, Any],  # noqa: ARG002
        items: PerItem,
        index: Tensor | None,
    ) -> Tensor:
        """See `Frozen`.

        Raises:
            SteeringError: an example with another number of items that count.
        """
        if index is None:
            raise SteeringError("reference_losses: are looked up by 'index', and a batch has none")
        device = items.losses.device
        rows = self.table[index.to(self.table.device)].to(device)  # (c,) or (c, K)
        if rows.ndim == 1 and items.example is None:
            return rows
        rows = rows.reshape(len(rows), -1)  # (c, K)
        owners, counts = items.owners(), items.counts().long()
        here = counts.new_zeros(len(rows)).index_add(0, owners, counts)
        self._require_same(rows, here, index)
        # The place of an item among those of its example that count: independent of padding, of
        # its side, and of packing.
        place = counts.cumsum(0) - 1 - (here.cumsum(0) - here)[owners]
        found = rows[owners, place.clamp(0, rows.shape[1] - 1)]
        return found.masked_fill(counts == 0, 0.0).float()

    def _require_same(self, rows: Tensor, here: Tensor, index: Tensor) -> None:
        stored = (~rows.isnan()).sum(-1)
        wrong = stored != here
        if wrong.any():
            place = int(wrong.nonzero()[0, 0])
            raise SteeringError(
                f"reference_losses: example {int(index[place])} has {int(here[place])} items that count, and"
                f" {int(stored[place])} are stored: another tokenizer, template, unit or random labels; make them anew,"
                " or give ref_model="
            )


class Live:
    """The frozen model, run beside the target on the same inputs.

    Its parameters are frozen for good: no gradient, eval mode. Accelerate moves it to the device of
    this process and gives it the run's mixed precision, but wraps it in nothing.

    Args:
        model: the reference, or a name or folder of `from_pretrained`.
        like: the target's losses, which say what an item is.
        trainer: whose accelerator prepares it.

    Raises:
        SteeringError: it is the target itself or shares parameters with it; it cannot be loaded.
    """

    def __init__(self, model: Any, like: LossOf, trainer: Trainer) -> None:
        loaded = model if isinstance(model, nn.Module) else _loaded(model)
        _require_apart(loaded, like.model)
        loaded.requires_grad_(False)
        self.model: nn.Module = trainer.accelerator.prepare_model(
            loaded.to(trainer.args.device).eval(), evaluation_mode=True
        )
        self.loss_of = LossOf(self.model, like.custom, like.smoothing, like.unit)
        self._target = like

    @torch.no_grad()
    def losses(
        self,
        inputs: Mapping[str, Any],
        items: PerItem,
        index: Tensor | None,
    ) -> Tensor:
        """See `Frozen`.

        Raises:
            SteeringError: its loss is of another kind than the target's.
        """
        self.model.eval()  # somebody may have called .train() on what is theirs
        count = None if index is None else len(index)
        found = self.loss_of(self.model(**inputs), inputs, count)
        if self.loss_of.kind != self._target.kind or found.losses.shape != items.losses.shape:
            raise SteeringError(
                f"ref_model: {type(bare(self.model)).__name__} has another kind of loss ({self.loss_of.kind}) than the"
                f" target ({self._target.kind})"
            )
        return found.losses.detach()


def require_one(ref_model: Any, reference_losses: Any) -> None:
    """SteeringError if the reference is given twice, or is no model."""
    if ref_model is None:
        return
    if reference_losses is not None:
        raise SteeringError("ref_model and reference_losses: give one of them")
    if not isinstance(ref_model, nn.Module | str) and not hasattr(ref_model, "__fspath__"):
        raise SteeringError(
            f"ref_model: expected a model, a folder or a name, got {type(ref_model).__name__}"
        )


def _loaded(name: Any) -> nn.Module:
    """The model of a folder or of the hub, of the class that its config names."""
    try:
        config = AutoConfig.from_pretrained(name)
        [architecture, *_] = config.architectures or [""]
        kind = getattr(transformers, architecture, None)
        if kind is None:
            raise SteeringError(
                f"ref_model: {name}: its config names no class of transformers ({architecture or 'none'}); load it yourself"
            )
        return kind.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SteeringError(f"ref_model: {name}: {' '.join(str(error).split())}") from error


def _require_apart(reference: nn.Module, target: nn.Module) -> None:
    if bare(reference) is bare(target):
        raise SteeringError("ref_model: is the model that is trained; give a copy of it")
    theirs = {id(parameter): name for name, parameter in target.named_parameters()}
    for parameter in reference.parameters():
        if id(parameter) in theirs:
            raise SteeringError(
                f"ref_model: shares the parameter {theirs[id(parameter)]} with the model that is trained; give a copy of it"
            )
