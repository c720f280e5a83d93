"""Lessons to pages: runs each lesson, and writes its Markdown, its figures and its notebook.

    python docs/learn/render.py          all lessons, the answers, and the list of lessons
    python docs/learn/render.py 3 4      lessons 3 and 4

A lesson is a Python file of cells: `# %%` begins a cell of code, `# %% [markdown]` one of text.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pprint
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: a second thread only waits

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # the lessons import their helpers as a student does

from answers import ANSWERS

LESSONS = sorted(HERE.glob("lesson_*.py"))
CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n(?P<body>.*?)(?=^# %%|\Z)", re.M | re.S)
HELPERS = re.compile(r"^from classroom import [^\n(]*(?:\([^)]*\))?\n", re.M)
NEEDS = 'The next cell holds the helpers of all lessons. They need the package: `pip install ".[vision]"` in a clone of it.'
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")  # a notebook stands alone


@dataclass
class Cell:
    """One cell of a lesson, and what came out of it."""

    text: bool
    body: str
    output: str = ""
    figures: list[str] = field(default_factory=list)  # their titles, in order


def cells(lesson: Path) -> list[Cell]:
    source = lesson.read_text(encoding="utf-8")
    found = []
    for match in CELL.finditer(source):
        body = match["body"].strip("\n")
        if match["kind"]:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
        found.append(Cell(bool(match["kind"]), body))
    return found


def execute(lesson: Path, images: Path | None = None) -> list[Cell]:
    """The cells with their outputs; figures go to `images`, or nowhere."""
    plt.close("all")
    names: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    found, number = cells(lesson), 0
    for cell in found:
        if cell.text:
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(cell.body, str(lesson), "exec"), names)
        cell.output = out.getvalue().rstrip()
        for title, drawn in drawings():
            number += 1
            cell.figures.append(title)
            if images is not None:
                # Without the name of the library's version in it, the same picture is the same file.
                drawn.savefig(images / f"{short(lesson)}-{number}.png", metadata={"Software": None})
        plt.close("all")
    return found


def drawings() -> Iterator[tuple[str, Any]]:
    for number in plt.get_fignums():
        drawn = plt.figure(number)
        yield drawn.get_label(), drawn


def short(lesson: Path) -> str:
    """Its number, as in 03."""
    return lesson.stem.split("_")[1]


def page(lesson: Path) -> Path:
    return HERE / (lesson.stem.removeprefix("lesson_").replace("_", "-") + ".md")


def title(lesson: Path) -> str:
    return cells(lesson)[0].body.split("\n")[0].removeprefix("# ")


def markdown(lesson: Path, run: list[Cell]) -> str:
    """The page of a lesson that has been run."""
    parts, number = [], 0
    for cell in run:
        if cell.text:
            parts.append(cell.body)
            continue
        parts.append(f"```python\n{cell.body}\n```")
        if cell.output:
            parts.append(f"```text\n{cell.output}\n```")
        for name in cell.figures:
            number += 1
            parts.append(f"![{name}](images/{short(lesson)}-{number}.png)")
    parts.insert(1, f"Take it with you: [notebook](notebooks/{page(lesson).stem}.ipynb), "
                    f"[Python file]({lesson.name}).")  # fmt: skip
    return "\n\n".join(parts) + "\n\n" + "".join(neighbours(lesson)) + "\n"


def neighbours(lesson: Path) -> Iterator[str]:
    yield "---\n\n[All lessons](index.md)"
    place = LESSONS.index(lesson)
    if place:
        yield f" · Before: [{title(LESSONS[place - 1])}]({page(LESSONS[place - 1]).name})"
    if place + 1 < len(LESSONS):
        yield f" · Next: [{title(LESSONS[place + 1])}]({page(LESSONS[place + 1]).name})"


def notebook(lesson: Path) -> str:
    """The lesson without outputs, its helpers in a folded cell: one file that needs no other."""
    first, *rest = cells(lesson)
    goals = LINK.sub(r"\1", first.body)
    found = [_entry("markdown", f"{goals}\n\n{NEEDS}"), helpers_of(lesson)]
    for cell in rest:
        if cell.text:
            found.append(_entry("markdown", LINK.sub(r"\1", cell.body)))
        else:
            found.append(_entry("code", HELPERS.sub("", cell.body)))
    for place, entry in enumerate(found):
        entry["id"] = f"cell-{place}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": found, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def helpers_of(lesson: Path) -> dict[str, Any]:
    number = str(int(short(lesson)))
    own = {key: tuple(told[:4]) for key, told in ANSWERS.items() if key.split(".")[0] == number}
    source = (HERE / "classroom.py").read_text(encoding="utf-8")
    source = source.replace("from answers import ANSWERS\n", "")
    entry = _entry("code", f"{source}\n# No peeking.\nANSWERS = {pprint.pformat(own)}")
    entry["metadata"] = {"jupyter": {"source_hidden": True}}
    return entry


def _entry(kind: str, text: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text}
    if kind == "code":
        entry |= {"execution_count": None, "outputs": []}
    return entry


def answers() -> str:
    """The answers, with the line of code that finds each."""
    lines = ["# Answers to the exercises", "", "For instructors, and for after the attempt.", ""]
    for lesson in LESSONS:
        lines += [f"## [{title(lesson)}]({page(lesson).name})", ""]
        number = str(int(short(lesson)))
        for key, told in ANSWERS.items():
            if key.split(".")[0] == number:
                code = f" Found with `{told.code}`." if told.code else ""
                lines += [f"* **{key}**: {told.expected}. {told.why}{code}"]
        lines += [""]
    return "\n".join(lines)


def write(lesson: Path) -> None:
    for old in (HERE / "images").glob(f"{short(lesson)}-*.png"):
        old.unlink()
    run = execute(lesson, HERE / "images")
    page(lesson).write_text(markdown(lesson, run), encoding="utf-8")
    (HERE / "notebooks" / f"{page(lesson).stem}.ipynb").write_text(
        notebook(lesson), encoding="utf-8"
    )


def main(numbers: list[str]) -> None:
    wanted = [f"{int(number):02d}" for number in numbers]
    for lesson in LESSONS:
        if not wanted or short(lesson) in wanted:
            write(lesson)
    (HERE / "answers.md").write_text(answers(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
