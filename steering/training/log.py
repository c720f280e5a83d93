"""What a run tells: TensorBoard, a `metrics.jsonl` beside it for scripts, and a progress line with
an ETA."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from steering.console import CONSOLE
from steering.runs.record import read_curves
from steering.storage import write_text
from steering.training.board.layout import settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger("steering")


class RunLog:
    """Scalars and figures of one run; a resumed run cuts off what it will write again.

    Args:
        folder: of the run; event files go to it directly, so `tensorboard --logdir` on any parent
            shows the run.
        step: the step that the run starts or resumes from.
        last: the run's last step. A run that resumes there evaluates once more, so the evaluation
            is cut off too.
        unit: what TensorBoard counts a step as: 1, or the samples of one.
    """

    def __init__(self, folder: Path, step: int, last: int, unit: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_curves(self._path) if row["step"] <= step]
        if step == last:
            kept = [
                row
                for row in kept
                if row["step"] < step or not any(key.startswith(("eval/", "eval_")) for key in row)
            ]
        # A resumed run has told these already.
        self._warned = {key for row in kept for key in row if key.startswith("warning/")}
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_text(self._path, text)
        self._evaluated: dict[str, float] = {}
        self._unit = unit
        # Also what died before its first checkpoint.
        self._writer = SummaryWriter(str(folder), purge_step=step * unit + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step * self._unit)
        self._add(step, values)

        if any(name.startswith("eval/") for name in values):
            self._evaluated = dict(values)

    def speed(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars for TensorBoard alone: what depends on the machine and the hour."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step * self._unit)

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        for name, numbers in values.items():
            if len(numbers):
                self._writer.add_histogram(name, numbers, step * self._unit, bins=64)

    def layout(self, layout: Mapping[str, Any]) -> None:
        """The page CUSTOM SCALARS."""
        self._writer.add_custom_scalars(layout)

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text)

    def settings(self, config: str | None, seed: int) -> None:
        """A row of the page HPARAMS: the settings of a config beside the last evaluation."""
        told = {"seed": seed} if config is None else settings(yaml.safe_load(config))
        # In this very run: `add_hparams` would open another one for it.
        writer = self._writer._get_file_writer()
        # Without the first of the three, which names the columns: of several runs TensorBoard would
        # take those of one, and makes the columns of all of them if it is told of none.
        for summary in hparams(told, self._evaluated)[1:]:
            writer.add_summary(summary)

    def warn(self, step: int, texts: Mapping[str, str]) -> None:
        """Tell each name once a run: in the log, under TEXT, and in a row "warning/NAME" of
        `metrics.jsonl`."""
        new = {
            f"warning/{name}": text
            for name, text in texts.items()
            if f"warning/{name}" not in self._warned
        }
        for name, text in new.items():
            self._warned.add(name)
            _LOG.warning("%s, step %d: %s", self._path.parent, step, text)
            self._writer.add_text(name, text, step * self._unit)
        if new:
            self._add(step, new)

    def _add(self, step: int, row: Mapping[str, float | str]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")

    def figures(self, step: int, figures: Mapping[str, Figure], prefix: str = "") -> None:
        # Here, as it takes a while, and the first step needs none.
        from matplotlib import pyplot

        for name, figure in figures.items():
            self._writer.add_figure(f"{prefix}{name}", figure, step * self._unit, close=False)
            pyplot.close(figure)

    def close(self) -> None:
        self._writer.close()


class ProgressLine:
    """A bar with an ETA on a terminal; elsewhere one plain line at every tenth of the way."""

    def __init__(self, title: str, total: int, done: int, shown: bool) -> None:
        self._title, self._total, self._shown = title, total, shown
        self._begin, self._first, self._tenth = time.monotonic(), done, 0
        self._bar: Progress | None = None
        if shown and CONSOLE.is_terminal:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            ]
            self._bar = Progress(
                *columns,
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=CONSOLE,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            if note:
                self._bar.update(self._task, note=note)
        elif self._shown and done * 10 // self._total > self._tenth:
            self._tenth = done * 10 // self._total
            elapsed = time.monotonic() - self._begin
            # A resumed run has taken no time for the steps before its first.
            left = elapsed / max(1, done - self._first) * (self._total - done)
            print(
                f"{self._title}: {done}/{self._total} steps, {elapsed:.0f} s, ETA {left:.0f} s {note}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
