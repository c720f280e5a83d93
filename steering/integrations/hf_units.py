"""What a steer weighs: tokens, sequences or examples, made of the terms of a model's loss.

Rows may be padded, and may hold several sequences behind one another, which positions tell apart.
An *example* is what has a number in "index"; if a collator packs several of them into a row,
there are more numbers than rows.

Legend: rows of T tokens; k terms a row (T, or T − 1 where a token predicts the next one); c
examples in the batch; m items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steering.errors import SteeringError
from steering.integrations.hf_terms import KINDS, Terms

UNITS = ("example", "sequence", "token")


class PerItem(NamedTuple):
    """Losses of the items of one batch.

    Attributes:
        losses: (m,), float32, zero where an item does not count.
        counted: bool, (m,), False where no label of an item counts; None: all do.
        example: position in the batch of the example that an item belongs to, int64, (m,), in
            order; None: item i is example i.
        examples: how many examples the batch holds, c.
    """

    losses: Tensor
    counted: Tensor | None
    example: Tensor | None
    examples: int

    def counts(self) -> Tensor:
        """Which items count, bool, (m,)."""
        if self.counted is not None:
            return self.counted
        return torch.ones_like(self.losses, dtype=torch.bool)

    def owners(self) -> Tensor:
        """Position in the batch of the example of each item, int64, (m,)."""
        if self.example is not None:
            return self.example
        return torch.arange(len(self.losses), device=self.losses.device)

    def to(self, device: torch.device) -> PerItem:
        counted = None if self.counted is None else self.counted.to(device)
        example = None if self.example is None else self.example.to(device)
        return PerItem(self.losses.to(device), counted, example, self.examples)


def require_unit(unit: str) -> None:
    """SteeringError for a unit that is none."""
    if unit not in UNITS:
        raise SteeringError(f"unit: expected one of {', '.join(UNITS)}, got {unit!r}")


def per_item(
    unit: str,
    name: str,
    terms: Terms,
    inputs: Mapping[str, Any],
    labels: Tensor,
    count: int | None,
) -> PerItem:
    """The items of a batch.

    Args:
        unit: one of `UNITS`. A sequence is what `position_ids`, `seq_idx` or `cu_seq_lens_q` tell
            apart, a row where nobody tells; its loss, and an example's, is the mean over its
            tokens that count.
        name: of the loss, one of `KINDS`.
        terms: of that loss, (rows, k).
        labels: (rows, T) for tokens.
        count: numbers in "index", c; None if the batch has none: then each row is an example.

    Raises:
        SteeringError: a unit that this loss does not have, or numbers that fit no row.
    """
    rows = len(labels)
    terms = _without_padding(name, terms, inputs, labels)
    places = segments(inputs, labels) if KINDS[name].of_tokens else None
    _require_fits(unit, name, places, rows, count)
    if count not in (None, rows):
        terms, places = _packed(name, terms, places, rows, count)
        example = places
    elif unit == "sequence" and places is not None:
        terms, places = _inside(name, terms, places)
        example = _row_numbers(terms)
    else:
        places = example = _row_numbers(terms)
    examples = rows if count is None else count
    if unit == "token":
        losses, counted = terms.losses.reshape(-1), terms.counted.reshape(-1)
        return PerItem(losses, counted, example.reshape(-1), examples)
    if places is example:  # every sequence is an example
        return _means(terms, None if examples == rows else places, examples)
    return _of_sequences(terms, places, example, examples)


def segments(inputs: Mapping[str, Any], labels: Tensor) -> Tensor | None:
    """Number of the sequence that each token belongs to, int64, (rows, T), counted through the
    batch; None if the batch does not tell.

    Args:
        inputs: with "position_ids", "seq_idx" or "cu_seq_lens_q", as `DataCollatorWithFlattening`
            makes them.
    """
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


def _without_padding(name: str, terms: Terms, inputs: Mapping[str, Any], labels: Tensor) -> Terms:
    """Without the terms in which padding on the left predicts the first word: with them a loss
    would depend on who else is in the batch."""
    mask = inputs.get("attention_mask")
    if name != "shifted" or not isinstance(mask, Tensor) or mask.shape != labels.shape:
        return terms
    seen = mask[:, :-1].to(labels.device).bool()
    return Terms(terms.losses * seen, terms.counted & seen)


def _packed(
    name: str, terms: Terms, places: Tensor | None, rows: int, count: int | None
) -> tuple[Terms, Tensor]:
    """The terms inside the examples of packed rows, and the example of each, (rows, k)."""
    found = None if places is None else int(places.max()) + 1
    if places is None or found != count:
        told = (
            "no position_ids, seq_idx or cu_seq_lens_q"
            if found is None
            else f"{found} examples by its positions"
        )
        raise SteeringError(
            f"a batch of {rows} rows has {count} numbers in 'index' and {told};"
            " packed batches must tell their examples apart"
        )
    return _inside(name, terms, places)


def _inside(name: str, terms: Terms, places: Tensor) -> tuple[Terms, Tensor]:
    """Without the terms in which a token of one sequence predicts the first one of the next."""
    if name != "shifted":
        return terms, places
    same = places[:, 1:] == places[:, :-1]
    return Terms(terms.losses * same, terms.counted & same), places[:, 1:]


def _require_fits(
    unit: str, name: str, places: Tensor | None, rows: int, count: int | None
) -> None:
    of_tokens = KINDS[name].of_tokens
    if unit != "example" and not of_tokens:
        raise SteeringError(
            f"unit: the loss of this model ({name}) has no tokens, expected 'example', got {unit!r}"
        )
    if not of_tokens and count not in (None, rows):
        raise SteeringError(f"a batch has {rows} rows of labels and {count} numbers in 'index'")
    # Several examples that carry no numbers would be one loss. Left padding has positions that
    # jump, too, but a single row is never padded.
    alone = rows == 1 and count is None and unit == "example"
    if alone and places is not None and int(places.max()) > 0:
        raise SteeringError(
            f"a batch of 1 row holds {int(places.max()) + 1} sequences by its positions, and no"
            " 'index'; set unit='sequence' (or 'token'), or let the collator hand 'index' on"
        )


def _row_numbers(terms: Terms) -> Tensor:
    rows = torch.arange(len(terms.losses), device=terms.losses.device)
    return rows[:, None].expand(terms.losses.shape)


def _means(terms: Terms, places: Tensor | None, count: int) -> PerItem:
    """The mean of each example: of each row, or of the places in packed ones."""
    if places is None:
        sums, counts = terms.losses.sum(-1), terms.counted.sum(-1)
    else:
        sums, counts = _sums(terms, places, count)
    return PerItem(sums / counts.clamp_min(1), counts > 0, None, count)


def _of_sequences(terms: Terms, places: Tensor, example: Tensor, examples: int) -> PerItem:
    """The mean of each sequence, of which an example may hold several."""
    count = int(places.max()) + 1
    sums, counts = _sums(terms, places, count)
    of = places.new_zeros(count).index_copy(0, places.reshape(-1), example.reshape(-1))
    return PerItem(sums / counts.clamp_min(1), counts > 0, of, examples)


def _sums(terms: Terms, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    flat, losses = places.reshape(-1), terms.losses
    sums = losses.new_zeros(count).index_add(0, flat, losses.reshape(-1))
    counts = losses.new_zeros(count).index_add(0, flat, terms.counted.reshape(-1).to(losses.dtype))
    return sums, counts
