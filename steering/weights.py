"""A model's weights in a file: safetensors, data and never code, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from steering.errors import SteeringError
from steering.reading import user_path
from steering.storage import write_atomically


def save_weights(
    path: Path, module: nn.Module, about: dict[str, str], instead: Mapping[str, float] | None = None
) -> None:
    """A model's state dict as safetensors; the strings are its metadata "steering", as JSON.

    Args:
        instead: numbers that fill tensors of these names in the file, where the model has such.
    """
    metadata = {
        "steering": json.dumps(about, sort_keys=True)
    }  # one key: safetensors writes several in random order
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
    }
    for name, number in (instead or {}).items():
        if name in tensors:
            tensors[name].fill_(number)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load `save_weights`'s file into a module of the same architecture.

    Raises:
        SteeringError: no such file, not safetensors, or other tensors than the module's; the first
            difference is named.
    """
    path = user_path(path)
    if path.is_dir():
        raise SteeringError(
            f"checkpoint: {path} is a folder; expected a file such as {path / 'model.safetensors'}"
        )
    if not path.is_file():
        raise SteeringError(f"checkpoint: no such file: {path}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise SteeringError(
            f"checkpoint: {path} is not a readable safetensors file: {error}"
        ) from error
    # All names are compared before anything is loaded: half a model would be worse than none.
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors or name not in wanted:
            where = (
                "the model but not in the file"
                if name in wanted
                else "the file but not in the model"
            )
            raise SteeringError(
                f"checkpoint: {path} belongs to another architecture: {name} is in {where}"
            )
        if wanted[name].shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)} in the file, {tuple(wanted[name].shape)} in the model"
            raise SteeringError(
                f"checkpoint: {path} belongs to another architecture: {name} is {shapes}"
            )
    module.load_state_dict(tensors)
