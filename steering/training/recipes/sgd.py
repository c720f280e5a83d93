"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant, Schedule
from steering.training.recipes.recipe import OPTIMIZERS, Recipe, parameter_groups


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True)
class Sgd(Recipe):
    """SGD with momentum; its weight decay is a term of the gradient, λ·θ.

    Raises:
        ValueError: Nesterov's momentum without any.
    """

    weight_decay: Schedule = chosen(SCHEDULES, Constant(0.0))
    """Of matrices only; a number, or a schedule of the step."""
    momentum: float = 0.9
    """Share of the last update that goes on, in [0, 1)."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs a momentum above 0")

    def build(self, target: nn.Module, method: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(target, method, self)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)
