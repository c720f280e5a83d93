"""The terminal that everything is printed on, and amounts in words."""

from collections.abc import Iterable
from contextvars import ContextVar

from rich.console import Console

CONSOLE = Console(highlight=False)
WORDS: ContextVar[str] = ContextVar("command", default="")
"""The command that is carried out, as it was typed; "" outside of the command line."""


def in_time(seconds: float) -> str:
    """ "40 s", "12 min" or "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def in_bytes(count: float) -> str:
    """ "512 B", "27.6 MB"; powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def in_columns(lines: list[list[str]]) -> list[str]:
    """The cells of each line below each other; the last column as long as it is."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    return ["  ".join([*map(str.ljust, line, widths), line[-1]]) for line in lines]


def print_lines(console: Console, lines: Iterable[str], *, clip: bool) -> None:
    """Print lines as they are; with `clip` a terminal gets no more of each than fits.

    A file or a pipe always gets whole lines.
    """
    clip = clip and console.is_terminal
    overflow = "ellipsis" if clip else None
    for line in lines:
        console.print(line, markup=False, no_wrap=clip, overflow=overflow, soft_wrap=not clip)  # type: ignore[arg-type]
