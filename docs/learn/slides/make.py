"""The deck, from `deck.txt`: one HTML file that needs no network, and prints a slide a page.

    python docs/learn/slides/make.py

A slide begins with `# Title`. A line of its own below it says by its first characters what it is: `* ` an item, `|` a row
of a table, `![alt](picture)`, `$ ` a formula, `> ` what to say beside it (key N on the screen), between two fences code,
else words. In words: **bold**, *italic*, `code`, $a formula$, [text](link). In a formula: `_x`, `^x`, `_{…}`, `^{…}`.
"""

from __future__ import annotations

import html
import re
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).resolve().parent
FENCE = "```"
MARKS = re.compile(
    r"`(?P<code>[^`]+)`|\$(?P<formula>[^$]+)\$|\*\*(?P<b>[^*]+)\*\*|\*(?P<i>[^*]+)\*|\[(?P<text>[^\]]+)\]\((?P<link>[^)]+)\)"
)
PICTURE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<source>[^)]+)\)")


def slides(text: str) -> list[list[str]]:
    """The lines of each slide, its title first."""
    found: list[list[str]] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.startswith(FENCE)
        if line.startswith("# ") and not fenced:
            found.append([])
        if found:
            found[-1].append(line)
    return found


def inline(text: str) -> str:
    """Words with their marks as HTML."""

    def marked(found: re.Match[str]) -> str:
        if found["formula"]:
            return f"<i>{formula(html.unescape(found['formula']))}</i>"
        for tag in ("code", "b", "i"):
            if found[tag]:
                return f"<{tag}>{found[tag]}</{tag}>"
        return f'<a href="{found["link"]}">{found["text"]}</a>'

    return MARKS.sub(marked, html.escape(text, quote=False))


def formula(text: str) -> str:
    """A formula in plain letters, with what is raised and lowered."""
    text = html.escape(text, quote=False)
    for mark, tag in (("_", "sub"), ("^", "sup")):
        text = re.sub(rf"\{mark}(?:\{{([^}}]*)\}}|(\w))", rf"<{tag}>\1\2</{tag}>", text)
    return text


def kind(line: str) -> str:
    for start, name in (("* ", "items"), ("|", "table"), ("$ ", "formula"), ("> ", "notes")):
        if line.startswith(start):
            return name
    return "picture" if PICTURE.fullmatch(line) else "words" if line.strip() else ""


def blocks(lines: list[str]) -> str:
    """What stands on a slide below its title."""
    parts = []
    for place, part in enumerate("\n".join(lines).split(FENCE)):
        if place % 2:
            parts.append(f"<pre>{html.escape(part.partition(chr(10))[2].rstrip())}</pre>")
            continue
        for name, group in groupby(part.splitlines(), kind):
            parts.append(block(name, [*group]))
    return "\n".join(part for part in parts if part)


def block(name: str, lines: list[str]) -> str:
    if name == "items":
        return "<ul>" + "".join(f"<li>{inline(line[2:])}</li>" for line in lines) + "</ul>"
    if name == "table":
        rows = [[inline(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
        head, _, *body = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
        inner = "".join(f"<tr>{row}</tr>" for row in body)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{inner}</tbody></table>"
    if name == "formula":
        return "".join(f'<p class="formula">{formula(line[2:])}</p>' for line in lines)
    if name == "notes":
        return f"<aside>{inline(' '.join(line[2:] for line in lines))}</aside>"
    if name == "picture":
        found = [PICTURE.fullmatch(line) for line in lines]
        return "".join(f'<img src="{one["source"]}" alt="{one["alt"]}">' for one in found if one)
    return f"<p>{inline(' '.join(lines))}</p>" if name else ""


def page(text: str) -> str:
    """The whole deck."""
    deck = slides(text)
    sections = []
    for number, (title, *lines) in enumerate(deck, 1):
        only = {kind(line) for line in lines} <= {"", "words", "notes"}
        only &= not any(line.startswith(FENCE) for line in lines)
        name = ' class="title"' if only else ""
        sections.append(
            f"<section{name} id=s{number}>\n<h1>{inline(title[2:])}</h1>\n{blocks(lines)}\n"
            f"<footer>{number} / {len(deck)}</footer>\n</section>"
        )
    frame = (HERE / "frame.html").read_text(encoding="utf-8")
    return frame.replace("SLIDES", "\n".join(sections))


def main() -> None:
    text = (HERE / "deck.txt").read_text(encoding="utf-8")
    (HERE / "index.html").write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
