"""Checkpoints: data, never code. Written atomically with a checksum; a damaged one is refused, an
older one is used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from steering import distributed
from steering.errors import SteeringError
from steering.storage import file_sha256, write_atomically, write_text

_LOG = logging.getLogger("steering")
_WHOLE = f"step-{'[0-9]' * 9}.pt"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write the state after `step` steps and drop all but the newest `keep` checkpoints."""
    # The new one first: a run that dies between the two lines has one too many, never one too few.
    _save(folder / f"step-{step:09d}.pt", state)
    for stale in folder.glob(".step-*"):  # left by a run that was killed while it wrote
        stale.unlink()
    # Numbers are padded with zeros, so names sort as steps do.
    for old in sorted(folder.glob(_WHOLE))[:-keep]:
        for path in [old, *folder.glob(f"{old.stem}.part-*.pt")]:
            path.unlink()
            path.with_suffix(".sha256").unlink(missing_ok=True)


def save_part(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write what this rank alone holds; before rank 0 writes the rest."""
    _save(
        folder / f"step-{step:09d}.part-{distributed.rank()}-of-{distributed.world_size()}.pt",
        state,
    )


def load_parts(folder: Path, step: int, count: int) -> list[dict[str, Any]]:
    """What `count` ranks wrote with `save_part`, in order; tensors are read from disk when they are
    used."""
    paths = [folder / f"step-{step:09d}.part-{rank}-of-{count}.pt" for rank in range(count)]
    return [torch.load(path, map_location="cpu", weights_only=True, mmap=True) for path in paths]


def _save(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    # The checksum is written last, so a file without one is a file that was not finished.
    write_text(path.with_suffix(".sha256"), file_sha256(path))


def _intact(path: Path) -> bool:
    record = path.with_suffix(".sha256")
    return path.is_file() and record.is_file() and record.read_text() == file_sha256(path)


def load_newest(folder: Path, device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """(step, state) of the newest intact checkpoint, tensors on the CPU or `device`; None when
    there is none.

    A file without its checksum was being written when the run died; one with another checksum is
    damaged. Both are passed over with a warning. Every rank calls this; each checks its share of
    the parts, and all get the same answer.
    """
    for path in sorted(folder.glob(_WHOLE), reverse=True):
        # `weights_only` unpickles tensors and plain values alone, so a file cannot run code.
        state = torch.load(path, map_location=device, weights_only=True) if _intact(path) else None
        count = 0 if state is None else state.get("parts", 0)
        # Hashing is what takes time, so the ranks share it; the number of parts is that of the ranks
        # that wrote, which may have been others.
        mine = range(distributed.rank(), count, distributed.world_size())
        sound = all(_intact(folder / f"{path.stem}.part-{part}-of-{count}.pt") for part in mine)
        # Were one rank to go on from here and another from an older one, they would wait for each other.
        if distributed.agree(state is not None and sound) and state is not None:
            return int(path.stem.removeprefix("step-")), state
        _LOG.warning("checkpoint %s is incomplete or damaged; it is ignored", path)
    return None


def require_same_run(
    folder: Path, stored: dict[str, str], wanted: dict[str, str], config: str | None
) -> None:
    """Raise SteeringError when the run that a folder holds is not the one that is wanted.

    Args:
        stored, wanted: the two identities; the message names both sides of what differs.
        config: the wanted run's YAML, compared with the folder's config.yaml to name the keys that
            differ.
    """
    wrong = [
        f"{key}: {stored.get(key, 'none')[:12]} stored, {value[:12]} wanted"
        for key, value in wanted.items()
        if stored.get(key) != value
    ]
    if wrong:
        # Digests say that something differs, the two configs what.
        kept = folder / "config.yaml"
        if config is not None and kept.is_file():
            wrong += _differences(kept.read_text(encoding="utf-8"), config)
        raise SteeringError(
            f"{folder} holds another run ({'; '.join(wrong)}); set name= or output=, or delete the folder"
        )


def _differences(stored: str, wanted: str) -> list[str]:
    """Dotted keys of two YAML texts whose values differ, with both values."""
    one, other = (_leaves(yaml.safe_load(text), "") for text in (stored, wanted))
    return [
        f"{key}: {one.get(key)} stored, {other.get(key)} wanted"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    ]


def _leaves(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    return {
        leaf: found
        for key, entry in value.items()
        for leaf, found in _leaves(entry, f"{path}.{key}" if path else str(key)).items()
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
