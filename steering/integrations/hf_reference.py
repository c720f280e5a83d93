"""One pass of a frozen Hugging Face model over a data set: the reference losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from steering.errors import SteeringError
from steering.integrations.hf_losses import ExampleLosses, LossOf
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
) -> Tensor:
    """The frozen reference's loss of every example, (n,), float32, by one pass in eval mode; keep
    it in a file.

    Args:
        model: the reference.
        dataset: items with "index", their own number; in any order.
        collate: list of items -> batch, as the trainer's data_collator.
        losses: as in `SteeringTrainer`; None is the model's own loss, an example at a time.
        label_smoothing: as the target's `label_smoothing_factor`.
        num_examples: n, for a data set without a length.

    Raises:
        SteeringError: numbers outside 0 .. n − 1, missing or there twice; a loss that is not
            finite.
    """
    count = size(dataset) if num_examples is None else num_examples
    if count is None:
        raise SteeringError("reference_losses: the data set has no length; give num_examples=")
    found, seen = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    modes = {module: module.training for module in model.modules()}
    loss_of, tally = LossOf(model, losses, label_smoothing), Tally()
    try:
        model.eval()
        for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate):
            inputs = {key: _moved(value, device) for key, value in batch.items()}
            if "index" not in inputs:
                raise SteeringError(NO_INDEX)
            index = checked_index(inputs.pop("index"), count).cpu()
            values, counted = loss_of(model(**inputs), inputs, len(index))
            found[index] = values.float().cpu()
            seen += index.bincount(minlength=count)
            tally.read += len(index)
            if counted is not None and not counted.all():
                tally.changed["to loss 0, as no label of theirs counts"] += int((~counted).sum())
    finally:
        for module, training in modes.items():
            module.training = training
    _require(found, seen)
    tally.report("reference_losses", "examples", "the data set")
    return found


def _require(found: Tensor, seen: Tensor) -> None:
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
    wrong = (~found.isfinite()).nonzero()
    if len(wrong):
        raise SteeringError(
            f"reference_losses: no finite loss of example {int(wrong[0, 0])}, but {float(found[wrong[0, 0]])}"
            f" ({len(wrong)} of {len(found)} are not finite)"
        )


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
