"""Tables and figure of the plane study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from steering.analysis.intervals import DRAWS, Interval
from steering.analysis.page import Table
from steering.analysis.plane import BEST, ORIGIN, REPORT, TUNING, UNGUIDED, Cell, Results
from steering.console import in_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def intro(results: Results) -> str:
    return (
        f"Each cell is log p = x·ℓ − y·ℓ_ref: x = 1/τ is how sharp the adversary is, y = κ how far "
        f"the reference is trusted; (0, 0) is unguided training, the diagonal DRRho. Cells are "
        f"chosen by {results.metric} on one half of the evaluated examples (hash of seed "
        f"{results.split}), and reported on the other half with other seeds."
    )


def tables(results: Results, choices: Mapping[str, Cell]) -> list[Table]:
    found = [_choice_table(results, choices)] if choices else []
    return [*found, _cell_table(results), _round_table(results), _cost_table(results)]


def _choice_table(results: Results, choices: Mapping[str, Cell]) -> Table:
    """What was chosen, on the half that did not choose."""
    share, best = results.rounds[-1].share, choices.get(BEST, ORIGIN)
    lines = []
    for role, cell in choices.items():
        mean = results.shown(results.mean(REPORT, cell, share))
        gain = results.difference(REPORT, cell, ORIGIN, share)
        behind = results.difference(REPORT, best, cell, share)
        cells = [_signed(results, gain) if role != UNGUIDED else "–"]
        cells.append(_signed(results, behind) if cell != best else "–")
        lines.append([role, str(cell), mean, *cells])
    seeds = len(results.runs(REPORT, ORIGIN, share))
    over = "seeds and examples, paired in both" if seeds > 1 else "examples; seeds may differ more"
    note = (
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} that had no part in the choice, on the half of "
        f"the examples that had none. In brackets 95 % of a bootstrap over {over} ({DRAWS:,} draws)."
    )
    header = ["", "(1/τ, κ)", results.metric, "over unguided", f"{BEST} over it"]
    return Table("on the other half", header, lines, note=note)


def _cell_table(results: Results) -> Table:
    """The map itself, as numbers: gains over unguided training in each cell's last round."""
    columns = sorted({cell.x for cell in results.cells})
    lines = []
    for y in sorted({cell.y for cell in results.cells}, reverse=True):
        lines.append([f"κ = {y:g}", *(_map_cell(results, Cell(x, y)) for x in columns)])
    note = (
        "On the tuning half: gain over unguided training of the same seeds and length, and behind "
        "it the round in which that was measured; later rounds are longer and have more seeds. * "
        "marks the best cell and those that are not told from it (95 %, paired). The best of many "
        "looks better than it is: see the other half for its worth."
    )
    return Table("map", ["", *(f"1/τ = {x:g}" for x in columns)], lines, note=note)


def _map_cell(results: Results, cell: Cell) -> str:
    last = results.race.last(cell)
    if last < 0:
        return "–"
    mark = "*" if cell in results.region else ""
    return f"{_number(results, results.gain(cell).value)}{mark} ({last + 1})"


def _round_table(results: Results) -> Table:
    """How the race went."""
    lines = []
    for number, (one, scores) in enumerate(
        zip(results.rounds, results.race.finished, strict=False), 1
    ):
        leader = max(scores, key=lambda cell: scores[cell])
        mean = results.shown(results.mean(TUNING, leader, one.share, one.seeds))
        share = f"{100 * one.share:g} %"
        lines.append([str(number), str(len(scores)), share, str(one.seeds), str(leader), mean])
    header = ["round", "cells", "length", "seeds", "leader", results.metric]
    return Table("rounds", header, lines)


def _cost_table(results: Results) -> Table:
    """What the study took, by stage, beside the grid that it spared."""
    lines = []
    for name, records in results.spent().items():
        trained = sum(record.cost.trained for record in records)
        flops = sum(record.cost.flops for record in records)
        seconds = sum(record.cost.seconds for record in records)
        counted = f"{flops:.2e}" if flops else "–"
        lines.append([name, str(len(records)), f"{trained:,}", counted, in_time(seconds)])
    last, whole = results.rounds[-1], results.runs(TUNING, ORIGIN, results.rounds[-1].share)
    note = ""
    if whole:
        length = next(iter(whole.values())).cost.trained
        full = length * last.seeds * len(results.cells)
        note = f"Every cell at the last round's length and seeds would have trained on {full:,} samples."
    header = ["stage", "runs", "samples", "FLOPs", "seconds of training"]
    return Table("cost", header, lines, note=note)


def rows(results: Results, choices: Mapping[str, Cell]) -> list[dict[str, Any]]:
    """The same in full digits."""
    share = results.rounds[-1].share
    cells = [
        {
            "kind": "cell",
            **asdict(cell),
            "round": results.race.last(cell) + 1,
            "gain": _plain(results.gain(cell)),
            "region": cell in results.region,
        }
        for cell in results.cells
        if results.race.last(cell) >= 0
    ]
    reported = [
        {
            "kind": "choice",
            "role": role,
            **asdict(cell),
            "value": results.mean(REPORT, cell, share),
            "gain": _plain(results.difference(REPORT, cell, ORIGIN, share)),
            "behind": _plain(results.difference(REPORT, choices[BEST], cell, share)),
        }
        for role, cell in choices.items()
    ]
    return cells + reported


def _plain(found: Interval) -> dict[str, Any]:
    """JSON knows no NaN."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(found).items()
    }


def _signed(results: Results, found: Interval) -> str:
    if math.isnan(found.value):
        return "–"
    text = _number(results, found.value)
    if math.isnan(found.low):
        return text
    return f"{text} [{_number(results, found.low)}, {_number(results, found.high)}]"


def _number(results: Results, value: float) -> str:
    return f"{100 * value:+.1f}" if results.meaning.percent else f"{value:+.3f}"


def figure(results: Results) -> Figure:
    """A heat map: a cell's colour is its gain over unguided training on the tuning half."""
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    xs, ys = (sorted({getattr(cell, axis) for cell in results.cells}) for axis in ("x", "y"))
    drawn = Figure(figsize=(2.2 + 0.95 * len(xs), 1.8 + 0.7 * len(ys)), layout="constrained")
    axes = drawn.subplots()
    gains = {one: results.gain(one).value for one in results.cells if results.race.last(one) >= 0}
    _colours(drawn, axes, results, {(xs.index(c.x), ys.index(c.y)): g for c, g in gains.items()})
    for cell, gain in gains.items():
        _mark(axes, results, cell, gain, (xs.index(cell.x), ys.index(cell.y)))
    ray = [(xs.index(one), ys.index(one)) for one in xs if one in ys]
    if len(ray) > 1:  # below the cells' numbers
        columns, lines = zip(*ray, strict=True)
        axes.plot(columns, lines, "k--", linewidth=0.8, zorder=1.5)
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set(xlabel="1/τ: how sharp the adversary is", ylabel="κ: trust in the reference")
    axes.set_title(
        "dashed: DRRho, κ = 1/τ; frames: best (thick)\nand those not told from it", size=8
    )
    return drawn


def _colours(
    drawn: Figure, axes: Any, results: Results, gains: Mapping[tuple[int, int], float]
) -> None:
    """Blue is better. What is worse by more than the best is better is as red as can be: one
    hopeless corner would leave no colours for the others."""
    columns, lines = (1 + max((place[k] for place in gains), default=0) for k in (0, 1))
    better = 1 if results.meaning.higher_is_better else -1
    scale = 100 if results.meaning.percent else 1
    table = np.full((lines, columns), np.nan)
    for (column, line), gain in gains.items():
        table[line, column] = better * scale * gain
    ahead = max([*gains.values()], key=lambda gain: better * gain, default=0.0)
    most = scale * abs(ahead) or 1.0
    picture = axes.imshow(
        table, origin="lower", cmap="RdBu", vmin=-most, vmax=most, aspect="auto", alpha=0.8
    )
    drawn.colorbar(
        picture,
        label="better than unguided by" + (", points" if results.meaning.percent else ""),
        extend="min",
    )


def _mark(axes: Any, results: Results, cell: Cell, gain: float, place: tuple[int, int]) -> None:
    """A cell's numbers; a frame around those of the confidence region, thick around the best."""
    from matplotlib.patches import Rectangle

    text = "unguided" if cell == ORIGIN else _number(results, gain)
    last = results.race.last(cell)
    axes.text(*place, f"{text}\nround {last + 1}", ha="center", va="center", fontsize=7)
    if cell in results.region:
        x, y = place
        width = 3.0 if cell == results.race.best(results.cells) else 1.2
        axes.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, linewidth=width))
