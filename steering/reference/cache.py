"""Reference outputs on disk: one `.npy` per tensor, one row per example, and a record that says what they are.

Rows are read through a memory map, so the files may be far larger than memory: two float32 features of width 512 take 4 KiB
per pair.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.reference.fingerprint import Fingerprint
from steering.risk import Outputs, ReferenceRisk
from steering.storage import file_sha256, write_text

RECORD = "cache.json"
VERIFY_UP_TO = 4 * 2**30  # bytes; hashing more would delay every start by many seconds


class ReferenceCache:
    """A finished cache, opened and checked.

    Args:
        folder: what `build_cache` made.
        wanted: what the run would compute live.

    Raises:
        SteeringError: nothing there, damaged (sizes always, checksums up to 4 GiB), or made for something else.
    """

    def __init__(self, folder: Path, wanted: Fingerprint) -> None:
        record = _read_record(folder)
        Fingerprint(**record["fingerprint"]).require(wanted, f"reference cache {folder}")
        self.folder = folder
        self.seconds: float = record["seconds"]  # what building it took
        self._arrays: dict[str, np.ndarray] = {}
        small = sum(entry["bytes"] for entry in record["files"].values()) <= VERIFY_UP_TO
        for key, entry in record["files"].items():
            path = folder / f"{key}.npy"
            size = path.stat().st_size if path.is_file() else -1
            if size != entry["bytes"] or (small and file_sha256(path) != entry["sha256"]):
                raise SteeringError(
                    f"reference cache {folder} is damaged: {path.name} is not the file that was written; delete it"
                )
            self._arrays[key] = np.load(path, mmap_mode="r", allow_pickle=False)
        self._valid = self._arrays.pop("valid")
        self.missing = int((~self._valid).sum())  # examples that could not be read

    def __len__(self) -> int:
        return len(self._valid)

    def read(self, index: Tensor) -> Outputs:
        """Stored outputs of the examples `index`, int64 (b,), on the CPU."""
        rows = index.cpu().numpy()
        missing = rows[~self._valid[rows]]
        if len(missing):
            raise SteeringError(
                f"reference cache {self.folder} holds nothing for example {missing[0]}, "
                "which could not be read when the cache was built"
            )
        return {key: torch.from_numpy(array[rows]) for key, array in self._arrays.items()}


def _read_record(folder: Path) -> dict:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        Fingerprint(**record["fingerprint"])
        if isinstance(record["seconds"], float) and {"bytes", "sha256"} <= record["files"]["valid"].keys():
            return record
        raise ValueError("checksums or seconds are missing")
    except FileNotFoundError:
        raise SteeringError(f"no reference cache in {folder}; `steering cache CONFIG.yaml` makes it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SteeringError(f"reference cache {folder}: {RECORD} is damaged ({error}); delete the folder") from None


@torch.no_grad()
def build_cache(
    folder: Path,
    risk: ReferenceRisk,
    module: nn.Module,
    batches: Iterator[dict[str, Tensor]],
    data: IndexedData,
    fingerprint: Fingerprint,
    device: torch.device,
) -> None:
    """Run the frozen reference once over the data and write its outputs; every rank writes the batches it is given.

    An unreadable example arrives as another one's number; its own row stays marked as missing. The folder appears under its
    name only when it is complete.

    Raises:
        SteeringError: the folder holds something that is no cache, which is left alone.
    """
    if folder.exists() and not (folder / RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SteeringError(f"reference.cache: {folder} exists and is no reference cache; name another folder")
    module.eval()
    start = time.monotonic()
    partial = folder.with_name(folder.name + ".partial")
    if distributed.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    distributed.barrier()
    arrays: dict[str, np.memmap] = {}
    for batch in batches:
        on_device = {key: value.to(device) for key, value in batch.items()}
        outputs = {key: value.float().cpu().numpy() for key, value in risk.outputs(module, on_device).items()}
        rows = batch["index"].numpy()
        outputs["valid"] = np.ones(len(rows), dtype=bool)
        for key, value in outputs.items():
            if key not in arrays:
                arrays[key] = _open(partial / f"{key}.npy", (len(data), *value.shape[1:]), value.dtype)
            arrays[key][rows] = value
    for array in arrays.values():
        array.flush()
    distributed.barrier()
    if distributed.rank() == 0:
        _finish(partial, folder, sorted(arrays), fingerprint, time.monotonic() - start)
    distributed.barrier()


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """The shared file of one tensor: rank 0 makes it, the others wait for it by a barrier (all ranks open the same keys)."""
    if distributed.rank() == 0:
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape).flush()
    distributed.barrier()
    return np.lib.format.open_memmap(path, mode="r+")


def _finish(partial: Path, folder: Path, keys: list[str], fingerprint: Fingerprint, seconds: float) -> None:
    files = {key: partial / f"{key}.npy" for key in keys}
    record = {
        "fingerprint": asdict(fingerprint),
        "seconds": round(seconds, 2),
        "files": {key: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for key, path in files.items()},
    }
    write_text(partial / RECORD, json.dumps(record, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
