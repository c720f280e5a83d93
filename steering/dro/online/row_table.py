"""Numbers for every row of a data set, when the rows are many: split over the ranks, in half
precision, or in a file.

With K ranks each owns the rows [k·s, (k+1)·s), s = ⌈rows/K⌉, and nobody holds a copy of the
others'. What a batch needs is fetched from the owners and sent back: O(rows of the batch) numbers,
whatever the size of the table, and without waiting for a GPU. Memory is touched only where a row
has been visited: zero bits mean "never visited", and a zero that is meant is kept as −0.

2·10⁹ examples in two directions are 16 GB in float32 over all ranks, 8 GB in float16.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering import distributed
from steering.reading import user_path

DTYPES = {"float32": torch.float32, "float16": torch.float16}
_BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16}


@dataclass(frozen=True)
class Layout:
    """How a table of running estimates is kept.

    Attributes:
        dtype: "float32", or "float16": 11 significant bits, so a value near 8 is good to 0.004,
            near 100 to 0.03.
        folder: memory-mapped from an unnamed file there (it is gone with the process); None: in
            memory, on the method's device.
        split: over the ranks of the process group that is there when the table is made.

    Raises:
        ValueError: an unknown dtype, or no such folder.
    """

    dtype: str = "float32"
    folder: str | None = None
    split: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"duals must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.folder is not None and not user_path(self.folder).is_dir():
            raise ValueError(f"duals_folder must be a folder that is there, got {self.folder!r}")

    @property
    def plain(self) -> bool:
        """Whether an ordinary buffer will do: whole, float32, in memory."""
        return (
            self.dtype == "float32"
            and self.folder is None
            and not (self.split and distributed.active())
        )


class RowTable(nn.Module):
    """This rank's part of a table of `num_rows` numbers, or rows of `columns` numbers, each row
    known or not.

    `state_dict` holds this part and its place, "extent"; `load_state_dict` takes any part that
    covers it. `merged` joins the parts of several ranks.

    Args:
        num_rows: of the whole table.
        layout: how it is kept.
        columns: numbers of a row, k; 0: a single one, without an axis of its own.
    """

    def __init__(self, num_rows: int, layout: Layout, columns: int = 0) -> None:
        super().__init__()
        ranks = distributed.world_size() if layout.split else 1
        self.num_rows, self.ranks = num_rows, ranks
        self.share = math.ceil(num_rows / ranks)
        # K·⌈rows/K⌉ may be more than there are: the last ranks then own fewer rows, or none.
        self.first = min((distributed.rank() if ranks > 1 else 0) * self.share, num_rows)
        self.count = min(self.share, num_rows - self.first)
        # The last row takes what belongs to others. To leave that out one would have to know how much
        # it is, and a GPU would have to be waited for.
        shape = (self.count + 1, *([columns] if columns else []))
        dtype = DTYPES[layout.dtype]
        self.mapped: Tensor | None = None
        self.values: Tensor
        if layout.folder is None:
            self.register_buffer("values", torch.zeros(shape, dtype=dtype), persistent=False)
        else:
            # Not a buffer: it stays where it is when the module moves.
            self.mapped = _mapped(user_path(layout.folder), math.prod(shape), dtype).view(shape)

    @property
    def table(self) -> Tensor:
        return self.values if self.mapped is None else self.mapped

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """As usual, but half precision, or a file, stays what it is: `double()` and `half()` mean
        the other tensors."""
        before = self.table.dtype
        super()._apply(fn, recurse)
        if self.mapped is None and torch.float16 in (before, self.values.dtype):
            self.values = self.values.to(before)
        return self

    @torch.no_grad()
    def read(self, rows: Tensor, sharded: bool) -> tuple[Tensor, Tensor]:
        """Values, (...) or (..., k), in the table's format, and which rows are known, bool (...).

        Args:
            rows: keys in [0, num_rows), int64, (...).
            sharded: rows differ between the ranks (of the same number on each); else they are the
                same.
        """
        flat = rows.reshape(-1)
        if self.ranks == 1:
            bits = self._bits(flat)
        else:
            # Every owner answers for its own rows and with zeros for the others, so a sum over the
            # ranks is the owner's answer. Of bits, as integers: no rounding, and −0 stays −0.
            wanted = distributed.gather(flat) if sharded else flat
            mine = self._mine(wanted)
            # Clamped into the table: what stands there is dropped in the next line.
            found = self._bits((wanted - self.first).clamp(0, self.count))
            bits = torch.where(mine.view(-1, *[1] * (found.ndim - 1)), found, 0)
            bits = (
                distributed.sum_to_owner(bits) if sharded else distributed.gather(bits[None]).sum(0)
            )
        values, known = bits.to(_BITS[self.table.dtype]).view(self.table.dtype), bits != 0
        known = known if bits.ndim == 1 else known.any(-1)
        return values.reshape(rows.shape + bits.shape[1:]), known.reshape(rows.shape)

    @torch.no_grad()
    def write(self, rows: Tensor, values: Tensor, sharded: bool) -> None:
        """Keep new values of rows, (...) or (..., k); arguments as in `read`. Beyond the format's
        range is its largest number."""
        flat = rows.reshape(-1)
        new = values.reshape(len(flat), *self.table.shape[1:])
        if sharded and distributed.active():
            flat, new = distributed.gather(flat), distributed.gather(new)
        place = torch.where(self._mine(flat), flat - self.first, self.count)
        dtype = self.table.dtype
        # Beyond these float16 has ∞, from which no average comes back.
        if dtype == torch.float16:
            new = new.clamp(-65504.0, 65504.0)
        new = new.to(dtype)
        # Zero bits mean "never visited".
        new = torch.where(new == 0, -torch.zeros_like(new), new)
        self.table[place.to(self.table.device)] = new.to(self.table.device)

    def _mine(self, rows: Tensor) -> Tensor:
        return (rows >= self.first) & (rows < self.first + self.count)

    def _bits(self, place: Tensor) -> Tensor:
        """What stands at these places, int32 or int64 (collectives know no int16), on their
        device."""
        found = self.table[place.to(self.table.device)]
        bits = found.view(_BITS[found.dtype])
        return (bits.int() if bits.dtype == torch.int16 else bits).to(place.device)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Without the row that takes what belongs to others.
        destination[prefix + "part"] = self.table[: self.count]
        destination[prefix + "extent"] = torch.tensor(
            [self.first, self.first + self.count, self.num_rows]
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        missing = args[2]
        part, extent = (
            state_dict.pop(prefix + "part", None),
            state_dict.pop(prefix + "extent", None),
        )
        if part is None or extent is None:
            missing.append(prefix + "part")
            return
        first, stop, num_rows = extent.tolist()
        if num_rows != self.num_rows or first > self.first or stop < self.first + self.count:
            raise ValueError(
                f"duals: rows [{first}, {stop}) of {num_rows} are there, [{self.first}, {self.first + self.count}) of "
                f"{self.num_rows} are wanted; join the parts of all ranks with steering.dro.online.row_table.merged"
            )
        self.table[: self.count].copy_(part[self.first - first : self.first - first + self.count])


def split_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A module's state dict: what every rank holds, and this rank's parts of tables that are
    split."""
    state = module.state_dict()
    split = {
        name
        for name, part in module.named_modules()
        if isinstance(part, RowTable) and part.ranks > 1
    }
    own = {key for key in state if key.rpartition(".")[0] in split}
    return {key: x for key, x in state.items() if key not in own}, {key: state[key] for key in own}


def merged(
    states: Sequence[Mapping[str, Tensor]], module: nn.Module | None = None
) -> dict[str, Tensor]:
    """State dicts of all ranks, in order, as one for another number of ranks.

    Args:
        states: of the same module on each rank.
        module: what will load it; of tables that it splits only its own rows are read. None: all
            tables whole.

    Raises:
        ValueError: a rank is missing.
    """
    found = dict(states[0])
    places = (
        {}
        if module is None
        else {name: part for name, part in module.named_modules() if isinstance(part, RowTable)}
    )
    for key in [key for key in found if key.endswith("duals.extent")]:
        extents, part = (
            [state[key].tolist() for state in states],
            key.removesuffix("extent") + "part",
        )
        gaps = [after[0] != before[1] for before, after in pairwise(extents)]
        rows = extents[0][2]
        if extents[0][0] != 0 or any(gaps) or extents[-1][1] != rows:
            raise ValueError(
                f"{key}: the parts {[tuple(e[:2]) for e in extents]} of {rows} rows leave gaps"
            )
        place = places.get(key.removesuffix(".extent"))
        first, stop = (0, rows) if place is None else (place.first, place.first + place.count)
        # Slices: of parts that are memory-mapped, no other rows are read from the disk.
        pieces = [
            state[part][max(first - begin, 0) : max(stop - begin, 0)]
            for state, (begin, end, _) in zip(states, extents, strict=True)
            if begin < stop and first < end
        ]
        found[part] = torch.cat(pieces or [states[0][part][:0]])
        found[key] = torch.tensor([first, stop, rows])
    return found


def _mapped(folder: Path, size: int, dtype: torch.dtype) -> Tensor:
    """Zeros in a sparse file that has no name any more."""
    handle, name = tempfile.mkstemp(dir=folder, prefix=".duals-")
    try:
        # Sparse: pages that no row has touched take no room, and read as zeros.
        os.ftruncate(handle, size * dtype.itemsize)
        return torch.from_file(name, shared=True, size=size, dtype=dtype)
    finally:
        os.close(handle)
        # The mapping keeps the file alive, and the end of the process, however it comes, frees the
        # disk.
        os.unlink(name)
