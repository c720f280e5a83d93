"""Directions: from activations of wanted and unwanted answers to a move.

Shapes: n, m numbers of positive and negative activations, d width of the layer. Fits run in
float64 and give float32.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from steering.activation.moves import Move, Rotation, Shift, predicted_angle
from steering.registry import Registry


class Direction(Protocol):
    """A way to fit a move; implementations are frozen dataclasses, registered by name."""

    def fit(self, positive: Tensor, negative: Tensor) -> Move:
        """The move that leads from negative activations (m, d) to positive ones (n, d)."""


DIRECTIONS: Registry[Direction] = Registry("direction", "steering.directions")


@DIRECTIONS.register("mean_difference")
@dataclass(frozen=True)
class MeanDifference:
    """Shift by mean(positive) − mean(negative): strength 1 moves one mean onto the other."""

    def fit(self, positive: Tensor, negative: Tensor) -> Shift:
        return Shift(mean_difference(positive, negative).float())


@DIRECTIONS.register("pca")
@dataclass(frozen=True)
class Principal:
    """Shift along the first principal component; strength 1 covers the gap of the means along
    it."""

    def fit(self, positive: Tensor, negative: Tensor) -> Shift:
        return Shift(_across(principal_direction(positive, negative), positive, negative))


@DIRECTIONS.register("logistic")
@dataclass(frozen=True)
class Logistic:
    """Shift along the normal of a logistic probe; strength 1 covers the gap of the means along
    it."""

    ridge: float = 1e-3
    """Weight of |v|²/2 beside the mean loss, in units of the activations' root mean square."""

    def fit(self, positive: Tensor, negative: Tensor) -> Shift:
        normal = probe_normal(positive, negative, self.ridge)[0]
        return Shift(_across(F.normalize(normal, dim=0), positive, negative))


@DIRECTIONS.register("householder")
@dataclass(frozen=True)
class Householder:
    """Householder pseudo-rotation (`Rotation`): a logistic probe without bias says which side an
    activation is on, a small network by which angle to turn it.

    The network learns the angle between each negative activation and its positive partner, and 0
    for positive ones, by mean squared error. So row i of both must belong together: the same
    position of two answers to one prompt.
    """

    ridge: float = 1e-3
    """Of the probe; see `Logistic`."""
    angle: float | None = None
    """Radians in (0, π) to turn by; None: predicted by a network."""
    depth: int = 2
    """Linear layers of the network; each but the last halves the width."""
    epochs: int = 5
    """Passes over the pairs."""
    batch_size: int = 16
    """Pairs of a step."""
    lr: float = 5e-4
    """Learning rate of AdamW."""
    seed: int = 0
    """Of the initial weights and the order."""

    def __post_init__(self) -> None:
        if self.angle is not None and not 0 < self.angle < math.pi:
            raise ValueError(f"angle: expected a number in (0, π) or null, got {self.angle}")
        if self.depth < 1 or self.epochs < 1 or self.batch_size < 1:
            raise ValueError("depth, epochs and batch_size: expected at least 1")

    def fit(self, positive: Tensor, negative: Tensor) -> Rotation:
        normal = probe_normal(positive, negative, self.ridge, bias=False)[0].float()
        if self.angle is not None:
            return Rotation(normal, (torch.tensor([_logit(self.angle / math.pi)]),))
        if len(positive) != len(negative):
            raise ValueError(
                "householder: expected pairs of activations, the same number of each, got "
                f"{len(positive)} positive and {len(negative)} negative"
            )
        return Rotation(normal, _angle_network(self, positive.float(), negative.float()))


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """mean(positive) − mean(negative), (d,), float64; ValueError without activations on a side."""
    _require(positive, negative)
    return positive.double().mean(0) - negative.double().mean(0)


def principal_direction(positive: Tensor, negative: Tensor) -> Tensor:
    """First principal component of both clouds around the midpoint of their means, unit, (d,).

    A principal component has no sign of its own: it is given the one along which the mean of the
    positive activations lies higher.

    Raises:
        ValueError: the means agree along it, so that its sign cannot be told.
    """
    gap = mean_difference(positive, negative)
    middle = (positive.double().mean(0) + negative.double().mean(0)) / 2
    cloud = torch.cat([positive.double(), negative.double()]) - middle
    component = torch.linalg.svd(cloud, full_matrices=False).Vh[0]
    along = float(component @ gap)
    if abs(along) <= 1e-9 * float(cloud.norm(dim=-1).max()):
        raise ValueError("pca: both sides have the same mean along the first principal component")
    return component * math.copysign(1.0, along)


def probe_normal(
    positive: Tensor, negative: Tensor, ridge: float = 1e-3, bias: bool = True
) -> tuple[Tensor, float]:
    """Logistic regression of positive against negative activations.

    Minimises mean log(1 + exp(∓(v·a + b))) + ridge · |v|²/2 for activations in units of their root
    mean square; both sides count the same.

    Returns:
        v, (d,), float64, towards the positive side, and b (0 without bias), in the activations'
        own unit.

    Raises:
        ValueError: no activations on a side, or a ridge that is not positive: without one, clouds
            that can be separated have no finite answer.
    """
    _require(positive, negative)
    if ridge <= 0:
        raise ValueError(f"ridge: expected a positive number, got {ridge}")
    rows = torch.cat([positive.double(), -negative.double()]).detach()
    signs = torch.cat([torch.ones(len(positive)), -torch.ones(len(negative))]).double()
    scale = float(rows.square().mean().sqrt()) or 1.0
    x = torch.cat([rows / scale, signs.to(rows)[:, None]], dim=1)  # (n + m, d + 1)
    counts = torch.where(signs > 0, 0.5 / len(positive), 0.5 / len(negative)).to(rows)
    v = _minimiser(x, counts, ridge, bias)
    return v[:-1] / scale, float(v[-1]) if bias else 0.0


def probe_accuracy(normal: Tensor, bias: float, positive: Tensor, negative: Tensor) -> float:
    """Share of activations on their own side of the probe, each side counting the same."""
    right = (positive.double() @ normal.double() + bias > 0).double().mean()
    left = (negative.double() @ normal.double() + bias <= 0).double().mean()
    return float((right + left) / 2)


def _across(unit: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """The gap of the means along a unit vector; the sign of the vector plays no part."""
    return (unit * (unit @ mean_difference(positive, negative))).float()


def _minimiser(x: Tensor, counts: Tensor, ridge: float, bias: bool) -> Tensor:
    """Minimiser of a convex objective by L-BFGS; the last column of x is the bias's."""
    free = torch.ones(x.shape[1], dtype=x.dtype, device=x.device)
    free[-1] = float(bias)
    v = torch.zeros_like(free, requires_grad=True)
    solver = torch.optim.LBFGS(
        [v],
        max_iter=500,
        tolerance_grad=1e-9,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = (counts * F.softplus(-(x @ (v * free)))).sum() + ridge / 2 * v[:-1].square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    return v.detach() * free


def _angle_network(how: Householder, positive: Tensor, negative: Tensor) -> tuple[Tensor, ...]:
    """Weights and biases of the network that predicts the angle; see `Householder`."""
    up, down = F.normalize(positive, dim=-1), F.normalize(negative, dim=-1)
    wanted = torch.acos((up * down).sum(-1).clamp(-1, 1))  # (n,)
    generator = torch.Generator().manual_seed(how.seed)
    layers = _initial(how.depth, positive.shape[-1], generator, positive)
    solver = torch.optim.AdamW(layers, lr=how.lr, weight_decay=0.0)
    with torch.enable_grad():
        for _ in range(how.epochs):
            order = torch.randperm(len(up), generator=generator).to(up.device)
            for rows in order.split(how.batch_size):
                missed = predicted_angle(layers, down[rows]) - wanted[rows]
                loss = (missed.square() + predicted_angle(layers, up[rows]).square()).mean()
                solver.zero_grad()
                loss.backward()
                solver.step()
    return tuple(one.detach() for one in layers)


def _initial(depth: int, width: int, generator: torch.Generator, like: Tensor) -> list[Tensor]:
    """Weights of standard deviation 1/√(inputs), biases zero."""
    sizes = [max(width >> number, 1) for number in range(depth)] + [1]
    found = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        weight = torch.randn(fan_out, fan_in, generator=generator) / math.sqrt(fan_in)
        found += [weight.to(like).requires_grad_(), torch.zeros(fan_out).to(like).requires_grad_()]
    return found


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _require(positive: Tensor, negative: Tensor) -> None:
    for name, one in (("positive", positive), ("negative", negative)):
        if one.ndim != 2 or not len(one):
            raise ValueError(
                f"{name}: expected activations (n, d) with n >= 1, got {tuple(one.shape)}"
            )
        if not one.isfinite().all():
            raise ValueError(f"{name}: activations that are not finite")
    if positive.shape[1] != negative.shape[1]:
        raise ValueError(
            f"activations of one width: got {positive.shape[1]} positive, {negative.shape[1]} negative"
        )
