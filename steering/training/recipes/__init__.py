"""Recipes: optimisers with their schedules, by name. Importing this registers ours."""

from steering.training.recipes.adam import Adam, AdamW
from steering.training.recipes.muon import Muon
from steering.training.recipes.recipe import (
    OPTIMIZERS,
    Recipe,
    carry_over,
    parameter_groups,
    set_rates,
)
from steering.training.recipes.sgd import Sgd

__all__ = [
    "OPTIMIZERS",
    "Adam",
    "AdamW",
    "Muon",
    "Recipe",
    "Sgd",
    "carry_over",
    "parameter_groups",
    "set_rates",
]
