"""Labelled images and texts for a person to look at, and what a model takes them for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from steering.exhibits import Exhibit, Judged, thumbnail

from .data import Labelled
from .evaluation import Predicted
from .images import UnreadableError
from .texts import text_of


def exhibit_of(part: Labelled, number: int) -> Exhibit:
    """The image under its label; where the source has another label, that one behind it."""
    place = int(part.numbers[number])
    shown, own = (
        part.source.classes[int(n)] for n in (part.labels[number], part.source.labels[place])
    )
    text = shown if shown == own else f"{shown} (source: {own})"
    try:
        image = part.source.image(place)
    except UnreadableError as error:
        return Exhibit(f"{text}: {error}")
    if part.source.kind == "text":
        return Exhibit(f"{text}: {text_of(image)}")
    return Exhibit(
        text, thumbnail(Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image))
    )


def judged(part: Labelled, found: Predicted, losses: np.ndarray) -> Judged:
    """Evaluated images or texts with their losses, (n,); each is shown with the class that the model
    takes it for and its probability."""
    sure, taken = found.probability.max(-1)

    def exhibits(places: Sequence[int]) -> list[Exhibit]:
        return [
            replace(
                exhibit_of(part, int(found.number[place])),
                said=f"{part.source.classes[int(taken[place])]} ({100 * float(sure[place]):.0f} %)",
            )
            for place in places
        ]

    return Judged(losses, exhibits)
