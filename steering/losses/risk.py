"""The one place in which the modules build their adversaries."""

from __future__ import annotations

from typing import Any

from steering.dro.flat import flat_adversary
from steering.dro.online.row_table import Layout
from steering.dro.online.stochastic import StochasticRisk


def adversary_of(
    num_rows: int, unit: str, layout: Layout | None = None, **named: Any
) -> StochasticRisk:
    """A risk whose temperature, with a radius, moves by itself: nothing to give to an optimiser.

    Args:
        num_rows: rows in the whole data set.
        unit: what a loss belongs to; it says what None means for tau, epsilon and gamma.
        layout: how the tables of the rows are kept; None: whole, in float32.
        named: fields of `Adversary` and of its parts, by name.

    Raises:
        ValueError: an argument out of range.
    """
    layout = layout or Layout()
    adversary = flat_adversary(**named, duals=layout.dtype, duals_folder=layout.folder)
    return StochasticRisk(num_rows, adversary.for_unit(unit), solve_tau=True, split=layout.split)
