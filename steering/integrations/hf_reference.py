"""One pass of a frozen Hugging Face model over a data set: the reference losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from steering.errors import SteeringError
from steering.integrations.hf_losses import ExampleLosses, LossOf
from steering.integrations.hf_units import PerItem, require_unit
from steering.integrations.numbers import checked_index, size
from steering.reading import Tally

NO_INDEX = (
    "a batch has no 'index': every item of the data set must carry its own number, 0 .. n − 1, and the collator hand it on"
    " (a trainer that drops columns needs remove_unused_columns=False)"
)


@torch.no_grad()
def reference_losses(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Any]],
    batch_size: int = 32,
    losses: ExampleLosses | None = None,
    *,
    label_smoothing: float = 0.0,
    num_examples: int | None = None,
    unit: str = "example",
) -> Tensor:
    """The frozen reference's losses, float32, by one pass in eval mode; keep them in a file.

    Args:
        model: the reference.
        dataset: items with "index", their own number; in any order.
        collate: list of items -> batch, as the trainer's data_collator.
        losses: as in `SteeringTrainer`; None is the model's own loss, an example at a time.
        label_smoothing: as the target's `label_smoothing_factor`.
        num_examples: n, for a data set without a length.
        unit: as in `SteeringTrainer`.

    Returns:
        (n,), the loss of every example. For tokens and sequences (n, K): of each example the losses
        of its items that count, in order, and NaN behind the last; K is the most that one has. The
        side of padding, its length and packing may be others in training; the labels may not.

    Raises:
        SteeringError: numbers outside 0 .. n − 1, missing or there twice; a loss that is not
            finite; a unit that the model's loss does not have.
    """
    require_unit(unit)
    count = size(dataset) if num_examples is None else num_examples
    if count is None:
        raise SteeringError("reference_losses: the data set has no length; give num_examples=")
    found, seen = [torch.zeros(0)] * count, torch.zeros(count, dtype=torch.int64)
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    modes = {module: module.training for module in model.modules()}
    loss_of, tally = LossOf(model, losses, label_smoothing, unit), Tally()
    try:
        model.eval()
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate):
            inputs = {key: _moved(value, device) for key, value in batch.items()}
            if "index" not in inputs:
                raise SteeringError(NO_INDEX)
            index = checked_index(inputs.pop("index"), count).cpu()
            items = loss_of(model(**inputs), inputs, len(index)).to(torch.device("cpu"))
            for number, part in zip(index.tolist(), _by_example(items), strict=True):
                found[number] = part
                if not len(part):
                    tally.changed["to loss 0, as no label of theirs counts"] += 1
            seen += index.bincount(minlength=count)
            tally.read += len(index)
    finally:
        for module, training in modes.items():
            module.training = training
    _require(found, seen)
    tally.report("reference_losses", "examples", "the data set")
    return _table(found, unit)


def _by_example(items: PerItem) -> list[Tensor]:
    """Losses of the items that count, apart by example, c of (k,)."""
    counts = items.counts()
    per_example = torch.zeros(items.examples, dtype=torch.int64)
    per_example.index_add_(0, items.owners(), counts.long())
    return list(items.losses.float()[counts].split(per_example.tolist()))


def _table(found: list[Tensor], unit: str) -> Tensor:
    """(n,), zero without an item; or (n, K), NaN where an example has fewer."""
    if unit == "example":
        return torch.cat([part if len(part) else torch.zeros(1) for part in found])
    return pad_sequence(found, batch_first=True, padding_value=math.nan)


def _require(found: list[Tensor], seen: Tensor) -> None:
    twice, never = (seen > 1).nonzero(), (seen == 0).nonzero()
    if len(never) or len(twice):
        told = (
            f", and {int(twice[0, 0])} is there {int(seen[twice[0, 0]])} times"
            if len(twice)
            else ""
        )
        place = (
            f"no finite loss of example {int(never[0, 0])}"
            if len(never)
            else "more items than numbers"
        )
        raise SteeringError(
            f"reference_losses: {place}; 'index' must be 0 .. {len(found) - 1}, each once{told}"
        )
    wrong = [number for number, part in enumerate(found) if not part.isfinite().all()]
    if wrong:
        part = found[wrong[0]]
        raise SteeringError(
            f"reference_losses: no finite loss of example {wrong[0]}, but {float(part[~part.isfinite()][0])}"
            f" ({len(wrong)} of {len(found)} are not finite)"
        )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
