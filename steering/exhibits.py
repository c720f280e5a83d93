"""Training examples for a person to look at, and what a task knows of their labels.

A report opens no data. So a run that calls `steering.runs.examples.keep_examples` writes the few
examples that a page shows beside its record, once: small pictures and texts. It also keeps the
labels of all, which are small.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steering.errors import SteeringError
from steering.runs.record import RunRecord
from steering.storage import write_atomically, write_text

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 160  # pixels of the longer side, at most
TEXT = 600  # characters of a text, at most
FILE, LABELS = "examples.json", "labels.npz"


@dataclass(frozen=True)
class Exhibit:
    """One example.

    Attributes:
        text: caption, label or text, in the task's own words.
        picture: a PNG, or None.
        said: what a model made of it, in the same words: a class, a caption; empty where no model
            was asked.
    """

    text: str
    picture: bytes | None = None
    said: str = ""


@dataclass(frozen=True)
class Judged:
    """Evaluated examples with their losses, to look at those that a model does worst on.

    Attributes:
        losses: of each, in the unit of the training's loss items, (n,); NaN counts as the highest.
        exhibits: places among the n -> those examples, with what the model made of them. The main
            process alone calls it, so it may not wait for the others. Data that are gone raise
            SteeringError.
    """

    losses: np.ndarray
    exhibits: Callable[[Sequence[int]], Sequence[Exhibit]]

    def worst(self, count: int) -> list[int]:
        """Places of the highest losses, the highest first; of equal ones the first."""
        found = np.where(np.isnan(self.losses), np.inf, self.losses)
        return [int(place) for place in np.argsort(-found, kind="stable")[:count]]


@dataclass(frozen=True)
class Labels:
    """What a task knows of its n training labels.

    Attributes:
        classes: names of the classes; empty where a label is no class.
        label: class as shown to the training, int64, (n,); None where a label is no class.
        wrong: whether the label or caption is not the example's own, bool, (n,); None where the
            task cannot know.
        wrong_items: where an example has k losses, as a text has tokens: how much of each loss's
            own label is wrong, in [0, 1], (n, k). A run's curves take it before `wrong`; no report
            keeps it.
    """

    classes: tuple[str, ...] = ()
    label: np.ndarray | None = None
    wrong: np.ndarray | None = None
    wrong_items: np.ndarray | None = None


def thumbnail(image: Image) -> bytes:
    """A PNG of an image, shrunk to fit; a small one stays as it is."""
    picture = image.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def write_exhibits(
    folder: Path, numbers: Sequence[int], exhibits: Sequence[Exhibit], labels: Labels
) -> None:
    """Write examples as `examples.json` with a PNG each, and all labels as `labels.npz`."""
    rows = []
    for number, exhibit in zip(numbers, exhibits, strict=True):
        name = None if exhibit.picture is None else f"example-{number}.png"
        if name is not None and exhibit.picture is not None:
            write_atomically(folder / name, partial(Path.write_bytes, data=exhibit.picture))
        rows.append({"number": number, "text": exhibit.text[:TEXT], "picture": name})
    known = {"classes": labels.classes, "label": labels.label, "wrong": labels.wrong}
    kept = {key: value for key, value in known.items() if value is not None}
    arrays = {key: np.asarray(value) for key, value in kept.items() if len(value)}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # nothing is pickled

    write_atomically(folder / LABELS, write)
    write_text(folder / FILE, json.dumps(rows, indent=1) + "\n")


def read_exhibits(record: RunRecord) -> dict[int, Exhibit]:
    """Number -> example, of a record of `keep_examples`. Raises SteeringError when its files are
    gone or damaged."""
    try:
        rows = json.loads((record.folder / FILE).read_text(encoding="utf-8"))
        return {
            row["number"]: Exhibit(
                row["text"],
                None
                if row["picture"] is None
                else (record.folder / Path(row["picture"]).name).read_bytes(),
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(record, error) from error


def read_labels(record: RunRecord) -> Labels:
    """The labels beside such a record; SteeringError as above."""
    try:
        with np.load(record.folder / LABELS, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise _damaged(record, error) from error
    classes = tuple(str(name) for name in found.get("classes", ()))
    return Labels(classes, found.get("label"), found.get("wrong"))


def _damaged(record: RunRecord, error: Exception) -> SteeringError:
    return SteeringError(
        f"{record.folder}: its examples cannot be read ({error}); delete it to run it again"
    )
