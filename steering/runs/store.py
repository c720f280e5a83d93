"""A folder of runs, found by their keys.

A run's folder has its label for a name, "drrho-seed0", and says its key in `ask.json`: a person
finds it by the one, a program by the other. Another run that asks for a label that is taken gets
the beginning of its key behind it, "drrho-seed0-3f9ac2d81b07", so no two runs ever share a folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steering.errors import DivergedError, SteeringError
from steering.runs.record import RECORD, RunRecord, read_record
from steering.storage import write_text

if TYPE_CHECKING:
    from steering.runs.wanted import Ask

SHORT = 12  # digits of a key in a folder's name
STARTED = "ask.json"
OUTPUTS = "outputs"  # the folder of the stored outputs of models, beside the runs


@dataclass(frozen=True)
class Started:
    """A run that has been started: what its `ask.json` says."""

    folder: Path
    key: str
    kind: str
    label: str


class Store:
    """The runs below one folder.

    Args:
        folder: need not be there yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: dict[str, Started] = {}  # by the folder's name
        self._records: dict[str, RunRecord] = {}

    def all(self) -> list[RunRecord]:
        """Every finished run, in the order in which they were finished."""
        found = (self._record(started) for started in self._all())
        return sorted(
            (one for one in found if one is not None),
            key=lambda record: (record.created, record.key),
        )

    def find(self, key: str) -> RunRecord | None:
        """The finished run of a key."""
        started = self._of(key)
        return None if started is None else self._record(started)

    def place(self, key: str, label: str) -> Path:
        """Folder of a run, finished, begun or new; a run that is there under another label stays
        there."""
        if (started := self._of(key)) is not None:
            return started.folder
        plain = self.folder / readable(label)
        free = not plain.exists() or (plain.is_dir() and not any(plain.iterdir()))
        return plain if free else plain.with_name(f"{plain.name}-{key[:SHORT]}")

    def begin(self, key: str, kind: str, label: str) -> Path:
        """Make the folder of a run and say in it what it is for."""
        folder = self.place(key, label)
        if self._of(key) is None:
            write_text(
                folder / STARTED, json.dumps({"key": key, "kind": kind, "label": label}) + "\n"
            )
        return folder

    def unfinished(self) -> list[Started]:
        """Runs that were begun and have no record yet."""
        return [started for started in self._all() if self._record(started) is None]

    def _all(self) -> list[Started]:
        """What every folder says it was begun for; one that has been read is not read again."""
        names = {path.parent.name for path in self.folder.glob(f"*/{STARTED}")}
        for name in names - self._started.keys():
            if (started := _started(self.folder / name)) is not None:
                self._started[name] = started
        for gone in self._started.keys() - names:
            del self._started[gone]
            self._records.pop(gone, None)
        return [self._started[name] for name in sorted(self._started)]

    def _of(self, key: str) -> Started | None:
        # A run that another process has begun meanwhile shows when the folder is read again.
        for look in (lambda: [*self._started.values()], self._all):
            for started in look():
                if started.key == key and started.folder.is_dir():
                    return started
        return None

    def _record(self, started: Started) -> RunRecord | None:
        name = started.folder.name
        if name not in self._records:
            if not (started.folder / RECORD).is_file():
                return None
            self._records[name] = read_record(started.folder)
        return self._records[name]


def require_converged(ask: Ask, record: RunRecord) -> None:
    """Refuse the record of a run that diverged to whoever can do nothing with it.

    Raises:
        DivergedError: it did, and the ask does not allow for it.
    """
    if record.diverged and not ask.may_diverge:
        raise diverged(record)


def diverged(record: RunRecord) -> DivergedError:
    """How a run ended that diverged, for whoever needs what it should have trained."""
    return DivergedError(
        f"{record.label}: {record.diverged} (delete {record.folder} to train it again)",
        record.cost.steps,
    )


def require_same_found(
    records: list[RunRecord], asked: Mapping[str, str], found: Mapping[str, str], place: Path | str
) -> None:
    """Refuse a run that met other things than the finished runs that asked for the same.

    Args:
        asked: part -> digest of what was asked of it ("task", "reference").
        found: "part: what" -> digest of what was met, such as "task: data".

    Raises:
        SteeringError: names both sides, and the run that they were met by before.
    """
    for record in records:
        wrong = [
            f"{name}: {record.found[name][:12]} found by {record.label}, {digest[:12]} now"
            for name, digest in found.items()
            # Of runs that asked for the same part, such as the same task, alone.
            for part in [name.partition(":")[0]]
            if name in record.found
            and part in asked
            and record.asked.get(part) == asked[part]
            and record.found[name] != digest
        ]
        if wrong:
            raise SteeringError(
                f"{place}: {'; '.join(wrong)}: the files are not those that the finished runs saw; "
                "put them back, or use another name= or output="
            )


def readable(label: str) -> str:
    """A label as the beginning of a folder's name."""
    return re.sub(r"[^\w.=+,@-]+", "_", label).strip("._") or "run"


def stores(folder: Path) -> list[Store]:
    """The store in a folder, or those in the folders below it."""
    places = {
        path.parent.parent for name in (RECORD, STARTED) for path in folder.glob(f"**/{name}")
    }
    return [Store(place) for place in sorted(places)]


def _started(folder: Path) -> Started | None:
    try:
        values: Any = json.loads((folder / STARTED).read_text(encoding="utf-8"))
        return Started(folder, values["key"], values["kind"], values["label"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
