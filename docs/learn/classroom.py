"""What every lesson uses: `check` for the exercises, and one style for all figures."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import torch
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
