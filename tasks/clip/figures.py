"""The picture that a reader of a CLIP run looks at first: a few images and the captions the model
finds for them."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from steering.errors import SteeringError

from .evaluation import RetrievalSet, embed_texts
from .models import ClipInputs, image_features

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = "DejaVu Sans"
SHOWN, TOP = 12, 3
RIGHT, WRONG = "#1a7f37", "#555555"


@torch.no_grad()
def retrieved_captions(
    module: nn.Module,
    inputs: ClipInputs,
    data: RetrievalSet,
    device: torch.device,
    text: Tensor | None = None,
) -> Figure:
    """Twelve images of a set, spread evenly over its first batch, each with its best three
    captions; the right ones green.

    `text` are the features of its captions, (m, d), where they are at hand.
    """
    first = next(data.images(inputs), None)
    if first is None:
        raise SteeringError("evaluation: the set has no readable image")
    images, right = first[0], data.right(first[1])
    chosen = np.linspace(0, len(images) - 1, min(SHOWN, len(images))).round().astype(int)
    if text is None:
        text = embed_texts(module, inputs, data.captions, device)  # (m, d)
    scores = image_features(module, images[chosen].to(device)) @ text.T  # (12, m)
    best = scores.topk(min(TOP, len(data.captions)), dim=1)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 0.95 * len(chosen) / 2 + 0.3), layout="constrained")
    grid = figure.subplots((len(chosen) + 1) // 2, 4, width_ratios=[1, 5, 1, 5], squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    mean, std = torch.tensor(inputs.mean)[:, None, None], torch.tensor(inputs.std)[:, None, None]
    for number, row in enumerate(chosen):
        picture, words = (
            grid[number // 2, 2 * (number % 2)],
            grid[number // 2, 2 * (number % 2) + 1],
        )
        picture.imshow((images[row] * std + mean).clamp(0, 1).permute(1, 2, 0).numpy())
        answers = right[row].tolist()  # of several right captions the first one is shown
        _line(words, 0, "true", data.captions[answers[0]], "black")
        found = zip(best.values[number].tolist(), best.indices[number].tolist(), strict=True)
        for line, (score, caption) in enumerate(found, 1):
            _line(
                words,
                line,
                f"{score:+.2f}",
                data.captions[caption],
                RIGHT if caption in answers else WRONG,
            )
    return figure


def _line(axes: Axes, line: int, label: str, caption: str, colour: str) -> None:
    """Label and caption in texts of their own, as one that runs from right to left would pull the
    label along."""
    for x, text in ((0.0, label), (0.11, _shorten(caption))):
        axes.text(
            x,
            0.98 - 0.26 * line,
            text,
            color=colour,
            fontsize=7,
            fontfamily=FONT,
            va="top",
            transform=axes.transAxes,
            clip_on=True,
            parse_math=False,  # a "$" is a dollar
        )


def _shorten(text: str, width: int = 60) -> str:
    """One line of characters that the font can draw; Matplotlib warns of each of the others, and
    captions may hold any."""
    visible = [
        character for character in " ".join(text.split()) if unicodedata.category(character) != "Cf"
    ]
    text = "".join(character if ord(character) in _charmap() else "\ufffd" for character in visible)
    return text if len(text) <= width else text[: width - 1] + "…"


@cache
def _charmap() -> set[int]:
    from matplotlib.font_manager import findfont
    from matplotlib.ft2font import FT2Font

    return set(FT2Font(findfont(FONT)).get_charmap())
