"""An optimiser in one file.

optimizer: {name: "examples/parts/optimizer.py:rmsprop", lr: 1.0e-3, alpha: 0.9}

Warm-up, schedule and weight decay are those of every optimiser.
"""

from dataclasses import dataclass

import torch

from steering.training.recipes import OPTIMIZERS, Recipe, parameter_groups


@OPTIMIZERS.register("rmsprop")
@dataclass(frozen=True)
class RmsProp(Recipe):
    alpha: float = 0.99
    """Decay rate of the mean square."""

    def build(self, target, method):
        return torch.optim.RMSprop(parameter_groups(target, method, self), self.lr, self.alpha)
