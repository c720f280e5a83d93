"""A labelled image, or text, for a person to look at."""

from __future__ import annotations

from PIL import Image

from steering.exhibits import Exhibit, thumbnail

from .data import Labelled
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
