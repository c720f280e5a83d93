"""Successive halving: all candidates with a small budget, the better ones with more of it.

Source: arXiv 1502.07943 (Jamieson and Talwalkar), algorithm 1, here with rounds that are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C")


@dataclass(frozen=True)
class Round:
    """What each candidate of a round may use: a share of the full length of training, and seeds
    0 .. seeds − 1."""

    share: float
    seeds: int


@dataclass(frozen=True)
class Race(Generic[C]):
    """How far a race has come.

    Attributes:
        finished: of each finished round candidate -> score, in the order of the candidates.
        left: who takes part in the next round, or has survived the last one.
    """

    finished: list[dict[C, float]]
    left: list[C]

    def last(self, candidate: C) -> int:
        """The last finished round that a candidate took part in; −1: none."""
        rounds = [number for number, one in enumerate(self.finished) if candidate in one]
        return rounds[-1] if rounds else -1

    def best(self, among: Sequence[C]) -> C | None:
        """Who came farthest, and of these who has the highest score there; None among nobody, or where
        all have lost (a score of −∞)."""
        known = [one for one in among if self.last(one) >= 0 and self._score(one) > -math.inf]
        return max(known, key=lambda one: (self.last(one), self._score(one)), default=None)

    def _score(self, candidate: C) -> float:
        return self.finished[self.last(candidate)][candidate]


def halving(
    candidates: Sequence[C],
    rounds: Sequence[Round],
    score: Callable[[C, Round], float],
    survivors: float,
    family: Callable[[C], Hashable] = lambda _: None,
) -> Race[C]:
    """Run the rounds as far as there are scores.

    Args:
        score: of a candidate in a round, of which more is better; NaN: not known yet, and the race
            stands before this round.
        survivors: share of a round's candidates, rounded up, that the next one has.
        family: of a candidate; each family keeps that share of its own, so that no family is judged
            by the short rounds alone.
    """
    finished: list[dict[C, float]] = []
    left = list(candidates)
    for number, one in enumerate(rounds):
        scores = {candidate: score(candidate, one) for candidate in left}
        if any(math.isnan(value) for value in scores.values()):
            break
        finished.append(scores)
        if number < len(rounds) - 1:
            left = _best(scores, survivors, family)
    return Race(finished, left)


def _best(scores: dict[C, float], survivors: float, family: Callable[[C], Hashable]) -> list[C]:
    """The highest of each family, in the order in which they came; of equal ones the earlier. Who has
    lost (−∞) takes part in no further round."""
    families: dict[Hashable, list[C]] = {}
    for candidate in sorted(scores, key=lambda one: -scores[one]):
        families.setdefault(family(candidate), []).append(candidate)
    # The slack is for products such as 0.07·100, a little above 7.
    chosen = {
        one for mine in families.values() for one in mine[: math.ceil(survivors * len(mine) - 1e-9)]
    }
    return [one for one in scores if one in chosen and scores[one] > -math.inf]
