"""Examples as cards in a picture of TensorBoard: image, text, a title each; in rows of four.

All cards stand on one pair of axes, at places in inches: axes of their own, with a layout that is
searched for, take about twice as long to draw.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import wrap
from typing import TYPE_CHECKING

from steering.exhibits import Exhibit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Examples side by side: TensorBoard shows a picture some 350 pixels wide."""
LETTERS, LETTERS_ALONE = 90, 240
"""Of a text under an image, and of one that stands alone."""
ACROSS = 18
"""Letters that fit beside each other."""
FONT = "DejaVu Sans"
WIDTH, SIDE, TITLE, LINE, GAP, NAME = 1.4, 1.15, 0.24, 0.14, 0.12, 1.0
"""Inches: a card, its image, a line of a title, a line of a text, what lies between, and a part's
name."""


@dataclass(frozen=True)
class Titled:
    """An example under a title in a colour."""

    exhibit: Exhibit
    title: str
    colour: str = "black"

    def lines(self) -> list[str]:
        """What it is, and behind an arrow what a model made of it."""
        alone, said = self.exhibit.picture is None, self.exhibit.said
        told = [self.exhibit.text, f"→ {said}"] if said else [self.exhibit.text]
        letters = LETTERS_ALONE if alone else LETTERS
        cut = [_drawable(" ".join(text.split())[:letters]) for text in told]
        return [line for text in cut for line in wrap(text, ACROSS)]


def cards_figure(parts: Mapping[str, Sequence[Titled]]) -> Figure:
    """Cards in rows, part below part.

    Args:
        parts: name → cards, at least one card in all; the name stands at the left, unless it is
            empty.
    """
    from matplotlib.figure import Figure

    columns = min(COLUMNS, max(map(len, parts.values())))
    rows = [
        (name if start == 0 else "", cards[start : start + columns])
        for name, cards in parts.items()
        for start in range(0, len(cards), columns)
    ]
    heights = [max(_height(cards), NAME * bool(name)) for name, cards in rows]
    left = 0.25 if any(parts) else 0.0
    size = left + columns * WIDTH, sum(heights)
    figure = Figure(figsize=size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    top = 0.0
    for (name, cards), height in zip(rows, heights, strict=True):
        axes.text(0.05, top + height / 2, name, fontsize=10, rotation=90, va="center")
        for column, card in enumerate(cards):
            _draw(axes, card, left + column * WIDTH, top)
        top += height
    # After the images, which would set limits of their own.
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.set_aspect("auto")
    return figure


def _height(cards: Sequence[Titled]) -> float:
    pictures = any(card.exhibit.picture is not None for card in cards)
    return TITLE + SIDE * pictures + LINE * max(len(card.lines()) for card in cards) + 2 * GAP


def _draw(axes: Axes, card: Titled, left: float, top: float) -> None:
    """One card with its upper left corner at a place in inches."""
    from matplotlib.image import imread
    from matplotlib.patches import Rectangle

    middle = left + WIDTH / 2
    axes.text(middle, top + TITLE, card.title, color=card.colour, fontsize=10, ha="center")
    below, lines = top + TITLE + GAP / 2, "\n".join(card.lines())
    text = {"fontsize": 8, "va": "top", "parse_math": False}  # a "$" is a dollar
    if card.exhibit.picture is None:
        axes.text(left + GAP, below, lines, text, family=f"{FONT} Mono")
        return
    image = imread(io.BytesIO(card.exhibit.picture))
    height, width = image.shape[:2]
    high, wide = (SIDE * side / max(height, width) for side in (height, width))
    box = middle - wide / 2, middle + wide / 2, below + high, below
    axes.imshow(image, cmap="gray", extent=box)
    frame = Rectangle((box[0], box[3]), wide, high, fill=False, edgecolor="silver", linewidth=0.5)
    axes.add_patch(frame)
    axes.text(middle, below + SIDE + GAP / 2, lines, text, family=FONT, ha="center")


def _drawable(text: str) -> str:
    """The text with a box for every character that the font lacks, which would be warned of."""
    return "".join(letter if ord(letter) in _known() else "□" for letter in text)


@cache
def _known() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(f"{FONT} Mono")).get_charmap())
