"""How a study's page was made: by which command, from which code, when, on what; and that a smoke run
says nothing. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from steering.analysis.page import Report, StudyFile
from steering.runs.record import RunRecord

SMOKE = "smoke run"
"""In the title of a page whose runs are far too short to learn anything."""


def page_title(name: str, smoke: bool) -> str:
    """A study's name, as its page has it."""
    return f"{name}, {SMOKE}" if smoke else name


def signed(report: Report, file: StudyFile, records: Sequence[RunRecord]) -> Report:
    """The report with a last line that says how it was made; of a smoke run also that nothing in it
    is a result, and without any bold."""
    parts = [f"Made by `{file.command}`." if file.command else "", _of_runs(records)]
    made = " ".join(part for part in parts if part)
    if not file.smoke:
        return replace(report, made=made)
    plain = [replace(table, bold=()) for table in report.tables]
    warning = "A smoke run: far too short to learn anything, so no number here is a result."
    return replace(report, made=made, tables=plain, intro=f"{warning} {report.intro}".strip())


def _of_runs(records: Sequence[RunRecord]) -> str:
    """Days, code and machines of the runs, each different one once."""
    days = sorted({record.created[:10] for record in records if record.created})
    if not days:
        return ""
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    seen = [record.environment for record in records if record.environment]
    codes = dict.fromkeys(
        f"steering {one['steering']}" + (f", commit {one['commit']}" if one.get("commit") else "")
        for one in seen
        if "steering" in one
    )
    machines = dict.fromkeys(_machine(one) for one in seen)
    told = [f"{len(records)} runs of {when}", *map("; ".join, filter(None, (codes, machines)))]
    return f"{'. '.join(told)}."


def _machine(environment: Mapping[str, str]) -> str:
    words = [
        environment.get("system", ""),
        environment.get("device", ""),
        f"threads: {environment['threads']}" if "threads" in environment else "",
        f"torch {environment['torch']}" if "torch" in environment else "",
    ]
    return ", ".join(word for word in words if word)
