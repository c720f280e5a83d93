"""Noise on weights between two cycles: the next snapshot shall end elsewhere than the last one."""

from __future__ import annotations

import math

import torch
from torch import nn


@torch.no_grad()
def perturb(module: nn.Module, scale: float, seed: int) -> None:
    """Add Gaussian noise to every parameter of more than one element, in place.

    Its deviation is `scale` times the deviation of the whole tensor. The draws are a function of
    the seed alone, and the global generators stay as they are.

    Source: arXiv 2606.03938. ValueError for a negative scale.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be a number ≥ 0, got {scale}")
    # On the CPU whatever the device: the same noise everywhere, and on all ranks.
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.numel() > 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(scale * parameter.std() * noise.to(parameter))


def noise_scale(boundary: int, cycles: int, start: float, end: float) -> float:
    """Scale of the noise after cycle `boundary` of `cycles`: a cosine from `start` to `end`.

    Formula: end + (start − end)/2·(1 + cos(π(k − 1)/(C − 2))), k = 1 .. C − 1; with two cycles
    there is one boundary, which has `start`.

    Source: arXiv 2606.03938.
    """
    if not 1 <= boundary < cycles:
        raise ValueError(f"boundary must be in 1 .. {cycles - 1}, got {boundary}")
    moved = (boundary - 1) / max(1, cycles - 2)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * moved))
