"""The driver of a study: while it wants runs that the store lacks, do them; then report. A study
itself never trains."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steering import distributed
from steering.analysis.made import page_title, signed
from steering.analysis.page import Report, StudyFile, write_study
from steering.config import RunConfig
from steering.console import CONSOLE, in_time
from steering.errors import SteeringError
from steering.runs.ask import Ask, with_parents_first
from steering.runs.record import RunRecord
from steering.runs.store import require_converged
from steering.runs.transport import write_ask
from steering.runs.workshop import Workshop

if TYPE_CHECKING:
    import torch

    from steering.studies import Study

POLL = 0.2  # seconds between two looks at running processes
SILENCE = 2.0  # seconds after which a study says what it is at


@dataclass
class Progress:
    """How far a study is, and when it may be done.

    Attributes:
        total: runs to do that are known so far.
        done: of those, done in this call.
        times: seconds of each.
    """

    total: int = 0
    done: int = 0
    times: list[float] = field(default_factory=list)
    jobs: int = 1

    def title(self, label: str) -> str:
        """Before a run: "[3/8, about 12 min left] drrho seed 1"."""
        return f"[{self.done + 1}/{self.total}{self.left()}] {label}"

    def left(self) -> str:
        """Estimated from the median run so far; nothing before the first is done."""
        if not self.times:
            return ""
        # Not the mean: one run may have to compute the stored outputs of all.
        median = sorted(self.times)[len(self.times) // 2]
        return f", about {in_time(median * (self.total - self.done) / self.jobs)} left"


def carry_out(
    name: str, study: Study, options: Any, base: RunConfig, workshop: Workshop, command: str = ""
) -> Report:
    """Do what a study wants, round by round, and write its report; every rank calls this.

    Args:
        name: of the study, as it can be found again: a registered name or "file.py:name".
        command: what the user has typed, for the page.

    A run that is done is never done again, and a study that was stopped goes on where it was.

    Raises:
        SteeringError: a run failed, or met other data than the finished ones; the others are kept.
    """
    asked: dict[str, Ask] = {}
    progress = Progress(jobs=base.jobs)
    if base.jobs > 1 and distributed.active():
        raise SteeringError(
            "jobs: several at a time are for one process each; under torchrun use jobs=1"
        )
    while True:
        # A study that looks at what its runs have found may want more of them; one whose wishes are
        # fulfilled names nothing new.
        fresh = {
            ask.key: ask
            for ask in study.wanted(base, _done(asked, workshop))
            if ask.key not in asked
        }
        if not fresh:
            break
        asked |= fresh
        _do([*fresh.values()], workshop, progress, base.jobs, study_name=name)
    records = _done(asked, workshop)
    file = StudyFile(
        study=name,
        options=asdict(options),
        title=page_title(base.name, base.smoke),
        asks=[
            {"key": ask.key, "label": ask.label, "axes": dict(ask.axes)} for ask in asked.values()
        ],
        smoke=base.smoke,
        command=command,
    )
    report = signed(study.report(records, file.title), file, records)
    if distributed.rank() == 0:
        write_study(workshop.store.folder, file, report)
    return report


def _done(asked: dict[str, Ask], workshop: Workshop) -> list[RunRecord]:
    found = [(workshop.store.find(key), ask) for key, ask in asked.items()]
    return [record.asked_as(ask.label, ask.axes) for record, ask in found if record is not None]


def _do(
    asks: list[Ask], workshop: Workshop, progress: Progress, jobs: int, study_name: str
) -> None:
    every = with_parents_first(asks)
    for ask in every:
        # What is found is not done again, so it is compared with the data as they are now.
        if (record := workshop.store.find(ask.key)) is not None:
            workshop.verify(ask, record)
            require_converged(ask, record)
    todo = [ask for ask in every if workshop.store.find(ask.key) is None]
    # What does not fit shows before hours are spent on the others.
    for ask in todo:
        if ask.kind == "train":
            workshop.fitting(ask)
    progress.total += len(todo)
    if distributed.rank() == 0:
        found = len(every) - len(todo)
        CONSOLE.print(
            f"{study_name}: {len(todo)} {'run' if len(todo) == 1 else 'runs'} to do, {found} found in {workshop.store.folder}",
            soft_wrap=True,
        )
    if not todo:
        return
    if jobs > 1 and len(todo) > 1:
        _in_processes(todo, workshop, progress, jobs)
        return
    # Here, as a study with nothing to do needs no trainer.
    from steering.runs.execute import execute

    said = 0.0
    for ask in todo:
        start = time.monotonic()
        title = progress.title(ask.label)
        # A training has a progress line of its own; of the others, which may be many and short, one
        # line now and then tells that something moves.
        if ask.kind != "train" and distributed.rank() == 0 and start - said > SILENCE:
            CONSOLE.print(title, soft_wrap=True)
            said = start
        execute(ask, workshop, title)
        progress.times.append(time.monotonic() - start)
        progress.done += 1


def _in_processes(todo: list[Ask], workshop: Workshop, progress: Progress, jobs: int) -> None:
    """Several runs at a time, each in a process of its own; a run waits for those that it is built
    on."""
    waiting = list(todo)
    running: dict[str, _Job] = {}
    gpus = visible_gpus(workshop.device)
    with tempfile.TemporaryDirectory(prefix="steering-jobs-") as scratch:
        try:
            while waiting or running:
                for ask in [one for one in waiting if _ready(one, workshop)][: jobs - len(running)]:
                    waiting.remove(ask)
                    gpu = least_used(gpus, [job.gpu for job in running.values()])
                    running[ask.key] = _start(ask, workshop, Path(scratch), jobs, gpu)
                for key, job in [*running.items()]:
                    if job.process.poll() is not None:
                        del running[key]
                        _ended(job, workshop, progress)
                if not running and waiting and not any(_ready(one, workshop) for one in waiting):
                    raise SteeringError(f"{waiting[0].label}: waits for a run that nobody does")
                time.sleep(POLL)
        finally:
            # One failure, or Ctrl-C, ends all: what they have saved is where the next call goes on.
            for job in running.values():
                job.process.terminate()
            for job in running.values():
                job.process.wait()


@dataclass
class _Job:
    ask: Ask
    process: subprocess.Popen[bytes]
    log: Path
    begin: float
    gpu: str | None


def _ready(ask: Ask, workshop: Workshop) -> bool:
    return all(workshop.store.find(parent.key) is not None for parent in ask.parents.values())


def visible_gpus(device: torch.device) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them: that one alone where
    `device` has a number; none on a CPU."""
    if device.type != "cuda":
        return []
    # The user's choice counts for the children, too: their numbers are those of the machine.
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        found = named.split(",")
    else:
        import torch

        found = [str(number) for number in range(torch.cuda.device_count())]
    return found if device.index is None else found[device.index : device.index + 1]


def least_used(gpus: Sequence[str], used: Sequence[str | None]) -> str | None:
    """The GPU on which the fewest jobs run, the first of several; None where there is none."""
    return min(gpus, key=used.count) if gpus else None


def _start(ask: Ask, workshop: Workshop, scratch: Path, jobs: int, gpu: str | None) -> _Job:
    file, log = (
        scratch / f"{ask.key}.json",
        workshop.store.begin(ask.key, ask.kind, ask.label) / "log.txt",
    )
    write_ask(file, ask)
    # Torch takes all cores for each process unless it is told. The user's own number goes first.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    surroundings = {"OMP_NUM_THREADS": threads} | dict(os.environ)
    if gpu is not None:
        surroundings["CUDA_VISIBLE_DEVICES"] = gpu
    command = [
        sys.executable,
        "-m",
        "steering.runs.worker",
        str(workshop.store.folder),
        str(file),
        workshop.device.type,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=surroundings,
            stdin=subprocess.DEVNULL,
        )
    CONSOLE.print(f"started  {ask.label}", soft_wrap=True)
    return _Job(ask, process, log, time.monotonic(), gpu)


def _ended(job: _Job, workshop: Workshop, progress: Progress) -> None:
    seconds = time.monotonic() - job.begin
    if job.process.returncode != 0 or workshop.store.find(job.ask.key) is None:
        lines = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()]
        raise SteeringError(
            f"{job.ask.label}: {lines[-1] if lines else 'ended'} (its log: {job.log})"
        )
    progress.times.append(seconds)
    progress.done += 1
    note = f"{progress.done} of {progress.total} done{progress.left()}"
    CONSOLE.print(f"finished {job.ask.label} in {in_time(seconds)}; {note}", soft_wrap=True)
