"""Examples as cards on a study's HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from steering.analysis.html_page import inlined
from steering.exhibits import Exhibit

_CUT = 80  # characters of a text in a table


@dataclass(frozen=True)
class Card:
    """One example with its weight (mean 1) and losses (nats); None: there is no reference, or
    nobody knows whether the label is wrong."""

    number: int
    exhibit: Exhibit
    weight: float
    target: float
    reference: float | None
    wrong: bool | None

    def facts(self) -> dict[str, str]:
        """Name -> value, as a reader sees them."""
        found = {"number": f"{self.number:,}", "weight": f"{self.weight:.3g}"}
        found["ℓ"] = f"{self.target:.2f}"
        if self.reference is not None:
            found["ℓ_ref"] = f"{self.reference:.2f}"
        if self.wrong is not None:
            found["known wrong"] = "yes" if self.wrong else "no"
        return found

    def cells(self) -> list[str]:
        """A line of a table: number, weight, losses, known wrong, text."""
        facts, text = self.facts(), " ".join(self.exhibit.text.split())
        names = ("number", "weight", "ℓ", "ℓ_ref", "known wrong")
        return [*(facts.get(name, "–") for name in names), text[:_CUT]]

    def row(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "number": self.number,
            "text": self.exhibit.text,
            "weight": self.weight,
            "target_loss": self.target,
            "reference_loss": self.reference,
            "wrong": self.wrong,
        }


def cards_html(sections: Mapping[str, Sequence[Card]]) -> str:
    """Sections of cards, as a piece of a page; every text is escaped."""
    parts: list[str] = []
    for name, cards in sections.items():
        parts.append(f'<h2>{escape(name)}</h2><div class="cards">')
        parts += [_card(card) for card in cards]
        parts.append("</div>")
    return "\n".join(parts)


def _card(card: Card) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.facts().items()
    )
    picture = ""
    if card.exhibit.picture is not None:
        picture = inlined(card.exhibit.picture, f"example {card.number}")
    kind = "card wrong" if card.wrong else "card"
    return f'<div class="{kind}">{picture}<p>{escape(card.exhibit.text)}</p><dl>{facts}</dl></div>'
