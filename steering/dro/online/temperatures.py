"""Which temperature an adversary has."""

from __future__ import annotations

import math

from steering.dro.adversary import Adversary
from steering.dro.online.individual_temperatures import IndividualTemperatures
from steering.dro.online.row_table import Layout
from steering.dro.online.solved_temperature import SolvedTemperature
from steering.dro.online.temperature import Temperature, Temperatures


def temperature_of(
    adversary: Adversary, num_rows: int, solve_tau: bool, tau_max: float | None, layout: Layout
) -> Temperatures:
    """The temperature, or temperatures, of an adversary's rows.

    Args:
        solve_tau: one learned τ moves by itself, instead of being somebody's parameter.
        tau_max: where a learned τ may go; None is ∞, and 1 for individual ones.

    Raises:
        ValueError: τ out of its range.
    """
    # CVaR has no τ: at 1 its scores are the losses themselves.
    tau = 1.0 if adversary.tau is None else adversary.tau(0.0)
    radius, smallest = adversary.radius, adversary.tau_min
    if radius is None:
        # `tau_min` is of learned temperatures; one that is given may lie below.
        return Temperature(tau, learned=False, minimum=min(tau, smallest))
    if adversary.individual_tau:
        largest = 1.0 if tau_max is None else tau_max
        lr = adversary.individual_tau_lr
        return IndividualTemperatures(num_rows, tau, lr, smallest, largest, layout)
    largest = math.inf if tau_max is None else tau_max
    if solve_tau:
        return SolvedTemperature(tau, radius, adversary.divergence, smallest, largest)
    return Temperature(tau, learned=True, minimum=smallest, maximum=largest)
