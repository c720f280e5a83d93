"""Training examples in which groups have given shares."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from steering.data import uniform
from steering.errors import SteeringError

from .data import SHARES


def require_shares(shares: Mapping[int, float]) -> None:
    """SteeringError unless these are shares of a whole by group number."""
    for group, share in shares.items():
        if group < 0 or not 0 <= share <= 1:
            raise SteeringError(
                f"group_shares: expected group number -> share in [0, 1], got {group}: {share}"
            )
    if sum(shares.values()) > 1 + 1e-9:
        raise SteeringError(f"group_shares: they sum to {sum(shares.values()):g}, more than 1")


def in_shares(
    groups: np.ndarray, shares: Mapping[int, float], numbers: np.ndarray, seed: int
) -> np.ndarray:
    """Positions of as many examples as possible in which the groups have the given shares,
    ascending.

    Groups that are not named have what is left, in the proportions in which they are there. Which
    examples of a group stay depends on (seed, its number) alone.

    Args:
        groups: of each example, int64, (m,).
        numbers: of the examples in their source, (m,).

    Raises:
        SteeringError: the shares leave something, and there is no other group to have it.
    """
    counts = np.bincount(groups, minlength=max(shares) + 1).astype(np.float64)
    named = np.zeros(len(counts), dtype=bool)
    named[list(shares)] = True
    wanted = np.array([shares.get(group, 0.0) for group in range(len(counts))])
    others = counts[~named].sum()
    left = max(0.0, 1 - wanted.sum())
    if left > 1e-9 and not others:
        raise SteeringError(
            f"group_shares: they add up to {wanted.sum():g}, and no other group has examples for the rest"
        )
    if others:
        wanted[~named] = left * counts[~named] / others
    used = wanted > 1e-12
    total = np.floor((counts[used] / wanted[used]).min() + 1e-9)
    kept = np.minimum(np.round(total * wanted), counts).astype(np.int64)
    place = uniform(seed, SHARES, numbers)
    stays = [
        members[np.argsort(place[members], kind="stable")[: kept[group]]]
        for group in range(len(counts))
        for members in [np.flatnonzero(groups == group)]
    ]
    return np.sort(np.concatenate(stays))
