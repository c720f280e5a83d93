"""The steering plane: its cells, the families among them, and what a study of it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steering.analysis.trials import Trials

BEST, RAY, SHARP, FILTER = (
    "best",
    "best on DRRho's ray",
    "best adversary alone",
    "best filter alone",
)
UNGUIDED, PUBLISHED = "unguided", "DRRho"


@dataclass(frozen=True, order=True)
class Cell:
    """A place on the plane: log p = x·ℓ − y·ℓ_ref + const, x = 1/τ and y = κ."""

    x: float
    y: float

    @property
    def name(self) -> str:
        return f"x{self.x:g}-y{self.y:g}"

    def __str__(self) -> str:
        return f"({self.x:g}, {self.y:g})"


ORIGIN = Cell(0.0, 0.0)
"""Unguided training."""


def group(cell: Cell) -> str | None:
    """The one-parameter family that a cell belongs to: the ray, or one of the axes; None: none."""
    if cell == ORIGIN:
        return None
    if cell.x == cell.y:
        return RAY
    if cell.y == 0:
        return SHARP
    return FILTER if cell.x == 0 else None


def cell_of(axes: Mapping[str, Any]) -> Cell:
    """Whose run it is, by its axes "x" and "y"."""
    return Cell(axes["x"], axes["y"])


def choices(trials: Trials[Cell], published: float | None) -> dict[str, Cell]:
    """What is reported: role -> cell. Empty before the race is over.

    Args:
        published: 1/τ of DRRho as published, which is reported whether or not it is any good;
            None: it is not.
    """
    if not trials.over:
        return {}
    found = {UNGUIDED: ORIGIN}
    if published is not None:
        found[PUBLISHED] = Cell(published, published)
    for role in (RAY, SHARP, FILTER):
        best = trials.race.best([cell for cell in trials.candidates if group(cell) == role])
        found |= {} if best is None else {role: best}
    best = trials.race.best(trials.candidates)
    return found | ({} if best is None else {BEST: best})
