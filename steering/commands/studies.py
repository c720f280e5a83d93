"""`steering study`, `compare`, `report` and `runs`: many runs and what they show. The last two need
no torch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from steering.analysis.made import signed
from steering.analysis.page import Table, print_report, print_tables, read_studies, write_report
from steering.console import WORDS, in_time
from steering.errors import ConfigError, SteeringError
from steering.reading import user_path
from steering.runs.record import RunRecord, read_curves
from steering.runs.store import Started, Store, stores
from steering.studies import Entry, Study, find_study

if TYPE_CHECKING:
    from steering.config import RunConfig


def compare(config: RunConfig) -> None:
    """`steering compare`: the study of that name."""
    study("compare", config)


def study(name: str, config: RunConfig) -> None:
    """`steering study NAME CONFIG`: do the runs that are not finished yet, then write and print the
    report."""
    from steering import distributed
    from steering.runs.ask import study_folder
    from steering.runs.driver import carry_out
    from steering.runs.workshop import Workshop
    from steering.training.session import session

    try:
        entry = find_study(name)
    except SteeringError as error:
        raise ConfigError(str(error)) from error
    options = options_of(entry, config)
    try:
        made: Study = entry.make(options)
    except ValueError as error:
        raise ConfigError(f"studies.{entry.name}: {error}") from error
    start = time.monotonic()
    with session(config.device, config.train.threads) as device:
        workshop = Workshop(Store(study_folder(config)), device)
        report = carry_out(_findable(name), made, options, config, workshop, WORDS.get())
        if distributed.rank() == 0:
            print_report(report, workshop.store.folder, f", {time.monotonic() - start:.0f} s")


def options_of(entry: Entry, config: RunConfig) -> Any:
    """What a config says of a study: `studies.NAME`, or `compare`."""
    from steering.schema import plain, typed

    if entry.name == "compare":
        return entry.options(**plain(config.compare))
    given = config.studies.get(entry.name, {})
    options = typed(entry.options, given, f"studies.{entry.name}", _fail)
    return options.for_config(config) if hasattr(options, "for_config") else options


def _findable(name: str) -> str:
    """The name with which the study is found again, from any working directory."""
    where, _, registered_as = name.rpartition(":")
    return f"{user_path(where).resolve()}:{registered_as}" if where.endswith(".py") else name


def _fail(path: str, message: str):  # type: ignore[no-untyped-def]  # noqa: ARG001
    raise ConfigError(message)


def parsed(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The words behind `steering report` or `steering runs`."""
    about = {
        "report": "Draw a folder's studies again from the records of their runs: no data, no task's packages, no GPU.",
        "runs": "List the runs below a folder: their first metrics, what they cost, how old they are.",
    }
    parser = argparse.ArgumentParser(
        prog=f"steering {command}",
        description=about[command],
        epilog=f"example:\n  steering {command} runs/glyphs",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command == "report":
        parser.add_argument(
            "folder", metavar="FOLDER", help="of a study: output/name of its config"
        )
    else:
        parser.add_argument(
            "folder", metavar="FOLDER", nargs="?", default="runs", help="any folder; default: runs"
        )
        parser.add_argument(
            "--metrics", type=int, default=1, metavar="N", help="first metrics to show; default: 1"
        )
    return parser.parse_args(words)


def report(words: Sequence[str]) -> int:
    """`steering report FOLDER`: draw the studies of a folder again, from their records alone."""
    folder = user_path(parsed("report", words).folder)
    store = Store(folder)
    for file in read_studies(folder):
        entry = find_study(file.study)
        records = []
        for ask in file.asks:
            record = store.find(ask["key"])
            if record is None:
                raise SteeringError(
                    f"{folder}: the run {ask['label']} of study {file.study} is not there; run the study again"
                )
            records.append(record.asked_as(ask["label"], ask["axes"]))
        found = entry.make(entry.options(**file.options)).report(records, file.title)
        found = signed(found, file, records)
        write_report(folder, found)
        print_report(found, folder)
    return 0


def runs(words: Sequence[str]) -> int:
    """`steering runs FOLDER`: a table of what is there, finished and unfinished."""
    arguments = parsed("runs", words)
    folder = user_path(arguments.folder)
    found = stores(folder)
    if not found:
        raise SteeringError(f"no runs below {folder}")
    for store in found:
        print_tables(str(store.folder), [_listed(store, arguments.metrics)])
    return 0


def _listed(store: Store, count: int) -> Table:
    done, begun = store.all(), store.unfinished()
    names = list(dict.fromkeys(name for record in done for name in [*record.metrics][:count]))[
        : max(count, 0)
    ]
    header = [
        "run",
        *(name.replace("_", " ").replace("/", " ") for name in names),
        "samples",
        "time",
        "FLOPs",
        "age",
    ]
    lines = [_line(record, names) for record in done] + [
        _begun(started, names) for started in begun
    ]
    return Table(f"{len(done)} finished, {len(begun)} unfinished", header, lines)


def _line(record: RunRecord, names: Sequence[str]) -> list[str]:
    cost = record.cost
    metrics = [_shown(record, name) for name in names]
    flops = f"{cost.flops:.1e}" if cost.flops else "–"
    return [
        record.folder.name,
        *metrics,
        f"{cost.trained:,}",
        in_time(cost.seconds),
        flops,
        _age(record.created),
    ]


def _shown(record: RunRecord, name: str) -> str:
    if record.diverged:
        return "diverged"
    if name not in record.metrics:
        return "–"
    percent = name in record.meaning and record.meaning[name].percent
    return f"{100 * record.metrics[name]:.1f} %" if percent else f"{record.metrics[name]:.3f}"


def _begun(started: Started, names: Sequence[str]) -> list[str]:
    rows = read_curves(started.folder / "metrics.jsonl")
    step = f"unfinished, step {rows[-1]['step']:.0f}" if rows else "unfinished"
    return [started.folder.name, *("–" for _ in names), "–", "–", "–", step]


def _age(created: str) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(created)).total_seconds()
    except ValueError:
        return "?"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
