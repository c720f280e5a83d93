"""What a solver starts from when nobody says: by the unit of the losses, for the methods and for
the functions alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Defaults:
    """Of one unit; a config or a caller may name each of them.

    Attributes:
        tau: temperature in the unit of the losses. Losses in nats differ by about 1, cosines by a
            tenth of it.
        epsilon: KL's margin. A pair may let go once it is told from the others; a loss in nats has
            no such mark, and a margin would take weight from batches that are easy by chance.
        gamma: rate of the moving average. One row serves all batches of examples; they are small,
            and a little memory takes some of their bias away. A batch of tokens is large without
            it, and the row of a pair is seen once an epoch, when the model has moved on.
    """

    tau: float
    epsilon: float
    gamma: float


_BY_UNIT = {
    "example": Defaults(tau=1.0, epsilon=0.0, gamma=0.9),
    "sequence": Defaults(tau=1.0, epsilon=0.0, gamma=0.9),
    "token": Defaults(tau=1.0, epsilon=0.0, gamma=1.0),
    "pair": Defaults(tau=0.07, epsilon=1e-4, gamma=1.0),
}


def defaults(unit: str) -> Defaults:
    """Of a unit of `ReferenceRisk.unit`; one that nobody knows has losses in nats, as examples
    have."""
    return _BY_UNIT.get(unit, _BY_UNIT["example"])


def default_tau(unit: str) -> float:
    """1 for losses in nats (example, token, sequence), CLIP's 0.07 for cosines (pair)."""
    return defaults(unit).tau
