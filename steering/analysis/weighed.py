"""All examples of a data set with their weights, in order, and as lines of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from steering.analysis.cards import Card
from steering.analysis.suspects import Confident, relative
from steering.exhibits import Exhibit, Labels


@dataclass(frozen=True)
class Weighed:
    """All examples: losses, log weights, labels."""

    target: np.ndarray
    reference: np.ndarray | None
    log_p: np.ndarray
    labels: Labels

    @cached_property
    def order(self) -> list[int]:
        """Numbers by falling weight; those without losses left out."""
        return [
            int(n) for n in np.argsort(-self.log_p, kind="stable") if np.isfinite(self.log_p[n])
        ]

    def top(self, count: int) -> list[int]:
        return self.order[:count]

    def bottom(self, count: int) -> list[int]:
        """The lowest weight first; none that `top` shows already."""
        return self.order[::-1][: min(count, max(0, len(self.order) - count))]

    @cached_property
    def weights(self) -> np.ndarray:
        """Of each example, mean 1."""
        return relative(self.log_p)

    def card(self, number: int, exhibit: Exhibit) -> Card:
        wrong = self.labels.wrong
        return Card(
            number=number,
            exhibit=exhibit,
            weight=float(self.weights[number]),
            target=float(self.target[number]),
            reference=None if self.reference is None else float(self.reference[number]),
            wrong=None if wrong is None else bool(wrong[number]),
        )

    def csv(self, confident: Mapping[str, Confident]) -> str:
        """A line for each example, by number; `rank` 1 is the lowest weight."""
        rank = {number: place for place, number in enumerate(self.order[::-1], 1)}
        columns: dict[str, Sequence[Any]] = {
            "number": range(len(self.log_p)),
            "weight": [f"{value:.6g}" for value in self.weights],
            "rank": [rank.get(number, "") for number in range(len(self.log_p))],
            "target_loss": [f"{value:.6g}" for value in self.target],
        }
        if self.reference is not None:
            columns["reference_loss"] = [f"{value:.6g}" for value in self.reference]
        if self.labels.label is not None:
            columns["label"] = [self.labels.classes[int(one)] for one in self.labels.label]
        for name, one in confident.items():
            columns[f"confident_learning_{name}"] = one.issue.astype(int).tolist()
        if self.labels.wrong is not None:
            columns["known_wrong"] = self.labels.wrong.astype(int).tolist()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
        return text.getvalue()
