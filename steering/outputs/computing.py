"""Computing outputs: one pass of a model in eval mode, by all ranks, resumable after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steering import distributed
from steering.outputs.artefact import OUTPUTS, VALID, Artefact, read_about
from steering.outputs.fingerprint import Fingerprint
from steering.outputs.kinds import compute
from steering.risk import ReferenceRisk
from steering.runs.store import readable
from steering.storage import file_sha256, locked, write_text

FLUSH_SECONDS = 10.0
TAKEN = "taken.json"
"""In a partial folder that is complete: what `outputs.json` will say once its files have moved."""

Batches = Callable[[int], Iterator[dict[str, Tensor]]]
"""From a batch number on: this rank's batches, as many on every rank, the examples of all of them
covering the data."""


@dataclass(frozen=True)
class Estimate:
    """What computing outputs would take: bytes on disk, seconds on this machine, examples."""

    bytes: int
    seconds: float
    examples: int


def build(
    root: Path,
    fingerprint: Fingerprint,
    kind: str,
    risk: ReferenceRisk,
    module: nn.Module,
    batches: Batches,
    examples: int,
    device: torch.device,
) -> Artefact:
    """Stored outputs of one kind below `root`, computed if they are not there; every rank writes
    its batches.

    What a pass has computed survives a kill, and the next call goes on from there if it has as many
    ranks. A tensor that another kind has stored already is not stored again. An unreadable example
    arrives as another one's number; its own row stays marked as missing. Two processes that want
    the same wait for each other.
    """
    folder = root / fingerprint.digest()[:12]
    with locked(root / f".{folder.name}.lock") if distributed.rank() == 0 else nullcontext():
        distributed.barrier()  # rank 0 holds the lock
        if distributed.rank() == 0:
            for partial in sorted(folder.glob(".partial-*")):
                if (partial / TAKEN).is_file():  # a kill came between the files
                    _move(folder, partial)
        distributed.barrier()
        # Read behind the lock: whoever held it before may have computed this very kind.
        about = _about(folder, fingerprint)
        if kind not in about["kinds"]:
            module.eval()
            # What a kind is made of is told by a batch alone; a task decides its tensors.
            first = next(batches(0))
            names = [*_arrays(kind, risk, module, first, device)]
            if all(name in about["files"] for name in names):
                # Other kinds have computed them all.
                about["kinds"][kind] = {"tensors": names, "seconds": 0.0}
                if distributed.rank() == 0:
                    write_text(folder / OUTPUTS, json.dumps(about, indent=1) + "\n")
            else:
                missing = [name for name in names if name not in about["files"]]
                seconds = _pass(
                    folder,
                    kind,
                    missing,
                    risk,
                    module,
                    batches,
                    examples,
                    device,
                    len(first["index"]),
                )
                about["kinds"][kind] = {"tensors": names, "seconds": round(seconds, 2)}
                if distributed.rank() == 0:
                    _take_over(folder, about, kind, missing)
        distributed.barrier()
        return Artefact(folder, fingerprint, kind)


def estimate(
    kind: str,
    risk: ReferenceRisk,
    module: nn.Module,
    batches: Batches,
    examples: int,
    steps: int,
    device: torch.device,
) -> Estimate:
    """From two batches, the first of which warms up.

    Args:
        steps: batches of this rank.
    """
    stream: Iterator[dict[str, Tensor]] = batches(0)
    row_bytes, seconds = 0, 0.0
    for batch in islice(stream, 2):
        start = time.monotonic()
        found = _arrays(kind, risk, module, batch, device)
        seconds = time.monotonic() - start
        # A byte more for the mark of what could be read.
        row_bytes = sum(value[:1].nbytes for value in found.values()) + 1
    return Estimate(row_bytes * examples, seconds * steps, examples)


def _about(folder: Path, fingerprint: Fingerprint) -> dict[str, Any]:
    if (folder / OUTPUTS).is_file():
        return read_about(folder)
    return {"schema": 1, "fingerprint": asdict(fingerprint), "kinds": {}, "files": {}}


def _arrays(
    kind: str,
    risk: ReferenceRisk,
    module: nn.Module,
    batch: dict[str, Tensor],
    device: torch.device,
) -> dict[str, np.ndarray]:
    on_device = {key: value.to(device) for key, value in batch.items()}
    return {
        name: value.float().cpu().numpy()
        for name, value in compute(kind, risk, module, on_device).items()
    }


def _pass(
    folder: Path,
    kind: str,
    names: list[str],
    risk: ReferenceRisk,
    module: nn.Module,
    batches: Batches,
    examples: int,
    device: torch.device,
    size: int,
) -> float:
    """Compute the tensors into a folder of their own; returns the seconds that all tries took
    together.

    What a killed try has done counts when it cut the data into the same batches: as many ranks,
    `size` examples each.
    """
    partial = _partial(folder, kind)
    rank, world = distributed.rank(), distributed.world_size()
    progress = [partial / f"done-{r}-of-{world}-by-{size}.json" for r in range(world)]
    begun = all(
        path.is_file() for path in [*progress, *(partial / _file(name) for name in [*names, VALID])]
    )
    # All have looked before rank 0 clears away, and none opens a file before that is done.
    distributed.barrier()
    if rank == 0 and not begun:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    states = [json.loads(path.read_text()) for path in progress] if begun else []
    # Batches that only some ranks have done are done again. They write the same rows once more.
    done = min((state["batches"] for state in states), default=0)
    # The ranks ran side by side, so the longest of them is what it took.
    before = max((state["seconds"] for state in states), default=0.0)
    start = flushed = time.monotonic()
    arrays: dict[str, np.memmap] = {}

    def flush(count: int) -> None:
        # The rows before the number that says how many there are: a kill in between repeats work,
        # and skips none.
        for array in arrays.values():
            array.flush()
        write_text(
            progress[rank],
            json.dumps({"batches": count, "seconds": before + time.monotonic() - start}),
        )

    for count, batch in enumerate(batches(done), done + 1):
        rows = batch["index"].numpy()
        found = {
            name: value
            for name, value in _arrays(kind, risk, module, batch, device).items()
            if name in names
        }
        found[VALID] = np.ones(len(rows), dtype=bool)
        for name, value in found.items():
            if name not in arrays:
                arrays[name] = _open(
                    partial / _file(name), (examples, *value.shape[1:]), value.dtype, begun
                )
            # By the examples' numbers: the ranks write different rows of one file, in any order.
            arrays[name][rows] = value
        if time.monotonic() - flushed > FLUSH_SECONDS:
            flush(count)
            flushed = time.monotonic()
    for array in arrays.values():
        array.flush()
    distributed.barrier()
    return before + time.monotonic() - start


def _partial(folder: Path, kind: str) -> Path:
    return folder / f".partial-{readable(kind)}"


def _file(name: str) -> str:
    return f"{readable(name)}.npy"


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype, begun: bool) -> np.memmap:
    """The shared file of one tensor: rank 0 makes it, the others wait for it by a barrier (all
    ranks open the same keys)."""
    if distributed.rank() == 0 and not (begun and path.is_file()):
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    distributed.barrier()
    return np.lib.format.open_memmap(path, mode="r+")


def _take_over(folder: Path, about: dict[str, Any], kind: str, names: list[str]) -> None:
    """Move finished tensors from their partial folder into the artefact.

    Several files and a record do not change at once. So the record is written beside them before
    the first one moves, and whoever finds it there carries on.
    """
    partial = _partial(folder, kind)
    # An example counts when every pass could read it.
    if VALID in about["files"]:
        valid = np.load(folder / _file(VALID)) & np.load(partial / _file(VALID))
        np.save(partial / _file(VALID), valid)
    wanted = [*names, VALID]
    # A tensor that this pass began, and that another kind has stored since, is not computed to its
    # end here.
    for path in partial.glob("*.npy"):
        if path.name not in map(_file, wanted):
            path.unlink()
    for name in wanted:
        path = partial / _file(name)
        about["files"][name] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
        }
    write_text(partial / TAKEN, json.dumps(about, indent=1) + "\n")
    _move(folder, partial)


def _move(folder: Path, partial: Path) -> None:
    """What `TAKEN` says, whether or not some of it has been done."""
    for path in partial.glob("*.npy"):
        path.replace(folder / path.name)
    # The record comes last: a file that it does not name counts for nothing.
    write_text(folder / OUTPUTS, (partial / TAKEN).read_text())
    shutil.rmtree(partial)
