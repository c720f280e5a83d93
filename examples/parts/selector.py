"""A selector in one file: of the drawn examples those on which the target is worst, whatever the
reference says of them. It stands before any method.

method: {name: drrho, select: {name: "examples/parts/selector.py:worst", share: 0.5}}
"""

from dataclasses import dataclass
from typing import ClassVar

from steering.items import rows_of
from steering.methods.selection import SELECTORS, Selector, SelectorOptions, largest


class Worst(Selector):
    def choose(self, items, count):
        return largest(rows_of(items).target.detach(), count)


@SELECTORS.register("worst")
@dataclass(frozen=True)
class WorstOptions(SelectorOptions):
    units: ClassVar[tuple[str, ...]] = ("example", "sequence")
    share: float = 0.5
    """Share of the drawn examples to train on, in (0, 1]."""

    def selector(self):
        return Worst(self.share)
