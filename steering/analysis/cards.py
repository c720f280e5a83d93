"""Examples as cards on one HTML page that opens without a server: pictures inlined, no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from steering.exhibits import Exhibit

_CUT = 80  # characters of a text in a table
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.card { border: 1px solid #ccc; border-radius: 6px; padding: .7rem; overflow-wrap: anywhere; }
.card.wrong { border-color: #c33; background: #fff4f4; }
.card img { display: block; height: 96px; max-width: 100%; margin-bottom: .5rem;
  image-rendering: pixelated; }
.card p { margin: 0 0 .4rem; white-space: pre-wrap; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: 0; color: #555; }
.card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
"""


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


def page_of(title: str, intro: str, sections: Mapping[str, Sequence[Card]]) -> str:
    """The whole page; every text is escaped."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(intro)}</p>",
    ]
    for name, cards in sections.items():
        parts.append(f'<h2>{escape(name)}</h2><div class="cards">')
        parts += [_card(card) for card in cards]
        parts.append("</div>")
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _card(card: Card) -> str:
    facts = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in card.facts().items()
    )
    picture = ""
    if card.exhibit.picture is not None:
        data = base64.b64encode(card.exhibit.picture).decode("ascii")
        picture = f'<img alt="example {card.number}" src="data:image/png;base64,{data}">'
    kind = "card wrong" if card.wrong else "card"
    return f'<div class="{kind}">{picture}<p>{escape(card.exhibit.text)}</p><dl>{facts}</dl></div>'
