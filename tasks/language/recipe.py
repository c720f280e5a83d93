"""The recipe of the training documents: without duplicates, filtered, repeated. What follows counts
blocks: `part`, `corrupt`, `mix`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from steering.errors import SteeringError

from ..transforms import Duplicate, Filter, duplicated, filtered, find_filter, first_ones

WHAT = "documents"


@dataclass
class TextsFilter(Filter):
    """Which training documents stay. A function is called with the text and its domain; a file of
    scores has a number for each document, domain after domain."""

    shortest: int = 0
    """Least characters of a document."""
    longest: int | None = None
    """Most characters; null: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shortest < 0 or (self.longest is not None and self.longest < self.shortest):
            raise SteeringError(
                f"shortest, longest: expected 0 <= shortest <= longest, got {self.shortest}, "
                f"{self.longest}"
            )


def cooked(
    domains: Mapping[str, Sequence[str]],
    dedup: str,
    given: TextsFilter,
    repeat: Duplicate,
    seed: int,
    reserved: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[str]]:
    """Documents by domain after the steps of a recipe, in this order.

    Args:
        reserved: documents kept from training: no copy of them is left either.

    Raises:
        SteeringError: a domain has none left.
    """
    found = [(domain, text) for domain, texts in domains.items() for text in texts]
    if dedup != "none":
        key = str if dedup == "exact" else _words
        away = [key(text) for texts in (reserved or {}).values() for text in texts]
        kept = first_ones([key(text) for _, text in found], WHAT, away)
        found = [found[row] for row in kept]
    if given != TextsFilter():
        rows = filtered(given, len(found), _judge(found, given), WHAT, own=True)
        found = [found[row] for row in rows]
    if repeat.share > 0 and repeat.times > 1:
        found = [found[row] for row in duplicated(repeat, len(found), seed, WHAT)]
    left = {domain: [text for other, text in found if other == domain] for domain in domains}
    if empty := [domain for domain, texts in left.items() if not texts]:
        raise SteeringError(
            f"task.data: the recipe leaves no document of {', '.join(empty)}; expected at least one "
            "of each domain"
        )
    return left


def _words(text: str) -> str:
    """What near duplicates have in common: the words, without case, punctuation and layout."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _judge(found: Sequence[tuple[str, str]], given: TextsFilter) -> Callable[[int], str | None]:
    function = None if given.function is None else find_filter(given.function)

    def passes(row: int) -> str | None:
        domain, text = found[row]
        if len(text) < given.shortest:
            return f"shorter than {given.shortest:,} characters"
        if given.longest is not None and len(text) > given.longest:
            return f"longer than {given.longest:,} characters"
        if function is not None and not function(text, domain):
            return f"by {given.function}"
        return None

    return passes
