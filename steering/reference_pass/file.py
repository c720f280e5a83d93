"""A file of one loss an example: safetensors, atomic, checksummed, and it knows what it belongs
to."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from glob import escape
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from steering import distributed
from steering.errors import SteeringError
from steering.storage import sha256, write_atomically

_KEY = "steering"


@dataclass(frozen=True)
class Owner:
    """What the losses belong to.

    Attributes:
        weights: digest of the model (`steering.outputs.fingerprint.weights_fingerprint`).
        examples: n.
    """

    weights: str
    examples: int


@dataclass(frozen=True)
class LossFile:
    """Losses on disk, and beside them, until all are there, the part that each rank has found."""

    path: Path
    owner: Owner

    def prepare(self) -> None:
        """Make the folder, and try it: a pass must not end in a file that cannot be written.

        Raises:
            SteeringError: the path is a folder, or nothing can be written there.
        """
        if self.path.is_dir():
            raise SteeringError(
                f"{self.path}: is a folder, expected a file such as {self.path / 'losses.safetensors'}"
            )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):
                pass
        except OSError as error:
            raise SteeringError(f"{self.path}: cannot be written: {error}") from None

    def read(self) -> Tensor | None:
        """What is there, (n,), float32, NaN where nothing is known; None: nothing at all.

        Raises:
            SteeringError: a file belongs to another model or data set, or is damaged.
        """
        found = None
        for path in [self.path, *self._parts()]:
            if path.is_file():
                values = self._read(path)
                found = values if found is None else torch.where(found.isnan(), values, found)
        return found

    def write(self, losses: Tensor) -> None:
        """All of them; the parts go."""
        self._write(self.path, losses)
        for part in self._parts():
            part.unlink(missing_ok=True)

    def write_part(self, losses: Tensor) -> None:
        """What this rank knows so far."""
        self._write(self.path.with_name(f"{self.path.name}.part{distributed.rank()}"), losses)

    def _parts(self) -> list[Path]:
        # Escaped, as a name may hold brackets.
        return sorted(self.path.parent.glob(f"{escape(self.path.name)}.part*"))

    def _write(self, path: Path, losses: Tensor) -> None:
        losses = losses.contiguous()
        about = {
            "weights": self.owner.weights,
            "examples": self.owner.examples,
            "sha256": _digest(losses),
        }
        metadata = {_KEY: json.dumps(about)}
        write_atomically(
            path, lambda temporary: save_file({"losses": losses}, temporary, metadata=metadata)
        )

    def _read(self, path: Path) -> Tensor:
        try:
            with safe_open(path, framework="pt") as opened:
                about = json.loads((opened.metadata() or {})[_KEY])
                losses = opened.get_tensor("losses")
            stored = Owner(about["weights"], about["examples"])
            intact = about["sha256"] == _digest(losses)
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise SteeringError(
                f"{path}: not a file of reference losses ({error}); delete it, or give another file="
            ) from None
        self._require_owner(stored, path)
        if not intact or losses.shape != (self.owner.examples,) or losses.dtype != torch.float32:
            raise SteeringError(f"{path}: is damaged; delete it")
        return losses

    def _require_owner(self, stored: Owner, path: Path) -> None:
        wrong = []
        if stored.weights != self.owner.weights:
            wrong.append(f"weights {stored.weights[:12]}, now {self.owner.weights[:12]}")
        if stored.examples != self.owner.examples:
            wrong.append(f"{stored.examples} examples, now {self.owner.examples}")
        if wrong:
            raise SteeringError(
                f"{path}: holds losses of something else ({'; '.join(wrong)}); delete it, or give "
                "another file="
            )


def _digest(losses: Tensor) -> str:
    return sha256([losses.contiguous().numpy().tobytes()])
