"""What stored outputs are of: a model's weights, its preprocessing, the data it saw, the number
format."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn

from steering.errors import SteeringError
from steering.storage import sha256


@dataclass(frozen=True)
class Fingerprint:
    """Hex digests (and names); equal fields mean that the stored outputs are the ones that the
    model would compute now.

    `risk` is `ReferenceRisk.identity`: what the task's options make of a model's outputs.
    """

    weights: str
    inputs: str
    data: str
    dtype: str = "float32"
    risk: str = ""

    def digest(self) -> str:
        """Of all fields: names the folder."""
        own = [self.risk] if self.risk else []  # without it the folder it always had
        return sha256([self.weights, self.inputs, self.data, self.dtype, *own])

    def require(self, wanted: Fingerprint, where: str) -> None:
        """Raise SteeringError naming each field in which this (stored, at `where`) differs from
        what is wanted."""
        mine, theirs = asdict(self), asdict(wanted)
        meaning = {
            "weights": "weights",
            "inputs": "preprocessing",
            "data": "data set",
            "dtype": "number format",
            "risk": "loss",
        }
        wrong = [
            f"{meaning[k]}: {mine[k][:12] or 'the usual'} stored, {theirs[k][:12] or 'the usual'} wanted"
            for k in mine
            if mine[k] != theirs[k]
        ]
        if wrong:
            raise SteeringError(
                f"{where} was made for something else ({'; '.join(wrong)}); delete it"
            )


def weights_fingerprint(module: nn.Module) -> str:
    """Digest of every parameter and buffer: name, dtype, shape and bytes."""
    parts: list[bytes | str] = []
    # A state dict comes in the order of registration, which says nothing of what is computed.
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        parts += [name, str(value.dtype), str(tuple(value.shape))]
        # As bytes: numpy has no bfloat16.
        parts.append(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha256(parts)
