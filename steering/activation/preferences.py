"""Which answers are better: rankings, pairs of best and worst, and the pairs that say most.

Shapes: K answers to one prompt.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Ranker = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[Sequence[float]]]
"""Scores of the K answers to each of n prompts, (n, K): more is better."""


@dataclass(frozen=True)
class Pair:
    """A better and a worse answer to one prompt.

    Attributes:
        margin: score of the better minus that of the worse, > 0.
    """

    prompt: str
    better: str
    worse: str
    margin: float


def best_and_worst(prompt: str, answers: Sequence[str], scores: Sequence[float]) -> Pair | None:
    """The answers of the highest and the lowest score; None where all scores are equal (one answer
    among them), or the two are the same text. The first of several equals is taken.

    Raises:
        ValueError: another number of scores than of answers, or a score that is not finite.
    """
    if len(answers) != len(scores):
        raise ValueError(f"{len(scores)} scores for {len(answers)} answers")
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"scores: not finite: {list(scores)}")
    if not len(values) or values.max() == values.min():
        return None
    best, worst = answers[int(values.argmax())], answers[int(values.argmin())]
    if best == worst:
        return None
    return Pair(prompt, best, worst, float(values.max() - values.min()))


def most_informative(pairs: Sequence[Pair], share: float) -> list[Pair]:
    """Contrast sampling: the given share of the pairs, rounded up, those of the largest margins, in
    their old order. Share 1 is all of them.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")
    count = math.ceil(share * len(pairs) - 1e-9)  # 0.07·100 is a little above 7
    order = np.argsort([-pair.margin for pair in pairs], kind="stable")
    return [pairs[number] for number in sorted(order[:count].tolist())]


def wins(count: int, prefers_first: Callable[[int, int], bool]) -> list[float]:
    """Tournament of all pairs of K answers, asked in both orders: a win counts 1, a tie 1/2.

    Whoever judges pairs often favours the first or the second place. So a pair is asked twice, and
    counts as a win only where both answers name the same one.

    Args:
        prefers_first: whether, of answers i and j shown in this order, i is the better one.
    """
    score = [0.0] * count
    for i, j in itertools.combinations(range(count), 2):
        forth, back = prefers_first(i, j), prefers_first(j, i)
        if forth == back:  # the first place won twice, or the second: the order decided
            score[i], score[j] = score[i] + 0.5, score[j] + 0.5
        else:
            score[i if forth else j] += 1.0
    return score


def distinct_share(texts: Sequence[str], n: int = 4) -> float:
    """Different n-grams of characters over all n-grams of the texts: low for repetition; NaN when
    every text is shorter than n."""
    grams = [text[start : start + n] for text in texts for start in range(len(text) - n + 1)]
    return len({*grams}) / len(grams) if grams else float("nan")
