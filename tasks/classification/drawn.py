"""Characters in the fonts that Matplotlib brings, as classes: sixteen drawings of each, embedded."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.data import mix
from steering.errors import SteeringError

from ..glyphs import load_glyphs
from .source_options import read_options
from .sources import ArraySource

VISIBLE = "".join(sorted(string.digits + string.ascii_letters + string.punctuation))
_TEST = 23  # key of the hash


@dataclass(frozen=True)
class Drawn:
    """Options of the source "glyphs".

    Raises:
        SteeringError: no characters, or one that stands there twice.
    """

    characters: str = VISIBLE
    """Each is a class; the 94 visible ones of ASCII."""

    def __post_init__(self) -> None:
        # YAML makes a number of digits alone.
        if not isinstance(self.characters, str) or len({*self.characters}) < 2:
            raise SteeringError(
                f"task.data.options.characters: expected a text of at least two different "
                f"characters, got {self.characters!r}"
            )
        if len({*self.characters}) < len(self.characters):
            raise SteeringError("task.data.options.characters: one of them stands there twice")


def glyphs(options: Mapping[str, Any]) -> tuple[ArraySource, ArraySource]:
    """Drawings of 32×32 grey pixels, by the fonts of `steering_tasks.glyphs`; a third is the test
    part, by a fixed hash of character and font. The slanted and the bold form of one family are
    alike, so the two parts are, too.

    Raises:
        SteeringError: an unknown option, or a character that no font draws.
    """
    given = read_options(Drawn, options)
    found = load_glyphs()
    codes = np.array([ord(one) for one in given.characters])
    for one, code in zip(given.characters, codes.tolist(), strict=True):
        if code not in found.codepoints:
            raise SteeringError(f"task.data.options.characters: no font draws {one!r}")
    drawn = found.codepoints[found.character]
    rows = np.flatnonzero(np.isin(drawn, codes))
    order = np.argsort(codes)
    labels = order[np.searchsorted(codes[order], drawn[rows])]
    test = mix(_TEST, drawn[rows], found.font[rows]) % np.uint64(3) == 0
    return (
        ArraySource(found.images[rows[~test]], labels[~test], [*given.characters]),
        ArraySource(found.images[rows[test]], labels[test], [*given.characters]),
    )
