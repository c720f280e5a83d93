"""The images of a retrieval set for a person to look at, with what a model finds for them."""

from __future__ import annotations

from collections.abc import Sequence

from steering.exhibits import Exhibit, Judged

from .evaluation import Embedded, RetrievalSet


def judged(data: RetrievalSet, seen: Embedded) -> Judged | None:
    """Images with their losses, each under its own caption, of several the first, and with the
    caption that the model likes best; None where a set has no pictures or a single pair."""
    losses, picture = seen.image_losses(), data.picture
    if losses is None or picture is None:
        return None

    def exhibits(places: Sequence[int]) -> list[Exhibit]:
        best = (seen.image[list(places)] @ seen.text.T).argmax(-1).tolist()
        return [
            Exhibit(
                data.captions[int(seen.captions_of[place, 0])],
                picture(int(seen.number[place])),
                said=data.captions[found],
            )
            for place, found in zip(places, best, strict=True)
        ]

    return Judged(losses.cpu().numpy(), exhibits)
