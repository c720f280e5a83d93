"""A finished run, read back: its record and its weights, without its task, its data or a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from steering.errors import SteeringError
from steering.reading import user_path
from steering.runs.record import RECORD, WEIGHTS, RunRecord, read_record
from steering.storage import file_sha256

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        record: what was asked, what came out and what it cost; `record.metrics`, `record.config()`,
            `record.curves()` and `record.scores()` among them.
    """

    record: RunRecord

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The target's state dict, on the CPU; read when it is first asked for.

        Raises:
            SteeringError: the run has no weights (it did not train), or the file is not the one
                that it wrote.
        """
        path = self.record.folder / WEIGHTS
        if self.record.diverged:
            raise SteeringError(f"{self.record.folder}: no weights: {self.record.diverged}")
        if not self.record.weights:
            raise SteeringError(
                f"{self.record.folder}: no weights, as the run of kind {self.record.kind!r} trains "
                "nothing"
            )
        if not path.is_file() or file_sha256(path) != self.record.weights:
            raise SteeringError(f"{path}: is missing, or not the file that the run wrote")
        from safetensors.torch import load_file  # here: a record is also read without torch

        return load_file(path)


def load_run(folder: str | Path) -> Run:
    """A finished run from its folder: `load_run("runs/glyphs/drrho-seed0")`.

        run = steering.load_run("runs/glyphs/drrho-seed0")
        run.record.metrics["new_images/image_to_text_R@1"]
        model.load_state_dict(run.weights)

    Raises:
        SteeringError: no finished run there; the message lists those in the folders below.
    """
    place = user_path(folder)
    if (place / RECORD).is_file():
        return Run(read_record(place))
    below = sorted(path.parent.name for path in place.glob(f"*/{RECORD}"))
    if below:
        raise SteeringError(f"{place}: is no run but holds some: {', '.join(below)}")
    raise SteeringError(f"{place}: no finished run there, as there is no {RECORD}")
