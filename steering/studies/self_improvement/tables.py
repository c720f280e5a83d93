"""Further tables of the study `activation`, from its records alone; needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from steering.analysis.intervals import Bootstrap, Interval, paired_difference
from steering.analysis.page import Table
from steering.console import in_time
from steering.runs.record import RunRecord

Reports = Mapping[str, Mapping[int, RunRecord]]
BASE = "base"
"""The unsteered model, which all others are compared with."""
_REPORTED = ("judge", "nll", "distinct_4")
_SHOWN = 60  # characters of a text in a cell


def by_policy(done: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """The reports among the records, by policy and seed."""
    found: dict[str, dict[int, RunRecord]] = {}
    for record in done:
        if "policy" in record.axes:
            found.setdefault(record.axes["policy"], {})[record.axes["seed"]] = record
    return found


def gains(reports: Reports) -> Table:
    """What the judge, fluency and repetition say of each policy."""
    bootstrap = Bootstrap()
    lines = [
        [policy, *(_gain(runs, reports[BASE], name, bootstrap) for name in _REPORTED)]
        for policy, runs in reports.items()
    ]
    return Table("policies on the test prompts", ["policy", "judge", "nll ↓", "distinct"], lines)


def _gain(
    runs: Mapping[int, RunRecord], base: Mapping[int, RunRecord], name: str, bootstrap: Bootstrap
) -> str:
    """A metric's mean over the seeds, and what it gains over the base."""
    mean = sum(run.metrics[name] for run in runs.values()) / len(runs)
    found = paired_difference(runs, base, name, bootstrap)
    if runs is base or found is None:
        return f"{mean:.3f}"
    return f"{mean:.3f} ({_signed(found)})"


def claims(reports: Reports) -> Table:
    """What the rounds claim, each as a difference of the judge's score with its interval."""
    bootstrap, last = Bootstrap(), _last_round(reports)
    wanted = [(last, BASE), (last, "round 1"), *((name, BASE) for name in ("shuffled", "random"))]
    wanted += [(last, name) for name in ("supervised", "best_of_n") if name in reports]
    lines = []
    for one, other in wanted:
        if one in reports and other in reports and one != other:
            found = paired_difference(reports[one], reports[other], "judge", bootstrap)
            lines.append([f"{one} − {other}", _signed(found)])
    if "supervised" in reports:
        base = _mean(reports[BASE], "judge")
        most = _mean(reports["supervised"], "judge") - base
        own = _mean(reports[last], "judge") - base
        share = f"{own / most:.0%}" if most > 0 else "– (supervised steering gains nothing)"
        lines.append(["share of supervised steering's gain", share])
    return Table("what the rounds gain", ["judge", "difference"], lines)


def _signed(found: Interval | None) -> str:
    if found is None:
        return "–"
    sure = "" if math.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{found.value:+.3f}{sure}"


def side_effects(reports: Reports) -> list[Table]:
    """Perplexity of held-out text by domain, with each policy's edits at every position."""
    first = next(iter(next(iter(reports.values())).values()))
    names = [name for name in first.metrics if name.startswith("perplexity/")]
    if not names:
        return []
    lines = [
        [policy, *(f"{_mean(runs, name):.3f}" for name in names)]
        for policy, runs in reports.items()
        if all(name in run.metrics for run in runs.values() for name in names)
    ]
    header = ["policy", *(f"{name.partition('/')[2]} ↓" for name in names)]
    return [Table("side effects: perplexity", header, lines)]


def costs(done: Sequence[RunRecord]) -> list[Table]:
    """What each run of the first seed took."""
    own = [record for record in done if record.kind == "call"]
    first = min((record.axes["seed"] for record in own), default=0)
    lines = []
    for record in own:
        if record.axes["seed"] != first:
            continue
        cost = record.cost
        lines.append(
            [
                record.label,
                f"{cost.drawn:,}",
                f"{cost.scored:,}",
                f"{cost.trained:,}",
                f"{cost.flops:.1e}" if cost.flops else "–",
                in_time(cost.seconds),
                ", ".join(record.summary.get("edits", [])) or "–",
            ]
        )
    header = ["run", "answers", "ranked", "trained", "FLOPs", "time", "edits"]
    return [Table(f"cost of each run, seed {first}", header, lines)] if lines else []


def examples(reports: Reports, count: int) -> list[Table]:
    """The first answers of each policy side by side, as many that the judge likes least after
    them."""
    runs = {policy: next(iter(own.values())) for policy, own in reports.items()}
    found = {policy: _answers(run) for policy, run in runs.items()}
    rows = next(iter(found.values()), [])
    if not rows or count < 1:
        return []
    last = found[_last_round(found)]
    worst = sorted(range(len(last)), key=lambda n: sum(last[n]["judge"]) / len(last[n]["judge"]))
    chosen = list(dict.fromkeys([*range(min(count, len(rows))), *worst[:count]]))
    lines = [
        [
            _cell(rows[number]["prompt"]),
            policy,
            _cell(own[number]["answers"][0]),
            f"{own[number]['judge'][0]:.2f}",
        ]
        for number in chosen
        for policy, own in found.items()
        if number < len(own)
    ]
    note = "The last rows are the test prompts on which the judge likes the last round least."
    return [
        Table("answers side by side", ["prompt", "policy", "answer", "judge"], lines, note=note)
    ]


def rows_of(done: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A row of activation.json for each run."""
    return [
        {
            "run": record.label,
            **dict(record.axes),
            "metrics": dict(record.metrics),
            "samples": record.cost.drawn,
            "scored": record.cost.scored,
            "trained": record.cost.trained,
            "seconds": record.cost.seconds,
            "flops": record.cost.flops,
            "summary": {k: v for k, v in record.summary.items() if k != "examples"},
        }
        for record in done
    ]


def _last_round(found: Mapping[str, Any]) -> str:
    return [policy for policy in found if policy.startswith("round")][-1]


def _answers(run: RunRecord) -> list[dict[str, Any]]:
    path = run.folder / "answers.jsonl"
    if not path.is_file():
        return list(run.summary.get("examples", []))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _mean(runs: Mapping[int, RunRecord], name: str) -> float:
    return sum(run.metrics[name] for run in runs.values()) / len(runs)


def _cell(text: str) -> str:
    """A text on one line, control characters spelled out."""
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in shown)
