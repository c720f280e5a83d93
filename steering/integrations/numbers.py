"""The numbers of the examples, and a reference's losses by number: what is checked before one is
looked up by the other."""

from __future__ import annotations

import operator
from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from steering.errors import SteeringError


def checked_index(index: Any, count: int | None) -> Tensor:
    """Example numbers of one batch as int64, (b,).

    Args:
        index: integers of any width, (b,) or (b, 1): a tensor, an array or a list.
        count: how many examples there are, n; None if nobody knows.

    Raises:
        SteeringError: not integers, of another shape, or outside 0 .. n − 1. A negative number
            would wrap around.
    """
    try:
        index = torch.as_tensor(index)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SteeringError(
            f"index: must be integers, one an example, got {type(index).__name__}"
        ) from error
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise SteeringError(f"index: must be integers, one an example, got {index.dtype}")
    if (index.ndim == 2 and index.shape[1] == 1) or index.ndim == 0:
        index = index.reshape(-1)
    if index.ndim != 1 or len(index) == 0:
        raise SteeringError(
            f"index: must be one number an example, (b,), got shape {tuple(index.shape)}"
        )
    index = index.long()
    lowest, highest = (int(x) for x in torch.stack(index.aminmax()).tolist())
    if lowest < 0 or (count is not None and highest >= count):
        wrong = lowest if lowest < 0 else highest
        expected = (
            "0 and up" if count is None else f"0 .. {count - 1}, as there are {count} examples"
        )
        raise SteeringError(
            f"index: example number {wrong} in a batch, expected {expected}; the first example is 0"
        )
    return index


def checked_reference(losses: Any, unit: str = "example") -> Tensor:
    """A reference's losses, (n,), float32, without gradient. For tokens and sequences (n, K) in the
    floating-point type that they have, NaN behind the last of an example.

    Args:
        unit: what they are losses of.

    Raises:
        SteeringError: not numbers, of another shape, or not finite.
    """
    if not isinstance(losses, Tensor):
        try:
            if isinstance(losses, str | bytes) or hasattr(losses, "__fspath__"):
                raise TypeError
            losses = torch.as_tensor(losses)
        except (TypeError, ValueError, RuntimeError) as error:
            hint = (
                "; load a file with torch.load"
                if isinstance(losses, str) or hasattr(losses, "__fspath__")
                else ""
            )
            raise SteeringError(
                f"reference_losses: must be a tensor of numbers, (n,), got {type(losses).__name__}{hint}"
            ) from error
    if unit != "example" and losses.ndim == 2 and losses.is_floating_point():
        return _checked_table(losses.detach())
    expected = {"example": "(n,)", "sequence": "(n,) or (n, K)", "token": "(n, K)"}[unit]
    if losses.ndim != 1 or losses.is_complex() or losses.dtype == torch.bool or unit == "token":
        raise SteeringError(
            f"reference_losses: must be numbers, {expected}, got {losses.dtype} of shape {tuple(losses.shape)}"
        )
    losses = losses.detach().float()
    wrong = ~losses.isfinite()
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        raise SteeringError(
            f"reference_losses: {int(wrong.sum())} of {len(losses)} are not finite, the first is that of example {first}"
        )
    return losses


def _checked_table(losses: Tensor) -> Tensor:
    """(n, K), of which NaN may stand behind the numbers of a row alone."""
    there = ~losses.isnan()
    behind = (there[:, 1:] & ~there[:, :-1]).any(-1) | losses.isinf().any(-1)
    if behind.any():
        raise SteeringError(
            f"reference_losses: {int(behind.sum())} of {len(losses)} rows are not finite up to their last number,"
            f" the first is that of example {int(behind.nonzero()[0, 0])}"
        )
    return losses


def checked_count(steer: Any, reference: Tensor | None, dataset: Any) -> int | None:
    """How many examples there are, n; None if neither `steer` nor the reference nor the data set
    says.

    Raises:
        SteeringError: two of them say something else.
    """
    said = {
        "steer.num_examples": _whole(getattr(steer, "num_examples", None)),
        "reference_losses": None if reference is None else len(reference),
        "train_dataset": None
        if isinstance(dataset, IterableDataset)
        else size(dataset),  # of a stream it is nominal
    }
    known = {name: count for name, count in said.items() if count is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in known.items())
        raise SteeringError(
            f"the numbers of examples differ: {told}; all must be that of the training set, numbered from 0"
        )
    return next(iter(known.values()), None)


def _whole(count: Any) -> int | None:
    try:
        return operator.index(count)
    except TypeError:
        return None


def size(dataset: Any) -> int | None:
    """Number of examples of a data set; None for a stream."""
    if not isinstance(dataset, Sized):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):  # a length that is declared and not there
        return None


def check_column(dataset: Any) -> None:
    """The numbers of a Hugging Face data set, which can be read before the first batch: 0 .. n − 1,
    each once.

    Raises:
        SteeringError: there is no column "index", or other numbers stand in it.
    """
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, list) or size(dataset) is None or _transformed(dataset):
        return
    count = len(dataset)
    if "index" not in names:
        raise SteeringError(
            "train_dataset: no column 'index'; add one: train_dataset.add_column('index', list(range(len(train_dataset))))"
        )
    found = checked_index(list(dataset.with_format(None)["index"]), count)
    seen = found.bincount(minlength=count)
    if (seen != 1).any():
        first = int((seen != 1).nonzero()[0, 0])
        raise SteeringError(
            f"train_dataset: column 'index' must hold each of 0 .. {count - 1} once, and has {first} {int(seen[first])} times"
        )


def _transformed(dataset: Any) -> bool:
    """Whether items are made on the fly, so that the stored columns do not tell what they hold."""
    return (
        isinstance(getattr(dataset, "format", None), dict)
        and dataset.format.get("type") == "custom"
    )
