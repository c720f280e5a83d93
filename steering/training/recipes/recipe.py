"""A recipe: an optimiser with its learning rate and weight decay as functions of the step.

    optimizer: {lr: 1e-3}                                          # AdamW
    optimizer: {name: sgd, lr: 0.1, momentum: 0.9}
    optimizer: {name: muon, weight_decay: {name: linear, start: 0.01, end: 0.1, cycles: 4}}

A recipe of one's own is a frozen dataclass like those in this folder, registered in `OPTIMIZERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steering.errors import SteeringError
from steering.registry import Registry, chosen
from steering.schedules import SCHEDULES, Constant, Schedule
from steering.training.decay import DECAYS, CosineDecay, Decay, learning_rate_factor

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Recipe(ABC):
    """What every optimiser has."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: Schedule = chosen(SCHEDULES, Constant(0.1))
    """Of matrices only; a number, or a schedule of the step."""
    warmup: float = 0.05
    """Linear warm-up: a fraction of the steps if below 1, else a number of steps."""
    schedule: Decay = chosen(DECAYS, CosineDecay())
    """What follows the warm-up: cosine, linear or constant."""
    final_lr: float = 0.0
    """Where a cycle of the schedule ends, as a fraction of `lr`."""
    temperature_lr: float | None = None
    """Learning rate of a learned temperature; null: `lr`."""

    def __post_init__(self) -> None:
        # In Python a bare number stands for a constant, and a name for a shape, as in a config.
        if isinstance(self.weight_decay, int | float):
            object.__setattr__(self, "weight_decay", Constant(float(self.weight_decay)))
        if isinstance(self.schedule, str):
            object.__setattr__(self, "schedule", DECAYS.find(self.schedule, "schedule")())

    @abstractmethod
    def build(self, target: nn.Module, method: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of what they train, from `parameter_groups`."""


OPTIMIZERS: Registry[Recipe] = Registry("optimizer", "steering.optimizers")


def parameter_groups(target: nn.Module, method: nn.Module, recipe: Recipe) -> Groups:
    """The customary groups: decay on matrices only (no gains, no biases), and the method's
    temperature in a group of its own.

    Every group carries its peak rate as "peak_lr" and whether it "decays", which `set_rates` reads.
    Groups without parameters are left out.
    """
    # Frozen parameters stay out: decay would move them without a gradient.
    trained = [p for p in target.parameters() if p.requires_grad]
    learned = [p for p in method.parameters() if p.requires_grad]
    own_lr = recipe.lr if recipe.temperature_lr is None else recipe.temperature_lr
    groups = [
        _group([p for p in trained if p.ndim >= 2], recipe.lr, decays=True),
        _group([p for p in trained if p.ndim < 2], recipe.lr, decays=False),
        # A temperature lives on another scale than weights, and nothing pulls it to zero.
        _group(learned, own_lr, decays=False),
    ]
    # The first step's values; optimisers want some before that.
    for group in groups:
        group["weight_decay"] = recipe.weight_decay(0.0) if group["decays"] else 0.0
    return [group for group in groups if group["params"]]


def _group(params: list[nn.Parameter], peak_lr: float, decays: bool) -> dict[str, Any]:
    return {"params": params, "peak_lr": peak_lr, "decays": decays}


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, steps: int) -> None:
    """Learning rate and weight decay of every group at a step, 0-based, of `steps` in total.

    Nothing is remembered from one step to the next: a resumed run needs no state of a scheduler.
    """
    factor = learning_rate_factor(step, steps, recipe.warmup, recipe.schedule, recipe.final_lr)
    # Torch multiplies it by the rate (AdamW, Muon), so a cyclic rate alone makes it cyclic, too.
    decay = recipe.weight_decay(step / steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        group["weight_decay"] = decay if group["decays"] else 0.0


def carry_over(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Let an optimiser go on with the moments of another one of the same model.

    Rates and every other option of the groups stay its own.

    Raises:
        SteeringError: the state is of another optimiser or another model.
    """
    # Loading takes the rates and options of the other run, too.
    own = [{**group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError) as error:
        raise SteeringError(
            f"restart.optimizer: the state is of another optimizer or model: {error}"
        ) from error
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
