"""How good is a language model: perplexity by domain, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from steering import distributed
from steering.risk import ReferenceRisk
from steering.runs.record import Scores

from .data import Blocks

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def block_losses(
    module: nn.Module,
    risk: ReferenceRisk,
    blocks: Blocks,
    device: torch.device,
    batch_size: int = 32,
) -> np.ndarray:
    """Summed loss of each block, nats, float64, (m,); every rank runs the model on its share of the
    blocks and gets all."""
    mine, found = distributed.share(len(blocks)), []
    for start in range(mine.start, mine.stop, batch_size):
        index = np.arange(start, min(start + batch_size, mine.stop))
        batch = {key: value.to(device) for key, value in blocks.batch(index, 0).items()}
        found.append(risk.outputs(module, batch)["loss"].double().sum(-1))
    own = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=device)
    return distributed.gather_uneven(own).cpu().numpy()


def losses_by_domain(losses: np.ndarray, blocks: Blocks, domains: int) -> np.ndarray:
    """Mean loss per token of each domain, nats, float64, (k,), from those of the blocks; NaN for a
    domain without blocks."""
    sums, counts = np.zeros(domains), np.zeros(domains)
    np.add.at(sums, blocks.domain, losses)
    np.add.at(counts, blocks.domain, blocks.counts)
    return sums / np.where(counts > 0, counts, np.nan)


def domain_scores(losses: np.ndarray, blocks: Blocks, names: Sequence[str]) -> dict[str, Scores]:
    """ "loss/<domain>": the mean loss per token of each of its blocks, which counts as often as it
    has tokens."""
    found = {}
    for number, name in enumerate(names):
        own = blocks.domain == number
        found[f"loss/{name}"] = Scores(
            losses[own] / blocks.counts[own], blocks.counts[own].astype(np.float64)
        )
    return found


def perplexities(losses: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """ "perplexity/average" (of the domains' mean loss, each domain counting the same) and
    "perplexity/<domain>"."""
    with np.errstate(over="ignore"):  # a run that has diverged is told as such, not ended here
        average, each = float(np.exp(np.mean(losses, dtype=np.float64))), np.exp(np.float64(losses))
    found = {"perplexity/average": average}
    return found | {
        f"perplexity/{name}": float(value) for name, value in zip(names, each, strict=True)
    }


def perplexity_figure(metrics: Mapping[str, float]) -> Figure:
    """Perplexity by domain."""
    names = [name.partition("/")[2] for name in metrics]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 0.7 * len(names), 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.bar(names, list(metrics.values()), color=["gray", *["C0"] * (len(names) - 1)])
    axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_ylabel("perplexity")
    axes.tick_params(axis="x", rotation=30)
    return figure
