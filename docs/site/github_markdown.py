"""What the pages' Markdown means on GitHub, said so that the site's Markdown means it too."""

from __future__ import annotations

import re

ARXIV = re.compile(
    r"(?P<kept>^ *(```+).*?^ *\2|`[^`\n]*`|\$\$.*?\$\$|\[[^]\n]*\]\([^)\n]*\))"
    r"|\barXiv\s(?P<numbers>\d{4}\.\d{5}(?:(?:,\s|\sand\s)\d{4}\.\d{5})*)",
    re.M | re.S,
)


def with_papers(markdown: str) -> str:
    """Every "arXiv NUMBER" of the prose as a link."""
    return ARXIV.sub(_paper, markdown)


def _paper(found: re.Match[str]) -> str:
    """A paper's number as a link; text that is code, a formula or a link already stays."""
    if found["kept"]:
        return found["kept"]
    numbers = re.findall(r"\d{4}\.\d{5}", found["numbers"])
    return "arXiv " + ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in numbers)


def with_lists(markdown: str) -> str:
    """GitHub takes a list directly below a paragraph; here it would become part of it. Below a list
    item GitHub takes two spaces of indent, and here four are needed."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        item = re.match(r"(?:[*-]|\d+\.) ", line)
        if item and not fenced and lines and lines[-1].strip():
            above = lines[-1]
            if not re.match(r"\s|(?:[*-]|\d+\.) ", above) and not above.startswith("|"):
                lines.append("")
        lines.append(line)
    return "\n".join(lines)
