"""Muon as torch has it: matrices by Muon, the rest by AdamW."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steering.training.recipes.recipe import OPTIMIZERS, Groups, Recipe, parameter_groups


@OPTIMIZERS.register("muon")
@dataclass(frozen=True)
class Muon(Recipe):
    """Muon on the matrices of hidden layers, AdamW on embeddings, convolutions, vectors and
    temperatures.

    The update of a matrix is scaled to the root mean square of AdamW's, so that both take one
    learning rate and one weight decay. Source: arXiv 2502.16982, and `torch.optim.Muon`.
    """

    momentum: float = 0.95
    """Of Muon, in [0, 1)."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW: decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-6
    """AdamW: added to the root of the second moment."""

    def build(self, target: nn.Module, method: nn.Module) -> torch.optim.Optimizer:
        matrices, others = _split(parameter_groups(target, method, self), target)
        # A model may have only one of the kinds, and torch refuses an optimiser without parameters.
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
            parts.append(muon)
        if others:
            parts.append(torch.optim.AdamW(others, lr=self.lr, betas=self.betas, eps=self.eps))
        return Together(parts)


def _split(groups: Groups, target: nn.Module) -> tuple[Groups, Groups]:
    """The groups of Muon and those of AdamW."""
    # Rows of a table of embeddings are no map between vectors: Muon would mix tokens.
    tables = {
        id(parameter)
        for module in target.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    matrices: Groups = []
    others: Groups = []
    for group in groups:
        for found, by_muon in ((matrices, True), (others, False)):
            params = [
                p
                for p in group["params"]
                if (group["decays"] and p.ndim == 2 and id(p) not in tables) == by_muon
            ]
            if params:
                found.append({**group, "params": params})
    return matrices, others


class Together(torch.optim.Optimizer):
    """Several optimisers, each of its own parameters, as one."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        # Not the base's constructor: that would make groups and states of its own.
        self.parts = parts
        self.defaults: dict[str, Any] = {}

    @property
    def param_groups(self) -> Groups:  # type: ignore[override]
        """Of all parts; the very dictionaries, so that a rate set here is theirs."""
        return [group for part in self.parts for group in part.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
