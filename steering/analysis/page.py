"""A study's page: tables and figures as Markdown, HTML, PNG, JSON and TensorBoard events, and on the
terminal. Needs no torch."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from steering.console import CONSOLE
from steering.errors import SteeringError
from steering.storage import write_atomically, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.analysis.events import Curve

Cells = tuple[list[str], list[list[str]]]  # header, lines


@dataclass(frozen=True)
class Table:
    """One table of a page.

    Attributes:
        name: its heading.
        header, lines: texts; the first column names the line.
        percent: the heading on the terminal and in HTML says so.
        bold: cells that the terminal shows in bold, as (line, column), from 0.
        note: a sentence below it.
    """

    name: str
    header: list[str]
    lines: list[list[str]]
    percent: bool = False
    bold: Collection[tuple[int, int]] = ()
    note: str = ""

    @property
    def heading(self) -> str:
        return f"{self.name}, %" if self.percent else self.name


@dataclass(frozen=True)
class Report:
    """What a study has to say.

    Attributes:
        name: stem of its files, with the suffixes .md, .html, .json and .png.
        title: of the page.
        intro: what the numbers are.
        tables: in order.
        rows: the same in full digits, for NAME.json.
        figures: name -> a function that draws it; "" becomes NAME.png, others NAME-OTHER.png.
        files: suffix -> a function that makes the text of a further file, such as ".csv".
        html: makes a piece of HTML for the .html file alone, above its pictures and tables.
        curves: makes the lines that TensorBoard shows of the study: method -> tag -> curve.
        made: a line below it all: how the page was made; "" where nobody knows.
    """

    name: str
    title: str
    intro: str
    tables: Sequence[Table] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    figures: Mapping[str, Callable[[], Figure]] = field(default_factory=dict)
    files: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    html: Callable[[], str] = str
    curves: Callable[[], Mapping[str, Mapping[str, Curve]]] = dict
    made: str = ""

    def markdown(self) -> str:
        parts = [f"# {self.title}", self.intro]
        for table in self.tables:
            parts += [
                f"## {table.name}",
                markdown_table(table.header, table.lines),
                *([table.note] if table.note else []),
            ]
        return "\n\n".join([*parts, *([self.made] if self.made else [])]) + "\n"


@dataclass(frozen=True)
class StudyFile:
    """What `steering report` needs to draw a study again: `study-NAME.json` beside its runs."""

    study: str
    options: Mapping[str, Any]
    title: str
    asks: Sequence[Mapping[str, Any]]
    smoke: bool = False
    command: str = ""
    schema: int = 1


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in table
    )


def write_study(folder: Path, file: StudyFile, report: Report) -> None:
    """Write a study's page and what is needed to draw it again; a page that says the same already
    is not drawn again."""
    path, text = folder / f"study-{report.name}.json", json.dumps(asdict(file), indent=1) + "\n"
    there = [
        path,
        folder / f"{report.name}.md",
        folder / f"{report.name}.json",
        folder / f"{report.name}.html",
        *(_picture(folder, report, name) for name in report.figures),
        *(folder / f"{report.name}{suffix}" for suffix in report.files),
    ]
    same = all(one.is_file() for one in there) and any(
        (folder / "comparison").glob(f"*.{report.name}")
    )
    if same and [one.read_text(encoding="utf-8") for one in there[:2]] == [text, report.markdown()]:
        return
    write_report(folder, report)
    write_text(path, text)


def write_report(folder: Path, report: Report) -> None:
    """Write rows as JSON, the page as Markdown, figures as PNG, and all once more as one HTML file
    and as TensorBoard events in `comparison/`."""
    from steering.analysis.events import write_curves, write_events
    from steering.analysis.html_page import html_page

    rows = json.dumps(_as_json(list(report.rows)), indent=1, allow_nan=False)
    write_text(folder / f"{report.name}.json", rows + "\n")
    write_text(folder / f"{report.name}.md", report.markdown())
    for suffix, text in report.files.items():
        write_text(folder / f"{report.name}{suffix}", text())
    pictures = {name: _png(draw()) for name, draw in report.figures.items()}
    for name, picture in pictures.items():
        write_atomically(_picture(folder, report, name), partial(Path.write_bytes, data=picture))
    write_text(folder / f"{report.name}.html", html_page(report, pictures))
    write_events(folder / "comparison", report.name, report.markdown(), pictures)
    for method, curves in report.curves().items():
        write_curves(folder / "comparison" / method, report.name, curves)


def _as_json(value: Any) -> Any:
    """JSON knows no NaN, as of a run that diverged or an interval that there is none of: null. An
    infinite number, as a temperature may be, is written out."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {name: _as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(one) for one in value]
    return value


def _picture(folder: Path, report: Report, name: str) -> Path:
    return folder / f"{report.name}{'-' if name else ''}{name}.png"


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()


def read_studies(folder: Path) -> list[StudyFile]:
    """The studies of a folder. Raises SteeringError when there are none or one is damaged."""
    found = []
    for path in sorted(folder.glob("study-*.json")):
        try:
            found.append(StudyFile(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError) as error:
            raise SteeringError(f"{path} is damaged ({error}); run its study again") from error
    if not found:
        raise SteeringError(
            f"no study in {folder}: no study-NAME.json, which `steering study` and `steering compare` write"
        )
    return found


def print_report(report: Report, folder: Path, note: str = "") -> None:
    """The tables on the terminal, and where the files are."""
    print_tables(f"{report.title.partition(':')[0]}{note}", report.tables)
    if report.made:
        CONSOLE.print(Text(report.made))
    figures = "".join(f"   {_picture(folder, report, name)}" for name in report.figures)
    curves = f"   curves:{figures[2:]}" if figures else ""
    more = "".join(f"   {suffix[1:]}: {folder}/{report.name}{suffix}" for suffix in report.files)
    CONSOLE.print(
        f"page: {folder}/{report.name}.html   table: {folder}/{report.name}.md   "
        f"rows: {folder}/{report.name}.json{curves}{more}",
        soft_wrap=True,
    )
    CONSOLE.print(f"TensorBoard: tensorboard --logdir {folder}", soft_wrap=True)


def print_tables(title: str, tables: Sequence[Table]) -> None:
    """Tables under a title. One that is too wide continues in a second one below."""
    CONSOLE.rule(Text(title))
    for one in tables:
        header, lines = one.header, one.lines
        widths = [
            _width(head, [line[column] for line in lines]) for column, head in enumerate(header)
        ]
        names = _names(lines)
        for number, columns in enumerate(_fitting(widths, CONSOLE.width, names)):
            shown = (*range(names), *columns)
            grid = Grid(
                title=None if number else Text(one.heading),
                title_justify="left",
                title_style="bold",
            )
            for column in shown:
                grid.add_column(
                    Text(header[column]),
                    justify="right" if column else "left",
                    width=widths[column],
                )
            for at, line in enumerate(lines):
                styles = ["bold" if (at, c) in one.bold else "" for c in shown]
                grid.add_row(*(Text(line[c], s) for c, s in zip(shown, styles, strict=True)))
            CONSOLE.print(grid)
        if one.note:
            CONSOLE.print(Text(one.note))


def _width(head: str, cells: Sequence[str]) -> int:
    """Characters that keep every cell, and every word of the header, on one line."""
    return max(cell_len(text) for text in [*head.split(), *cells])


def _names(lines: Sequence[Sequence[str]]) -> int:
    """How many of the first columns tell the lines apart: a method in three rows needs its part
    beside it wherever the table goes on. One if none do."""
    for count in range(1, len(lines[0]) if lines else 1):
        if len({tuple(line[:count]) for line in lines}) == len(lines):
            return count
    return 1


def _fitting(widths: Sequence[int], limit: int, names: int = 1) -> list[list[int]]:
    """The columns after the first `names` in as few equal groups as fit, each beside those, into
    `limit` characters."""
    columns = range(names, len(widths))
    for size in range(len(columns), 0, -1):
        groups = [list(columns[start : start + size]) for start in range(0, len(columns), size)]
        # Two blanks and a border for each column. A single column is shown however wide.
        fits = all(
            sum(widths[c] + 3 for c in (*range(names), *group)) + 1 <= limit for group in groups
        )
        equal = len(columns) % size == 0 or len(columns) % size > size // 2
        if size == 1 or (fits and equal):
            return groups
    return [[]]
