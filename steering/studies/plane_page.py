"""Tables and figure of the plane study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from steering.analysis.intervals import in_brackets
from steering.analysis.page import Table
from steering.analysis.plane import BEST, ORIGIN, UNGUIDED, Cell
from steering.analysis.trials import REPORT, TUNING, Trials, diverged
from steering.console import in_time

if TYPE_CHECKING:
    pass


def intro(trials: Trials[Cell]) -> str:
    return (
        f"Each cell is log p = x·ℓ − y·ℓ_ref: x = 1/τ is how sharp the adversary is, y = κ how far "
        f"the reference is trusted; (0, 0) is unguided training, the diagonal DRRho. Cells are "
        f"chosen by {trials.metric} on one half of the evaluated examples (hash of seed "
        f"{trials.split}), and reported on the other half with other seeds."
    )


def tables(trials: Trials[Cell], choices: Mapping[str, Cell]) -> list[Table]:
    found = [_choice_table(trials, choices)] if choices else []
    return [*found, _cell_table(trials), _round_table(trials), _cost_table(trials)]


def _choice_table(trials: Trials[Cell], choices: Mapping[str, Cell]) -> Table:
    """What was chosen, on the half that did not choose."""
    share, best = trials.rounds[-1].share, choices.get(BEST, ORIGIN)
    lines, over = [], []
    for role, cell in choices.items():
        mean = trials.shown(trials.mean(REPORT, cell, share))
        gain = trials.difference(REPORT, cell, ORIGIN, share)
        behind = trials.difference(REPORT, best, cell, share)
        cells = [trials.signed(gain) if role != UNGUIDED else "–"]
        cells.append(trials.signed(behind) if cell != best else "–")
        lines.append([role, str(cell), mean, *cells])
        over += [gain.over, behind.over]
    seeds = len(trials.runs(REPORT, ORIGIN, share))
    note = (
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} that had no part in the choice, on the half of "
        f"the examples that had none. {in_brackets(over)}"
    )
    header = ["", "(1/τ, κ)", trials.head, "over unguided", f"{BEST} over it"]
    return Table("on the other half", header, lines, note=note)


def _cell_table(trials: Trials[Cell]) -> Table:
    """The map itself, as numbers: gains over unguided training in each cell's last round."""
    columns = sorted({cell.x for cell in trials.candidates})
    lines = []
    for y in sorted({cell.y for cell in trials.candidates}, reverse=True):
        lines.append([f"κ = {y:g}", *(_map_cell(trials, Cell(x, y)) for x in columns)])
    note = (
        "On the tuning half: gain over unguided training of the same seeds and length, and behind "
        "it the round in which that was measured; later rounds are longer and have more seeds. * "
        "marks the best cell and those that are not told from it (95 %, paired). The best of many "
        "looks better than it is: see the other half for its worth."
    )
    return Table("map", ["", *(f"1/τ = {x:g}" for x in columns)], lines, note=note)


def _map_cell(trials: Trials[Cell], cell: Cell) -> str:
    last = trials.race.last(cell)
    if last < 0:
        return "–"
    mark = "*" if cell in trials.region else ""
    return f"{trials.number(trials.gain(cell, ORIGIN).value)}{mark} ({last + 1})"


def _round_table(trials: Trials[Cell]) -> Table:
    """How the race went."""
    lines = []
    for number, (one, scores) in enumerate(
        zip(trials.rounds, trials.race.finished, strict=False), 1
    ):
        if not scores:  # all have lost before
            continue
        leader = max(scores, key=lambda cell: scores[cell])
        mean = trials.shown(trials.mean(TUNING, leader, one.share, one.seeds))
        share = f"{100 * one.share:g} %"
        lines.append([str(number), str(len(scores)), share, str(one.seeds), str(leader), mean])
    header = ["round", "cells", "length", "seeds", "leader", trials.head]
    return Table("rounds", header, lines, note=diverged(trials.records()))


def _cost_table(trials: Trials[Cell]) -> Table:
    """What the study took, by stage, beside the grid that it spared."""
    lines = []
    for name, records in trials.spent().items():
        trained = sum(record.cost.trained for record in records)
        flops = sum(record.cost.flops for record in records)
        seconds = sum(record.cost.seconds for record in records)
        counted = f"{flops:.2e}" if flops else "–"
        lines.append([name, str(len(records)), f"{trained:,}", counted, in_time(seconds)])
    last, whole = trials.rounds[-1], trials.runs(TUNING, ORIGIN, trials.rounds[-1].share)
    note = ""
    converged = [run for run in whole.values() if not run.diverged]
    if converged:
        length = converged[0].cost.trained
        full = length * last.seeds * len(trials.candidates)
        note = f"Every cell at the last round's length and seeds would have trained on {full:,} samples."
    header = ["stage", "runs", "samples", "FLOPs", "seconds of training"]
    return Table("cost", header, lines, note=note)


def rows(trials: Trials[Cell], choices: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """The same in full digits."""
    share = trials.rounds[-1].share
    cells = [
        {
            "kind": "cell",
            **asdict(cell),
            "round": trials.race.last(cell) + 1,
            "gain": asdict(trials.gain(cell, ORIGIN)),
            "region": cell in trials.region,
        }
        for cell in trials.candidates
        if trials.race.last(cell) >= 0
    ]
    reported = [
        {
            "kind": "choice",
            "role": role,
            **asdict(cell),
            "value": trials.mean(REPORT, cell, share),
            "gain": asdict(trials.difference(REPORT, cell, ORIGIN, share)),
            "behind": asdict(trials.difference(REPORT, choices.get(BEST, ORIGIN), cell, share)),
        }
        for role, cell in choices.items()
    ]
    return cells + reported
