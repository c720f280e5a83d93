"""Several examples behind one another in one row of tokens: their losses, told apart by their
positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steering.errors import SteeringError


def split(
    losses: Tensor,
    counted: Tensor,
    shifted: bool,
    inputs: Mapping[str, Any],
    labels: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of each example, (count,), and how many of its tokens count, (count,).

    Args:
        losses, counted: of the tokens, (rows, T), or (rows, T − 1) if `shifted`: then the first is
            the one that predicts token 1.
        inputs: with "position_ids", "seq_idx" or "cu_seq_lens_q", as `DataCollatorWithFlattening`
            makes them.
        labels: (rows, T).
        count: examples in the batch.

    Raises:
        SteeringError: the batch does not tell its examples apart, or holds another number of them.
    """
    places = _segments(inputs, labels)
    found = None if places is None else int(places.max()) + 1
    if places is None or found != count:
        told = (
            "no position_ids, seq_idx or cu_seq_lens_q"
            if found is None
            else f"{found} examples by its positions"
        )
        raise SteeringError(
            f"a batch of {len(labels)} rows has {count} numbers in 'index' and {told};"
            " packed batches must tell their examples apart"
        )
    if (
        shifted
    ):  # the first token of an example would be predicted by another one: it does not count
        counted = counted & (places[:, 1:] == places[:, :-1])
        places = places[:, 1:]
    flat = places.reshape(-1)
    sums = losses.new_zeros(count).index_add(0, flat, (losses * counted).reshape(-1))
    return sums, losses.new_zeros(count).index_add(0, flat, counted.reshape(-1).to(losses.dtype))


def _segments(inputs: Mapping[str, Any], labels: Tensor) -> Tensor | None:
    """Number of the example that each token belongs to, int64, (rows, T); None if the batch does
    not tell."""
    starts = torch.zeros_like(labels, dtype=torch.bool)
    starts[:, 0] = True
    positions, numbers, bounds = (
        inputs.get(name) for name in ("position_ids", "seq_idx", "cu_seq_lens_q")
    )
    if isinstance(positions, Tensor) and positions.shape == labels.shape:
        starts[:, 1:] = (positions[:, 1:] != positions[:, :-1] + 1).to(labels.device)
    elif isinstance(numbers, Tensor) and numbers.shape == labels.shape:
        starts[:, 1:] = (numbers[:, 1:] != numbers[:, :-1]).to(labels.device)
    elif isinstance(bounds, Tensor) and len(labels) == 1:
        starts[0, bounds.to(labels.device).long()[:-1]] = True
    else:
        return None
    return starts.reshape(-1).long().cumsum(0).reshape(labels.shape) - 1
