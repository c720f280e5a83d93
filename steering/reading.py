"""What a reader of data says of its work: how much it read, what it left out, what it changed. And
paths as people write them.

House rule: every reader counts all three and says so in one line; an evaluation never replaces one
example by another.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from steering.packaged import packaged_file

_LOG = logging.getLogger("steering")


def user_path(path: str | Path) -> Path:
    """A path from a config or an argument, with `~` and `~name` at its start replaced by the home
    folder, as a shell does.

    Where no such user is known the path stays as it is; `Path.expanduser` would raise RuntimeError.
    configs/... and examples/... that are not in the working folder are those of the package.
    """
    return packaged_file(Path(os.path.expanduser(path)))


@dataclass
class Tally:
    """Counts of one reader; reasons are short phrases that read well behind a number: "3 no
    caption".

    Attributes:
        read: entries that have a number now.
        left_out: reason -> entries that are there and were not taken.
        changed: reason -> entries that were taken and are not as they stand in the file.
    """

    read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def line(self, entries: str, place: str) -> str:
        """One line: "8 pairs in x.tsv; skipped: 1 no image; changed: 2 turned upright", the last
        part only if there is any."""
        text = f"{self.read:,} {entries} in {place}; skipped: {in_words(self.left_out)}"
        return f"{text}; changed: {in_words(self.changed)}" if self.changed else text

    def report(self, key: str, entries: str, place: str) -> None:
        """Log the line once, behind the config key that named the data; as a warning if something
        is not as it stands there."""
        odd = bool(self.left_out or self.changed)
        report_once(f"{key}: {self.line(entries, place)}", logging.WARNING if odd else logging.INFO)


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by reason, "3 no caption, 1 no image", or "nothing"."""
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "nothing"


@cache
def report_once(message: str, level: int = logging.WARNING) -> None:
    """Log a line on rank 0, once in this process: a study's runs and evaluations come back to the
    same data."""
    from steering import (
        distributed,
    )  # here, as it loads torch, and paths are also read where there is none

    if distributed.rank() == 0:
        _LOG.log(level, message)
