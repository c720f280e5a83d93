"""Stored outputs, opened: one `.npy` per tensor, one row per example, and a record that says what
they are.

Rows are read through a memory map, so the files may be far larger than memory: two float32 features
of width 512 take 4 KiB per pair. They are data: a loader's worker reads the rows (`WithOutputs`)
and the batch carries them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.outputs.fingerprint import Fingerprint
from steering.risk import Batch, Outputs
from steering.storage import known_sha256

OUTPUTS = "outputs.json"
VALID = "valid"
VERIFY_UP_TO = 4 * 2**30  # bytes; hashing more would delay every start by many seconds


class Artefact:
    """One kind of stored outputs, opened and checked.

    Args:
        folder: what `build` made.
        wanted: what the outputs must be of.
        kind: see `steering.outputs.kinds`.

    Raises:
        SteeringError: nothing there, damaged (sizes always, checksums up to 4 GiB), or made of
            something else.
    """

    def __init__(self, folder: Path, wanted: Fingerprint, kind: str) -> None:
        about = read_about(folder)
        Fingerprint(**about["fingerprint"]).require(wanted, f"outputs in {folder}")
        if kind not in about["kinds"]:
            raise SteeringError(f"outputs in {folder}: no {kind}, only {', '.join(about['kinds'])}")
        self.folder, self.kind, self.fingerprint = folder, kind, wanted
        self.seconds: float = about["kinds"][kind]["seconds"]  # what computing them took
        self._names: dict[str, str] = {}
        small = sum(entry["bytes"] for entry in about["files"].values()) <= VERIFY_UP_TO
        for name in [*about["kinds"][kind]["tensors"], VALID]:
            entry = about["files"][name]
            path = folder / entry["file"]
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"] or (small and known_sha256(path) != entry["sha256"]):
                raise SteeringError(
                    f"outputs in {folder} are damaged: {path.name} is not the file that was written; delete them"
                )
            self._names[name] = entry["file"]
        self._open()

    def _open(self) -> None:
        self._arrays = {
            name: np.load(self.folder / file, mmap_mode="r", allow_pickle=False)
            for name, file in self._names.items()
        }
        self._valid = np.asarray(self._arrays.pop(VALID))

    def __getstate__(self) -> dict[str, Any]:
        """Without the arrays: a pickled memory map would be all of its rows."""
        return {key: value for key, value in vars(self).items() if key not in ("_arrays", "_valid")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # A worker of a loader maps the files anew.
        self._open()

    def __len__(self) -> int:
        return len(self._valid)

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, (n, ...)."""
        return {name: tuple(array.shape) for name, array in self._arrays.items()}

    def array(self, name: str) -> np.ndarray:
        """A whole tensor, (n, ...), read only, mapped into memory; rows that are not `valid` hold
        nothing."""
        return self._arrays[name]

    @property
    def valid(self) -> np.ndarray:
        """Which examples could be read, bool, (n,)."""
        return self._valid

    def read(self, index: Tensor) -> Outputs:
        """Stored outputs of the examples `index`, int64 (b,), on the CPU."""
        rows = index.cpu().numpy()
        missing = rows[~self._valid[rows]]
        if len(missing):
            raise SteeringError(
                f"outputs in {self.folder}: nothing of example {missing[0]}, which could not be read when they were computed"
            )
        # Indexing by numbers copies the rows, so tensors do not share memory with a read-only map.
        return {key: torch.from_numpy(array[rows]) for key, array in self._arrays.items()}


class WithOutputs(IndexedData):
    """Data whose batches also carry stored outputs, as "<prefix><tensor>".

    Args:
        data: the examples.
        artefact: outputs on the same examples under the same numbers.
        prefix: before the tensors' names.
    """

    def __init__(self, data: IndexedData, artefact: Artefact, prefix: str) -> None:
        if len(data) != len(artefact):
            raise SteeringError(
                f"outputs in {artefact.folder}: {len(artefact)} examples, the data have {len(data)}"
            )
        self.data, self.artefact, self.prefix = data, artefact, prefix

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:
        batch = dict(self.data.batch(index, epoch))
        stored = self.artefact.read(
            batch["index"]
        )  # the numbers delivered: one that is unreadable was replaced
        return batch | {self.prefix + name: value for name, value in stored.items()}

    def group_counts(self, num_groups: int) -> np.ndarray | None:
        return self.data.group_counts(num_groups)

    def fingerprint(self) -> str:
        return self.data.fingerprint()


def open_artefact(folder: Path, kind: str) -> Artefact:
    """Stored outputs as they are, of whatever they were made; SteeringError as in `Artefact`."""
    about = read_about(folder)
    return Artefact(folder, Fingerprint(**about["fingerprint"]), kind)


def read_about(folder: Path) -> dict[str, Any]:
    """The record of stored outputs. Raises SteeringError when there is none, or it is damaged."""
    try:
        about = json.loads((folder / OUTPUTS).read_text(encoding="utf-8"))
        Fingerprint(**about["fingerprint"])
        for entry in about["kinds"].values():
            if (
                not isinstance(entry["seconds"], float)
                or not {*entry["tensors"], VALID} <= about["files"].keys()
            ):
                raise ValueError("a tensor or its seconds are missing")
        return about
    except FileNotFoundError:
        raise SteeringError(f"no outputs in {folder}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SteeringError(
            f"outputs in {folder}: {OUTPUTS} is damaged ({error}); delete the folder"
        ) from None
