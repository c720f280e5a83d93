"""What every estimator of a dual promises, the memory of those that have one, and when a memory may
change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.row_table import Layout, RowTable

Found = TypeVar("Found")


def learning(module: nn.Module, allowed: bool | None = None) -> bool:
    """Whether a call may change the module's state: in train mode, and with gradients on.

    So a validation loss, in eval mode or under `no_grad`, leaves no trace. Its value is the one
    that a training call would return.

    Args:
        allowed: what a caller found who asked before gradients were switched off; None: ask now.
    """
    return module.training and (torch.is_grad_enabled() if allowed is None else allowed)


def stateful(method: Callable[..., Found]) -> Callable[..., Found]:
    """A method without gradients whose keyword `learn` says if it may write; None is answered
    before they are switched off."""

    @wraps(method)
    def asked(self: nn.Module, *args: Any, learn: bool | None = None, **kwargs: Any) -> Found:
        learn = learning(self, learn)
        with torch.no_grad():
            return method(self, *args, learn=learn, **kwargs)

    return asked


class Estimator(nn.Module, ABC):
    """Takes in the scores of a batch, answers with ratios and ν."""

    @abstractmethod
    def forward(
        self,
        rows: Tensor,
        scores: Tensor,
        mask: Tensor | None,
        sharded: bool = False,
        *,
        learn: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """One batch.

        Args:
            rows: keys in [0, num_rows), int64, (...); each at most once in a batch.
            scores: s = h/τ, (..., n), detached.
            mask: bool, (..., n), True where an item counts; at least one in each row. None: all
                count, which spares the work of a mask.
            sharded: rows differ between the ranks, whose updates are then exchanged (O(rows)
                numbers).
            learn: whether the state may change, see `learning`; if not, the answer is the same and
                nothing is written.

        Returns:
            t, (..., n), zero where masked; their mean over all batches of a row is 1, that of one
            batch need not be. And ν, (...), in units of τ.
        """

    needs_scores = True
    """False if `track` will do."""

    def track(
        self, rows: Tensor, log_g: Tensor, sharded: bool = False, *, learn: bool | None = None
    ) -> Tensor:
        """ν after a batch of which only log û = log mean e^s is known, (...); for KL, whose ν needs
        no more."""
        raise NotImplementedError(f"{type(self).__name__} needs the scores themselves")

    def rescale(self, factor: Tensor) -> None:
        """Every ν that is kept times this factor, (): τ has moved, and ν is in units of τ."""

    @abstractmethod
    def start_epoch(self, epoch: int) -> None:
        """Called with 0, 1, ... at the start of each pass over the data."""


class Remembering(Estimator):
    """An estimator with a running ν for every row, in a buffer of the name `kept` or in `RowTable`."""

    kept: str
    visited: Tensor
    needs_scores = False

    def __init__(self, num_rows: int, kept: str, layout: Layout | None = None) -> None:
        super().__init__()
        require_rows(num_rows)
        self.kept, layout = kept, layout or Layout()
        # `row_table.merged` finds tables in a state dict by this name.
        self.duals = None if layout.plain else RowTable(num_rows, layout)
        if self.duals is None:
            self.register_buffer(kept, torch.zeros(num_rows))
            self.register_buffer("visited", torch.zeros(num_rows, dtype=torch.bool))

    def moved(
        self,
        rows: Tensor,
        log_g: Tensor,
        move: Callable[[Tensor], Tensor],
        sharded: bool,
        learn: bool,
    ) -> Tensor:
        """New ν of these rows, (...), in the dtype of `log_g`: `move` of the kept one, and `log_g` on
        a first visit; kept if `learn`."""
        if self.duals is None and rows.ndim == 0 and in_one_place(rows):
            return self._moved_one(int(rows), log_g, move, learn)
        kept, visited = self.recall(rows, log_g.dtype, sharded)
        # What `move` makes of the 0 of a row that was never visited is a number, and is dropped.
        new = torch.where(visited, move(kept), log_g)
        if learn:
            self.remember(rows, new, sharded)
        return new

    def _moved_one(
        self, row: int, log_g: Tensor, move: Callable[[Tensor], Tensor], learn: bool
    ) -> Tensor:
        """The same for a single row, as a batch of examples has, at a fraction of a scatter's
        cost."""
        place, visited = getattr(self, self.kept)[row], bool(self.visited[row])
        new = move(place.to(log_g.dtype)) if visited else log_g
        if learn:
            place.copy_(new)
        # Every small call counts here: the flag is written once.
        if learn and not visited:
            self.visited[row] = True
        return new

    def recall(self, rows: Tensor, dtype: torch.dtype, sharded: bool) -> tuple[Tensor, Tensor]:
        """ν of these rows, and whether they have been visited, (...)."""
        if self.duals is None:
            table: Tensor = getattr(self, self.kept)
            return picked(table, rows).to(dtype), picked(self.visited, rows)
        values, visited = self.duals.read(rows, sharded)
        return values.to(dtype), visited

    def remember(self, rows: Tensor, new: Tensor, sharded: bool) -> None:
        if self.duals is not None:
            self.duals.write(rows, new, sharded)
            return
        # The table is whole on every rank, so every rank writes the rows of all.
        all_rows, all_new = of_all_ranks(rows, new, sharded)
        table: Tensor = getattr(self, self.kept)
        store(table, all_rows, all_new.to(table.dtype))
        store(self.visited, all_rows, torch.ones_like(all_rows, dtype=torch.bool))

    @torch.no_grad()
    def rescale(self, factor: Tensor) -> None:
        # τ·ν is in the unit of the losses and stays; a −0 that marks a visited row stays −0.
        table = self.get_buffer(self.kept) if self.duals is None else self.duals.table
        table.mul_(factor)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Takes the state of the other layout, too."""
        whole, part = prefix + self.kept, prefix + "duals.part"
        if self.duals is None and part in state_dict:
            if len(state_dict[part]) != len(self.visited):
                raise ValueError(
                    f"{part} has {len(state_dict[part])} rows of {len(self.visited)}; join the ranks' parts"
                )
            # Bits of zero mean "never visited" there, and −0 a zero that is meant. Adding 0 makes 0
            # of −0.
            values = state_dict.pop(part)
            state_dict.pop(prefix + "duals.extent")
            state_dict[prefix + "visited"] = (values != 0) | values.signbit()
            state_dict[whole] = values.to(self.get_buffer(self.kept).dtype) + 0.0
        elif self.duals is not None and whole in state_dict:
            values, visited = state_dict.pop(whole), state_dict.pop(prefix + "visited")
            # The other way round: a visited 0 becomes −0, a row that was never visited 0.
            values = torch.where(values == 0, -torch.zeros_like(values), values)
            state_dict[part] = torch.where(visited, values, 0.0)
            state_dict[prefix + "duals.extent"] = torch.tensor([0, len(values), len(values)])
        super()._load_from_state_dict(state_dict, prefix, *args)


def in_one_place(rows: Tensor) -> bool:
    """Whether this is a single row whose number can be asked for: on a GPU that would wait."""
    return rows.numel() == 1 and rows.device.type == "cpu" and not torch.compiler.is_compiling()


def picked(table: Tensor, rows: Tensor) -> Tensor:
    """A copy of table[rows], (...).

    Written as a selection, because indexing takes a key without axes for a number: a compiler
    cannot follow that, and a GPU would wait for it.
    """
    return table.index_select(0, rows.reshape(-1)).view(rows.shape)


def store(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows] ← values, (k,) both."""
    if in_one_place(rows):
        table[int(rows)].copy_(values[0])
    else:
        table[rows] = values


def of_all_ranks(rows: Tensor, new: Tensor, sharded: bool) -> tuple[Tensor, Tensor]:
    rows, new = rows.reshape(-1), new.reshape(-1)
    return (distributed.gather(rows), distributed.gather(new)) if sharded else (rows, new)


def require_rows(num_rows: int) -> None:
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
