"""Pictures of one step: where its items stand on the map, and which examples weigh most and least;
and of an evaluation: which examples have the highest loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from steering.exhibits import Exhibit, Judged
from steering.training.board.cards import Titled, cards_figure
from steering.training.board.look import Look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 2000
"""Items on the map, at most."""
LEAST, MOST = 0.1, 10.0
"""Weights beyond which all have the same colour, as multiples of a uniform one."""


def histograms(look: Look) -> dict[str, Tensor]:
    """Tag → values of the items that count: weights as multiples of a uniform one, losses."""
    found = {"items/loss": look.loss, "items/weight": look.ratios}
    if look.reference is not None:
        found["items/reference_loss"] = look.reference
        found["items/excess"] = look.loss - look.reference
    chosen = {name: values[look.mask] for name, values in found.items()}
    # A run that breaks is ended by the loop, which says why.
    return {name: values[values.isfinite()] for name, values in chosen.items()}


def map_figure(look: Look, wrong: Tensor | None) -> Figure:
    """The target's loss against the reference's, coloured by weight; without a reference the weight
    against the loss. Items with a wrong label have a red ring."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    some = look.mask.flatten().nonzero()[:, 0]
    # Evenly spread and the same ones for every call: a picture draws no random numbers.
    some = some[:: -(-len(some) // POINTS)]
    loss, ratio = (x.flatten()[some].float().cpu().numpy() for x in (look.loss, look.ratios))
    colour = np.clip(ratio, LEAST, MOST)
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    if look.reference is None:
        x, y, names = loss, colour, ("loss of the target", "weight, in uniform ones")
        axes.set_yscale("log")
    else:
        guide = look.reference.flatten()[some].float().cpu().numpy()
        x, y, names = guide, loss, ("loss of the reference", "loss of the target")
        ends = max(x.min(), y.min()), min(x.max(), y.max())
        axes.plot(ends, ends, color="gray", linewidth=1, linestyle="--")
    rings = _rings(look, some, wrong)
    if rings.any():
        label = "wrong label"
        axes.scatter(x[rings], y[rings], s=34, facecolors="none", edgecolors="red", label=label)
        axes.legend(loc="upper left")
    points = axes.scatter(x, y, s=9, c=colour, cmap="viridis", norm=LogNorm(LEAST, MOST))
    bar = figure.colorbar(points, label="weight, in uniform ones")
    bar.set_ticks([LEAST, 1, MOST], labels=[f"≤ {LEAST:g}", "1", f"≥ {MOST:g}"])
    bar.minorticks_off()
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    return figure


def _rings(look: Look, some: Tensor, wrong: Tensor | None) -> np.ndarray:
    bad = look.noise(wrong)
    if bad is None:
        return np.zeros(len(some), dtype=bool)
    return (bad.flatten()[some] > 0).cpu().numpy()


def extremes(look: Look, count: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Example numbers with their weights as multiples of a uniform one: the heaviest first, and the
    lightest first; no example in both.

    Weights of several items of an example are averaged.
    """
    if look.example is None:
        return [], []
    numbers, place = look.example[look.mask].unique(return_inverse=True)
    sums = torch.bincount(place, look.ratios[look.mask].double())
    means = sums / torch.bincount(place)
    order = means.argsort(descending=True, stable=True).tolist()
    count = min(count, len(order) // 2)
    ranked = [(int(numbers[at]), float(means[at])) for at in order]
    return ranked[:count], ranked[::-1][:count]


def gallery_figure(
    look: Look,
    count: int,
    exhibits: Callable[[Sequence[int]], Sequence[Exhibit]],
    wrong: Tensor | None,
) -> Figure | None:
    """The examples of a batch that weigh most, above, and least, below; None if it has too few.

    Args:
        exhibits: a task's.
        wrong: as in `map_figure`; an example with such an item is titled in red.
    """
    heavy, light = extremes(look, count)
    if not heavy:
        return None
    shown = exhibits([number for number, _ in (*heavy, *light)])
    cards = []
    for (number, weight), exhibit in zip((*heavy, *light), shown, strict=True):
        bad = wrong is not None and bool((wrong[number] > 0).any())
        cards.append(Titled(exhibit, f"×{weight:.3g}", "red" if bad else "black"))
    return cards_figure({"most weight": cards[: len(heavy)], "least weight": cards[len(heavy) :]})


def worst_figure(judged: Judged, count: int) -> Figure | None:
    """The evaluated examples with the highest losses, the highest first, each under its loss: what
    it is, and behind an arrow what the model made of it. None if there is no example."""
    places = judged.worst(count)
    if not places:
        return None
    shown = zip(places, judged.exhibits(places), strict=True)
    cards = [Titled(exhibit, f"loss {judged.losses[place]:.3g}") for place, exhibit in shown]
    return cards_figure({"": cards})
