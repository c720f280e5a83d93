"""What lessons share: `check` for the exercises, one style for all figures, and a small CLIP."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from answers import ANSWERS
from matplotlib.figure import Figure

# Told apart by the colour-blind too.
BLUE, ORANGE, GREEN, PINK, GREY, YELLOW, SKY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#777777",
    "#E69F00",
    "#56B4E9",
)


if "ipykernel" not in sys.modules and plt.get_backend().lower() != "agg":
    atexit.register(plt.show)  # the figures of a lesson that is run as a script


def check(exercise: str, answer: Any) -> None:
    """Say whether an answer is right.

    Args:
        exercise: its number, such as "1.2".
        answer: a number, a list of numbers, or a letter; None as long as there is no answer.
    """
    if answer is None:
        print(f"Exercise {exercise}: not answered yet.")
        return
    expected, tolerance, hint, why = ANSWERS[exercise][:4]
    if _same(answer, expected, tolerance):
        print(f"Exercise {exercise}: right. {why}")
    else:
        print(f"Exercise {exercise}: {answer} is not it. Hint: {hint}")


def _same(answer: Any, expected: Any, tolerance: float) -> bool:
    if type(expected) is str:
        return str(answer).strip().lower() == expected
    try:
        found = torch.as_tensor(answer, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        return False  # words where a number is asked for
    wanted = torch.as_tensor(expected, dtype=torch.float64).flatten()
    return found.shape == wanted.shape and bool(((found - wanted).abs() <= tolerance).all())


def rounded(values: torch.Tensor, digits: int = 3) -> list[float]:
    """The numbers of a tensor as a list, for printing."""
    return [round(value, digits) + 0.0 for value in values.tolist()]


def figure(title: str, rows: int = 1, columns: int = 1, height: float = 3.4) -> tuple[Figure, Any]:
    """A figure 700 pixels wide with its title, and its axes."""
    fig, axes = plt.subplots(rows, columns, figsize=(7, height), layout="constrained", dpi=100)
    fig.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    fig.set_label(title)
    for axis in fig.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
    return fig, axes


class TwoTowers(torch.nn.Module):
    """A CLIP of two linear maps: pictures (n, 24) and captions (n, 24) to vectors of length one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image, self.text = torch.nn.Linear(24, width), torch.nn.Linear(24, width)

    def forward(self, pictures, captions) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(self.image(pictures), dim=1), F.normalize(self.text(captions), dim=1)

    def fit(self, pairs: Any, criterion: Callable[..., torch.Tensor], epochs: int) -> None:
        """A plain loop; `criterion` gets the vectors of 100 pictures and captions, and their numbers."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        for _ in range(epochs):
            for index in torch.randperm(len(pairs[0])).split(100):
                loss = criterion(*self(pairs[0][index], pairs[1][index]), index)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    @torch.no_grad()
    def accuracy(self, pairs: Any, world: Any) -> float:
        """How often a picture finds the name of its concept, pairs[2], among those of the world."""
        pictures, names = self(*pairs[:2])[0], self(*world)[1]
        return (pictures @ names.T).argmax(1).eq(pairs[2]).float().mean().item()
