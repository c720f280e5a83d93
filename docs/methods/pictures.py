"""A picture for each method: what it makes of one batch, by the code that trains with it.

    python docs/methods/pictures.py             all methods
    python docs/methods/pictures.py drrho dro   these

The batch is made up: some examples are learned, some are learnable (a large loss, and a small one
under the reference), and a fifth has wrong labels, with a large loss under both models.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl

mpl.use("Agg")
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from steering.items import Pairs, Units
from steering.methods import build_method, find_method
from steering.training.board.look import look_at

FOLDER = Path(__file__).resolve().parent / "images"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
LEAST, MOST = 0.1, 10.0  # weights beyond which all have one colour
GROUPS = ("learned", "learnable", "wrong")
DRAWS = 400  # of a method that chooses at random


@dataclass(frozen=True)
class Seen:
    """Losses of n items under both models, their weights in uniform ones, and which are wrong."""

    loss: Tensor
    reference: Tensor
    weight: Tensor
    wrong: Tensor


def batch(n: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the target and of the reference, nats, and the kind of each example, 0 to 2 as in
    `GROUPS`."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(n) * 5 // n  # fifths: two learned, two learnable, one wrong
    kind = torch.tensor([0, 0, 1, 1, 2])[kind]

    def spread(least: list[float], most: list[float]) -> Tensor:
        low, high = torch.tensor(least)[kind], torch.tensor(most)[kind]
        return low + (high - low) * torch.rand(n, generator=generator)

    target = spread([0.1, 0.9, 2.3], [0.9, 3.0, 4.0])
    reference = spread([0.1, 0.2, 2.2], [0.8, 1.4, 3.8])
    return target, reference, kind


def made(name: str, unit: str, **options: Any) -> Any:
    chosen = find_method(name).options(**options)
    return build_method(name, chosen, 10_000, GROUPS, unit)


def weighed(name: str, unit: str = "example", **options: Any) -> Seen:
    """The batch as a method weighs it."""
    target, reference, kind = batch()
    units = Units(target.clone().requires_grad_(), reference, groups=kind, unit=unit)
    step = made(name, unit, **options)(units)
    look = look_at(replace(step, items=units, index=torch.arange(len(kind))))
    return Seen(target, reference, look.ratios[0], kind == 2)


def chosen(name: str, **options: Any) -> Seen:
    """The batch as a selector chooses from it: how often each is among the chosen, over a uniform
    choice."""
    target, reference, kind = batch()
    selector = made(name, "example", **options).selector
    count = round(selector.share * len(target))
    torch.manual_seed(0)
    times = torch.zeros(len(target))
    for _ in range(DRAWS):
        times[selector.choose(Units(target, reference), count)] += 1
    return Seen(target, reference, times / DRAWS / selector.share, kind == 2)


def pairs(n: int = 150) -> tuple[Pairs, Tensor]:
    """Pairs of features of two models, and which have another pair's caption."""
    generator = torch.Generator().manual_seed(0)
    wrong = torch.arange(n) * 5 // n == 4
    own = F.normalize(torch.randn(n, 16, generator=generator), dim=-1)
    told = torch.where(wrong[:, None], own[torch.randperm(n, generator=generator)], own)

    def view(x: Tensor, noise: Tensor) -> Tensor:
        return F.normalize(x + noise * torch.randn(x.shape, generator=generator) / 4, dim=-1)

    # The target knows some pairs well and others hardly, the reference all of them a little.
    young, weak = 0.4 + 2.4 * torch.rand(n, 1, generator=generator), torch.full((n, 1), 0.9)
    features = [view(x, noise) for noise in (young, weak) for x in (own, told)]
    image, text, *reference = features
    scale = torch.full((n,), 20.0)
    return Pairs(image, text, torch.arange(n), *reference, scale), wrong


def weighed_pairs(name: str, **options: Any) -> Seen:
    items, wrong = pairs()
    method = made(name, "pair", **options)
    if method.selector is None:
        step = method(items)
        look = look_at(replace(step, items=items, index=items.index))
        assert look.reference is not None
        return Seen(look.loss[0], look.reference[0], look.ratios[0], wrong)
    count, times = round(method.selector.share * len(wrong)), torch.zeros(len(wrong))
    torch.manual_seed(0)
    for _ in range(DRAWS):
        times[method.selector.choose(items, count)] += 1
    plain = seen_plainly(items)
    return Seen(*plain, times / DRAWS / method.selector.share, wrong)


def seen_plainly(items: Pairs) -> tuple[Tensor, Tensor]:
    step = made("erm", "pair")(items)
    look = look_at(replace(step, items=items, index=items.index))
    assert look.reference is not None
    return look.loss[0], look.reference[0]


# ---- drawing


def figure(title: str) -> tuple[Figure, Any]:
    made = Figure(figsize=(7, 3.1), layout="constrained", dpi=100)
    made.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = made.subplots(1, 2)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return made, axes


def weights(axis: Any, seen: Seen, what: str = "weight") -> None:
    """Weight against loss."""
    for wrong, colour, name in ((False, BLUE, "right label"), (True, ORANGE, "wrong label")):
        some = seen.wrong == wrong
        axis.scatter(seen.loss[some], seen.weight[some], s=12, c=colour, label=name)
    axis.axhline(1, color=GREY, linewidth=1, linestyle="--")
    most = float(seen.weight.max())
    axis.set_ylim(-0.05 * most, 1.25 * most)  # room for the legend
    axis.set_xlabel("loss of the target")
    axis.set_ylabel(f"{what}, 1 is uniform")
    axis.legend(fontsize=8, loc="upper left", ncols=2, columnspacing=1, handletextpad=0.2)


def plane(drawn: Figure, axis: Any, seen: Seen) -> None:
    """The same items by both losses, coloured by weight."""
    colour = seen.weight.clamp(LEAST, MOST)
    axis.scatter(
        *(x[seen.wrong] for x in (seen.reference, seen.loss)),
        s=42,
        facecolors="none",
        edgecolors=ORANGE,
        label="wrong label",
    )
    points = axis.scatter(
        seen.reference, seen.loss, s=13, c=colour, cmap="viridis", norm=LogNorm(LEAST, MOST)
    )
    ends = (
        max(seen.loss.min(), seen.reference.min()).item(),
        min(seen.loss.max(), seen.reference.max()).item(),
    )
    axis.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    bar = drawn.colorbar(points, ax=axis, label="weight")
    bar.set_ticks([LEAST, 1, MOST], labels=["≤ 0.1", "1", "≥ 10"])
    bar.minorticks_off()
    axis.set_xlabel("loss of the reference")
    axis.set_ylabel("loss of the target")
    axis.legend(fontsize=8, loc="best")


def both(title: str, seen: Seen, what: str = "weight") -> Figure:
    drawn, (left, right) = figure(title)
    weights(left, seen, what)
    plane(drawn, right, seen)
    return drawn


def groups(title: str, name: str, steps: int, **options: Any) -> Figure:
    """The weights of three groups over the steps, their losses held fixed; the batch in the end."""
    target, reference, kind = batch()
    units = Units(target.clone().requires_grad_(), reference, groups=kind)
    method, curves = made(name, "example", **options), []
    for _ in range(steps):
        step = method(units)
        curves.append([float(step.scalars()[f"weight/{group}"]) for group in GROUPS])
    look = look_at(replace(step, items=units, index=torch.arange(len(kind))))
    drawn, (left, right) = figure(title)
    for number, colour in enumerate((BLUE, GREEN, ORANGE)):
        left.plot(range(1, steps + 1), [row[number] for row in curves], color=colour, linewidth=2)
        some = kind == number
        label = f"group “{GROUPS[number]}”"
        right.scatter(target[some], look.ratios[0][some], s=12, c=colour, label=label)
    left.set_ylim(0, 1)
    left.set_xlabel("step, losses held fixed")
    left.set_ylabel("weight of the group")
    right.axhline(1, color=GREY, linewidth=1, linestyle="--")
    right.set_ylim(bottom=-0.1)
    right.set_xlabel("loss of the target")
    right.set_ylabel("weight of an example, at the end")
    right.legend(fontsize=8, loc="best")
    return drawn


def pulled_to(label: int, reference: Tensor, steps: int = 500) -> Tensor:
    """The distribution at which the loss of an example is least, (C,), by descent."""
    logits = torch.zeros(1, len(reference), requires_grad=True)
    method = made("distillation", "example")
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(steps):
        loss = F.cross_entropy(logits, torch.tensor([label]), reduction="none")
        items = Units(loss, loss.detach(), logits=logits, reference_logits=reference.log()[None])
        optimizer.zero_grad()
        method(items).loss.backward()
        optimizer.step()
    return logits.detach().softmax(-1)[0]


def distilled() -> Figure:
    names = ["cat", "dog", "fox", "cow"]
    reference = torch.tensor([0.55, 0.25, 0.15, 0.05])
    drawn, axes = figure("distillation: where the loss of one example is least (a = 0.5, T = 2)")
    for axis, label, title in zip(
        axes, (0, 3), ("label right: cat", "label wrong: cow"), strict=True
    ):
        shown = (F.one_hot(torch.tensor(label), 4), reference, pulled_to(label, reference))
        for place, (values, colour, name) in enumerate(
            zip(shown, (GREY, GREEN, BLUE), ("label", "reference", "target, trained"), strict=True)
        ):
            axis.bar(torch.arange(4) + 0.27 * (place - 1), values, 0.25, color=colour, label=name)
        axis.set_xticks(range(4), names)
        axis.set_ylim(0, 1.05)
        axis.set_ylabel("probability")
        axis.set_title(title, fontsize=10)
    axes[0].legend(fontsize=8)
    return drawn


PICTURES: dict[str, Callable[[], Figure]] = {
    "erm": lambda: both("erm: all weights are equal", weighed("erm")),
    "dro": lambda: both(
        "dro: the larger the loss, the larger the weight (KL, τ = 1)", weighed("dro")
    ),
    "drrho": lambda: both(
        "drrho: the larger the excess loss, the larger the weight (KL, τ = 1)", weighed("drrho")
    ),
    "nested": lambda: both(
        "nested: weights of pairs (outer: τ = 1, κ = 3)",
        weighed_pairs("nested", **_section("nested", outer={"tau": 1.0, "prior": 3.0})),
    ),
    "rho_loss": lambda: both(
        "rho_loss: the 20 % with the largest excess loss", chosen("rho_loss", share=0.2), "choice"
    ),
    "soft_rho": lambda: both(
        "soft_rho: 20 %, drawn ∝ exp(excess loss/T), T = 0.25",
        chosen("soft_rho", share=0.2),
        "choice",
    ),
    "jest": lambda: both(
        "jest: 20 % of the pairs, chosen jointly", weighed_pairs("jest"), "choice"
    ),
    "rho1": lambda: both(
        "rho1: the 60 % of the tokens with the largest excess loss", weighed("rho1", "token")
    ),
    "group_dro": lambda: groups(
        "group_dro: weight climbs towards the worst group (η = 0.01)", "group_dro", 300
    ),
    "doremi": lambda: groups(
        "doremi: weight climbs towards what can be learned (η = 0.1)", "doremi", 60, step=0.1
    ),
    "distillation": distilled,
}


def _section(name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """Sections of a method's options with some of their keys changed."""
    usual = find_method(name).options()
    return {key: replace(getattr(usual, key), **values) for key, values in sections.items()}


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or [*PICTURES]:
        # Without the name of the library's version in it, the same picture is the same file.
        PICTURES[name]().savefig(FOLDER / f"{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    main(sys.argv[1:])
