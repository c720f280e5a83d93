"""The one place in which the modules build their adversaries."""

from __future__ import annotations

from typing import Any

from steering.dro.defaults import defaults
from steering.dro.divergences import divergence as find
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
        named: the other arguments of `StochasticRisk`, by name.

    Raises:
        ValueError: an argument out of range.
    """
    usual = defaults(unit)
    phi = find(named.get("divergence", "kl"), named.get("level"), named.get("order"))
    if named["tau"] is None and phi.takes_budget:
        named["tau"] = usual.tau
    if named["epsilon"] is None:
        named["epsilon"] = usual.epsilon
    if named["gamma"] is None:
        named["gamma"] = usual.gamma
    return StochasticRisk(num_rows, solve_tau=True, layout=layout, **named)
