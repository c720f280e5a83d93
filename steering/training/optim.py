"""AdamW with the customary parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn


def learning_rate_factor(
    step: int, steps: int, warmup: float, schedule: str, final: float
) -> float:
    """Share of the peak learning rate at a step: a linear warm-up, then a cosine to `final` or a
    constant.

    Args:
        step: 0-based, of `steps` in total.
        warmup: steps of the warm-up if ≥ 1, share of all steps if below.
        schedule: "cosine" or "constant".
        final: share of the peak that the cosine ends on.
    """
    warm = warmup if warmup >= 1 else warmup * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1.0, steps - warm)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def build_optimizer(
    target: nn.Module,
    method: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    temperature_lr: float | None,
) -> torch.optim.AdamW:
    """AdamW: decay on matrices only (no gains, no biases), and the method's temperature in a group
    of its own.

    Every group carries its peak rate as "peak_lr", which `set_learning_rate` scales.
    """
    trained = [p for p in target.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trained if p.ndim >= 2],
            "weight_decay": weight_decay,
            "peak_lr": lr,
        },
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "peak_lr": lr},
        {
            "params": [p for p in method.parameters() if p.requires_grad],
            "weight_decay": 0.0,
            "peak_lr": lr if temperature_lr is None else temperature_lr,
        },
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
