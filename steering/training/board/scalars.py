"""The scalars that every method has under the same names: `loss/`, `steer/`, `group/`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from steering.methods.registry import Step
from steering.training.board.look import Look, adversary_scalars

SHARED = frozenset({"weight_max", "kl_spent"})
"""Told by methods, and shown under `steer/` alone; everything else that they tell is `train/...`."""
MANY_GROUPS = 32
"""Beyond so many groups none of them gets curves of its own."""


def board_scalars(
    step: Step,
    look: Look,
    told: dict[str, float],
    wrong: Tensor | None,
    groups: Sequence[str],
) -> dict[str, float]:
    """Tag → value of one step; every rank calls this and gets the same.

    Args:
        told: "loss" and the method's metrics, means over the ranks.
        wrong: how much of the label of each item of a training example is wrong, (n, k), as in
            `Look.noise`; None: nobody knows.
        groups: names of the groups that items are numbered by.
    """
    found = {
        "loss/objective": told["loss"],
        "loss/train_mean": look.loss[look.mask].mean().item(),
    }
    steer = adversary_scalars(step, look, told)
    steer |= {"strength": told.get("strength", 0.0), "prior": told.get("prior", 0.0)}
    # τ = ∞ is no point of a curve.
    if math.isfinite(told.get("tau", math.inf)):
        steer["tau"] = told["tau"]
    steer |= noise_scalars(look, wrong)
    found |= {f"steer/{name}": value for name, value in steer.items()}
    if look.groups is not None and len(groups) <= MANY_GROUPS:
        found |= group_scalars(look, groups)
    return found


def noise_scalars(look: Look, wrong: Tensor | None) -> dict[str, float]:
    """Share of the weight, and of the items, whose labels are wrong."""
    bad = look.noise(wrong)
    if bad is None:
        return {}
    mass = (look.weights * bad).sum(-1).mean()
    return {"mass_on_noise": mass.item(), "noise_share": (bad.sum() / look.mask.sum()).item()}


def group_scalars(look: Look, names: Sequence[str]) -> dict[str, float]:
    """Mean loss of each group in the batch, and its share of the weight; of the groups that have
    items there."""
    if look.groups is None:
        return {}
    numbers, k = look.groups[look.mask], len(names)
    counts = torch.bincount(numbers, minlength=k)
    losses = torch.bincount(numbers, look.loss[look.mask].double(), k) / counts
    weights = torch.bincount(numbers, look.weights[look.mask].double(), k)
    shares = weights / weights.sum()
    values = {"loss": losses.tolist(), "weight": shares.tolist()}
    return {
        f"group/{name}/{what}": column[number]
        for what, column in values.items()
        for number, name in enumerate(names)
        if counts[number]
    }
