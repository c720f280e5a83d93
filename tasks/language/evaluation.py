"""How good is a language model: perplexity by domain, and a picture of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from steering.risk import ReferenceRisk
from tasks.language.data import Blocks


@torch.no_grad()
def losses_by_domain(
    module: nn.Module, risk: ReferenceRisk, blocks: Blocks, domains: int, device: torch.device, batch_size: int = 32
) -> np.ndarray:
    """Mean loss per token of each domain, nats, float64, (k,); NaN for a domain without blocks."""
    sums, counts = np.zeros(domains), np.zeros(domains)
    for start in range(0, len(blocks), batch_size):
        index = np.arange(start, min(start + batch_size, len(blocks)))
        batch = {key: value.to(device) for key, value in blocks.batch(index, 0).items()}
        loss = risk.outputs(module, batch)["loss"].double().sum(-1).cpu().numpy()
        np.add.at(sums, blocks.domain[index], loss)
        np.add.at(counts, blocks.domain[index], blocks.counts[index])
    return sums / np.where(counts > 0, counts, np.nan)


def perplexities(losses: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """ "perplexity/average" (of the domains' mean loss, each domain counting the same) and "perplexity/<domain>"."""
    found = {"perplexity/average": math.exp(float(np.mean(losses)))}
    return found | {f"perplexity/{name}": math.exp(float(loss)) for name, loss in zip(names, losses, strict=True)}


def perplexity_figure(metrics: Mapping[str, float]) -> Figure:
    """Perplexity by domain."""
    names = [name.rpartition("/")[2] for name in metrics]
    figure = Figure(figsize=(1.6 + 0.7 * len(names), 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(names, list(metrics.values()), color=["gray", *["C0"] * (len(names) - 1)])
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_ylabel("perplexity")
    axes.tick_params(axis="x", rotation=30)
    return figure
