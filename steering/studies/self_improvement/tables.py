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
_COLUMNS = 4  # policies side by side


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


def fits(done: Sequence[RunRecord]) -> list[Table]:
    """What the search of each steering function chose, and what it tried, first seed."""
    lines = []
    for record in _of_first_seed(done):
        trials, number = record.summary.get("search", []), record.summary.get("chosen")
        if number is None:  # nothing was searched
            continue
        chosen = trials[number]
        lines.append(
            [
                record.axes["run"],
                _edits(chosen["edits"]),
                f"{chosen['gain'] - trials[0]['gain']:+.3f}",
                f"{chosen['harm']:+.3f}",
                f"{len(trials) - 1}",
                f"{record.summary['used']} of {record.summary['bank']}",
            ]
        )
    header = ["fit", "chosen", "gain", "nll", "tried", "pairs"]
    note = "gain and nll: on validation prompts, differences to the unsteered model."
    return [Table("what the search chose, first seed", header, lines, note=note)] if lines else []


def costs(done: Sequence[RunRecord]) -> list[Table]:
    """What each run of the first seed took."""
    lines = []
    for record in _of_first_seed(done):
        cost = record.cost
        lines.append(
            [
                record.axes.get("run") or f"report: {record.axes['policy']}",
                f"{cost.drawn:,}",
                f"{cost.scored:,}",
                f"{cost.trained:,}",
                f"{cost.flops:.1e}" if cost.flops else "–",
                in_time(cost.seconds),
            ]
        )
    header = ["run", "answers", "ranked", "trained", "FLOPs", "time"]
    return [Table("cost of each run, first seed", header, lines)] if lines else []


def _of_first_seed(done: Sequence[RunRecord]) -> list[RunRecord]:
    own = [record for record in done if record.kind == "call"]
    first = min((record.axes["seed"] for record in own), default=0)
    return [record for record in own if record.axes["seed"] == first]


def _edits(names: Sequence[str]) -> str:
    """Edits in few words: several of one kind and strength are named once."""
    parts = [name.split(" ", 1) for name in names]
    if len(parts) > 1 and len({how for _, how in parts}) == 1:
        return f"{', '.join(layer for layer, _ in parts)}: each {parts[0][1]}"
    return ", ".join(names) or "nothing"


def examples(reports: Reports, count: int) -> list[Table]:
    """Answers of a few policies side by side: the first answers to the first test prompts, and those
    that the judge likes least to the prompts where it likes the last round least."""
    runs = {policy: next(iter(own.values())) for policy, own in reports.items()}
    last = _last_round(runs)
    shown = [name for name in (BASE, last, "supervised", "best_of_n", "dpo") if name in runs]
    found = {policy: _answers(runs[policy]) for policy in shown[:_COLUMNS]}
    own = found[last]
    if not own or count < 1:
        return []
    first = [(number, 0) for number in range(min(count, len(own)))]
    worst = sorted(range(len(own)), key=lambda n: sum(own[n]["judge"]) / len(own[n]["judge"]))
    least = [(n, own[n]["judge"].index(min(own[n]["judge"]))) for n in worst[:count]]
    header = ["prompt", *found]
    note = (
        "In brackets the judge's score. All answers are in answers.jsonl of each report's folder."
    )
    return [
        Table("answers side by side", header, _side_by_side(found, first), note=note),
        Table(f"failures after {last}", header, _side_by_side(found, least)),
    ]


def _side_by_side(
    found: Mapping[str, Sequence[Mapping[str, Any]]], places: Sequence[tuple[int, int]]
) -> list[list[str]]:
    """A line for each (number of the prompt, number of the answer)."""
    every = list(found.values())
    return [
        [
            _cell(every[0][prompt]["prompt"]),
            *(
                f"{_cell(rows[prompt]['answers'][answer])} ({rows[prompt]['judge'][answer]:.2f})"
                for rows in every
            ),
        ]
        for prompt, answer in places
        if all(prompt < len(rows) for rows in every)
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
