"""A study's page as one HTML file that opens without a server: pictures inlined, no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steering.analysis.page import Report, Table

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #181818); }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { max-width: 60rem; } .note, footer { color: light-dark(#555, #aaa); font-size: .9rem; }
figure { margin: 1.5rem 0; } figure img { max-width: min(100%, 48rem); background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid light-dark(#ddd, #444); }
th { vertical-align: bottom; border-bottom-width: 2px; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
footer { margin-top: 2.5rem; border-top: 1px solid light-dark(#ddd, #444); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.card { border: 1px solid light-dark(#ccc, #555); border-radius: 6px; padding: .7rem;
  overflow-wrap: anywhere; }
.card.wrong { border-color: #c33; background: light-dark(#fff4f4, #2c1a1a); }
.card img { display: block; height: 96px; max-width: 100%; margin-bottom: .5rem;
  image-rendering: pixelated; }
.card p { margin: 0 0 .4rem; white-space: pre-wrap; }
.card dl { display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: 0;
  color: light-dark(#555, #aaa); }
.card dd { margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
"""


def html_page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The report's title, intro, pictures and tables; every text is escaped.

    Args:
        pictures: name -> PNG, as the report's figures have it.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(report.title)}</h1><p>{_words(report.intro)}</p>",
        report.html(),
        *(_figure(name or report.name, picture) for name, picture in pictures.items()),
        *(_section(table) for table in report.tables),
    ]
    if report.made:
        parts.append(f"<footer>{_words(report.made)}</footer>")
    return "\n".join(part for part in [*parts, "</body></html>"] if part) + "\n"


def inlined(picture: bytes, alt: str) -> str:
    """An <img> that holds its PNG."""
    data = base64.b64encode(picture).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def _figure(name: str, picture: bytes) -> str:
    return f"<figure>{inlined(picture, name)}</figure>"


def _section(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    lines = [
        "".join(_cell(cell, (at, column) in table.bold) for column, cell in enumerate(line))
        for at, line in enumerate(table.lines)
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    note = f'<p class="note">{_words(table.note)}</p>' if table.note else ""
    return (
        f'<h2>{escape(table.heading)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>{note}"
    )


def _cell(text: str, bold: bool) -> str:
    shown = escape(text)
    return f"<td>{f'<b>{shown}</b>' if bold else shown}</td>"


def _words(text: str) -> str:
    """Running text, in which only `code` is marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
