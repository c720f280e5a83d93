"""AdamW (arXiv 1711.05101) and Adam (arXiv 1412.6980)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from steering.registry import chosen
from steering.schedules import SCHEDULES, Constant, Schedule
from steering.training.recipes.recipe import OPTIMIZERS, Recipe, parameter_groups


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True)
class AdamW(Recipe):
    """AdamW, with decoupled weight decay."""

    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-6
    """Added to the root of the second moment."""

    def build(self, target: nn.Module, method: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(target, method, self)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps)


@OPTIMIZERS.register("adam")
@dataclass(frozen=True)
class Adam(Recipe):
    """Adam; its weight decay is a term of the gradient, λ·θ."""

    weight_decay: Schedule = chosen(SCHEDULES, Constant(0.0))
    """Of matrices only; a number, or a schedule of the step."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-6
    """Added to the root of the second moment."""

    def build(self, target: nn.Module, method: nn.Module) -> torch.optim.Optimizer:
        groups = parameter_groups(target, method, self)
        return torch.optim.Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps)
