"""What an edit does to an activation: pure functions, one row at a time.

Shapes: d width of a layer; `...` any axes before it (rows, positions).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-12  # below this share of its length, what is left of a vector has no direction


class Move(ABC):
    """A displacement of activations. It depends on the activation alone, so it is the same in a
    batch, under padding and with a cache."""

    kind: ClassVar[str]
    """Its name in a file."""

    @abstractmethod
    def displacement(self, activation: Tensor, strength: float) -> Tensor:
        """What is added to an activation, (..., d); zero at strength 0."""

    @abstractmethod
    def random(self, seed: int) -> Move:
        """A move of equal size in a direction drawn uniformly: the control of every claim."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that makes up the move, by name; `made` is the way back."""

    @classmethod
    @abstractmethod
    def made(cls, tensors: Mapping[str, Tensor]) -> Move:
        """The move of `tensors`."""


@dataclass(frozen=True, eq=False)
class Shift(Move):
    """a → a + strength · direction.

    Attributes:
        direction: (d,); as the directions of this package make it, strength 1 moves the mean of
            the negative activations onto the mean of the positive ones along it.
    """

    direction: Tensor
    kind: ClassVar[str] = "shift"

    def displacement(self, activation: Tensor, strength: float) -> Tensor:
        return (strength * self.direction.to(activation)).expand_as(activation)

    def random(self, seed: int) -> Shift:
        return Shift(_random_like(self.direction, seed))

    def tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    @classmethod
    def made(cls, tensors: Mapping[str, Tensor]) -> Shift:
        return cls(tensors["direction"])


@dataclass(frozen=True, eq=False)
class Rotation(Move):
    """Householder pseudo-rotation: an activation on the negative side of a plane through the origin
    is turned towards the plane's normal; one on the positive side stays as it is.

    Its published form mixes a with its mirror image, [sin t1 / sin t2] a' + [sin(t2 − t1) / sin t2]
    a, and divides by sin t2 → 0 near the plane. The mirror image only says in which plane to turn,
    so the same is one rotation by t1 = strength · angle(a),

        a → |a| (cos t1 · u + sin t1 · w),   u = a / |a|,  w = unit part of the normal orthogonal to a.

    The norm is kept. The edited activation lies on the positive side where t1 exceeds the angle
    between a and the plane.

    Attributes:
        normal: of the plane, (d,), towards the positive side; any length.
        layers: weights and biases of the network that predicts the angle from u, alternating;
            one pair without weights, a bias (1,), for a fixed angle.

    Source: Pham and Nguyen (2024), Householder pseudo-rotation, arXiv 2409.10053, section 4.
    """

    normal: Tensor
    layers: Sequence[Tensor]
    kind: ClassVar[str] = "rotation"

    def displacement(self, activation: Tensor, strength: float) -> Tensor:
        length = activation.norm(dim=-1, keepdim=True)  # (..., 1)
        unit = activation / length.clamp_min(torch.finfo(activation.dtype).tiny)
        normal = F.normalize(self.normal.to(activation), dim=0)
        along = unit @ normal  # (...)
        towards = _orthogonal(unit, normal, along[..., None])
        turn = (strength * self.angle(unit))[..., None]
        # cos t − 1, without the cancellation of a small turn
        moved = length * (-2 * (turn / 2).sin() ** 2 * unit + turn.sin() * towards)
        return torch.where((along < 0)[..., None], moved, torch.zeros_like(moved))

    def angle(self, unit: Tensor) -> Tensor:
        """Angle to turn by at strength 1, radians in (0, π), (...), of unit activations."""
        return predicted_angle([one.to(unit) for one in self.layers], unit)

    def random(self, seed: int) -> Rotation:
        return Rotation(_random_like(self.normal, seed), self.layers)

    def tensors(self) -> dict[str, Tensor]:
        return {"normal": self.normal} | {f"layer.{n}": x for n, x in enumerate(self.layers)}

    @classmethod
    def made(cls, tensors: Mapping[str, Tensor]) -> Rotation:
        count = len(tensors) - 1
        return cls(tensors["normal"], tuple(tensors[f"layer.{n}"] for n in range(count)))


MOVES: Mapping[str, type[Move]] = {"shift": Shift, "rotation": Rotation}


def predicted_angle(layers: Sequence[Tensor], unit: Tensor) -> Tensor:
    """π · sigmoid of a network with GELU between its layers, (...); `layers` as in `Rotation`.

    The input is scaled to root mean square 1, so the same initial weights suit every width.
    """
    hidden = unit * math.sqrt(unit.shape[-1])
    if len(layers) == 1:
        return math.pi * layers[0][0].sigmoid().expand(unit.shape[:-1])
    for number in range(0, len(layers), 2):
        hidden = F.linear(F.gelu(hidden) if number else hidden, layers[number], layers[number + 1])
    return math.pi * hidden[..., 0].sigmoid()


def _orthogonal(unit: Tensor, normal: Tensor, along: Tensor) -> Tensor:
    """Unit part of the normal orthogonal to each unit vector, (..., d).

    A vector opposite to the normal leaves no such part: it turns towards the coordinate axis that
    is farthest from the normal.
    """
    part = normal - along * unit
    axis = torch.zeros_like(normal)
    axis[normal.abs().argmin()] = 1
    other = axis - (unit @ axis)[..., None] * unit
    size = part.norm(dim=-1, keepdim=True)
    small = max(TINY, torch.finfo(unit.dtype).eps)
    return F.normalize(torch.where(size > small, part, other), dim=-1)


def _random_like(vector: Tensor, seed: int) -> Tensor:
    """A vector of the same length in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vector.shape, generator=generator, dtype=torch.float64)
    return (F.normalize(drawn, dim=0) * vector.double().norm().cpu()).to(vector)
