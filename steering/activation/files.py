"""Edits as a file: tensors in safetensors, the rest as JSON in its metadata. Data, never code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steering.activation.edits import Edit
from steering.activation.moves import MOVES
from steering.errors import SteeringError
from steering.reading import user_path
from steering.storage import write_atomically


def save_edits(
    path: Path | str, edits: Sequence[Edit], about: Mapping[str, Any] | None = None
) -> None:
    """Write edits; `about` is kept beside them: the model's name, how they were fitted."""
    tensors, plain = {}, []
    for number, edit in enumerate(edits):
        for name, tensor in edit.move.tensors().items():
            tensors[f"{number}/{name}"] = tensor.detach().cpu().contiguous()
        plain.append(
            {
                "layer": edit.layer,
                "move": edit.move.kind,
                "strength": edit.strength,
                "scope": edit.scope,
            }
        )
    text = json.dumps({"edits": plain, "about": dict(about or {})}, sort_keys=True)
    write = partial(_write, tensors, {"steering": text})  # one key: their order would be random
    write_atomically(user_path(path), write)


def load_edits(path: Path | str) -> tuple[list[Edit], dict[str, Any]]:
    """Edits and what was kept beside them.

    Raises:
        SteeringError: no such file, or it holds no edits.
    """
    file = user_path(path)
    try:
        with safe_open(file, framework="pt") as stored:
            metadata = json.loads((stored.metadata() or {})["steering"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        found = []
        for number, one in enumerate(metadata["edits"]):
            own = {
                name.partition("/")[2]: tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{number}/")
            }
            move = MOVES[one["move"]].made(own)
            found.append(Edit(one["layer"], move, one["strength"], one["scope"]))
        return found, metadata["about"]
    except FileNotFoundError:
        raise SteeringError(f"edits: no such file: {file}") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise SteeringError(f"edits: {file} holds no edits of activations: {error}") from error


def _write(tensors: Mapping[str, Any], metadata: dict[str, str], path: Path) -> None:
    save_file(dict(tensors), path, metadata=metadata)
