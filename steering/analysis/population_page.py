"""Tables and the figure of the population study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steering.analysis.intervals import Interval
from steering.analysis.page import Table
from steering.analysis.population import Arm, Arms, difference, mean_of
from steering.analysis.population_crossing import data_worth, fewer_epochs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADER = ["arm", "NLL ↓", "− independent", "− best single", "epochs", "FLOPs", "forwards"]


def tables(arms: Arms) -> list[Table]:
    """The answer first, then all arms of each allocation, and what stands behind them."""
    found = [_claims(arms), *_grid(arms)]
    found += [_arms_table(arms, label) for label in arms.allocations]
    return [
        *found,
        *(_data(arms, label) for label in arms.allocations if arms.more_data(label)),
        _singles(arms),
    ]


def lines_of(arms: Arms, label: str) -> list[Arm]:
    """The arms in the order of the table."""
    wanted = [
        ("single", "best", "best single, stopped early"),
        ("single", "last", "one long single"),
        ("independent", "uniform", "independent models"),
        ("independent", "learned", "independent models, learned weights"),
    ]
    for arm, name in (("snapshots", "snapshots"), ("chain", "snapshots + chain")):
        wanted += [
            (arm, "best", f"{name}: best one"),
            (arm, "last", f"{name}: last one"),
            (arm, "uniform", name),
            (arm, "learned", f"{name} + learned prior"),
        ]
        for top in arms.tops(label):
            wanted.append((arm, f"learned@{top}", f"{name}: top {top}, learned"))
            wanted.append((arm, f"uniform@{top}", f"{name}: top {top}, uniform"))
    wanted += [
        ("average", "uniform", "weights averaged, all snapshots"),
        ("average-one", "uniform", "weights averaged, one trajectory"),
        ("distilled", "uniform", "one model distilled from the mixture"),
    ]
    found = [arms.arm(label, *one) for one in wanted]
    return [arm for arm in found if arm is not None]


def _arms_table(arms: Arms, label: str) -> Table:
    shown = lines_of(arms, label)
    independent = arms.arm(label, "independent", "uniform")
    best, long = arms.arm(label, "single", "best"), arms.arm(label, "single", "last")
    unit = 0.0 if long is None else arms.flops(long)
    accurate = any(arm.values("accuracy") for arm in shown)
    lines = []
    for arm in shown:
        flops = arms.flops(arm)
        line = [
            arm.name,
            f"{mean_of(arm.values()).value:.4f}",
            _against(arm, independent),
            _against(arm, best),
            f"{arm.epochs():.3g}",
            f"{flops / unit:.2f}" if unit else "–",
            f"{arm.forwards():.3g}",
        ]
        lines.append(line + ([_percent(arm)] if accurate else []))
    note = "FLOPs are those of all training, in units of the one long model's."
    header = [*HEADER, *(["accuracy, %"] if accurate else [])]
    return Table(label, header, lines, note=note)


def _against(arm: Arm, other: Arm | None) -> str:
    if other is None or (arm.plan == other.plan and arm.runs == other.runs):
        return "–"
    found = difference(arm, other)
    return "–" if found is None else _signed(found)


def _signed(found: Interval) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def _percent(arm: Arm) -> str:
    values = arm.values("accuracy")
    return f"{100 * mean_of(values).value:.2f}" if values else "–"


def _claims(arms: Arms) -> Table:
    lines = []
    for label in arms.allocations:
        for kind in ("uniform", "learned"):
            mine = arms.arm(label, "chain", kind)
            best = arms.arm(label, "single", "best")
            others = arms.arm(label, "independent", "uniform")
            if mine is None:
                continue
            lines.append(
                [
                    f"{label}, {kind}",
                    arms.size(label),
                    f"{mean_of(mine.values()).value:.4f}",
                    _seeds_below(mine, best),
                    _seeds_below(mine, others),
                    _verdict(mine, others),
                    _fewer(arms, label, kind),
                ]
            )
    header = [
        "population",
        "models × cycles × epochs",
        "NLL ↓",
        "seeds below best single",
        "seeds below independent",
        "− independent",
        "× fewer epochs",
    ]
    note = (
        "The population is snapshots + chain, mixed with equal or with learned weights. × fewer "
        "epochs: the independent models' epochs over those at which the population, cycle by cycle, "
        "is as good as they are at their end."
    )
    return Table("does a population pay?", header, lines, note=note)


def _seeds_below(mine: Arm, other: Arm | None) -> str:
    if other is None:
        return "–"
    won = [mine.values()[s] < other.values()[s] for s in mine.values() if s in other.values()]
    return f"{sum(won)} of {len(won)}"


def _verdict(mine: Arm, other: Arm | None) -> str:
    found = None if other is None else difference(mine, other)
    if found is None:
        return "–"
    clear = "below" if found.high < 0 else "above" if found.low > 0 else "undecided"
    return f"{_signed(found)}: {clear}"


def _fewer(arms: Arms, label: str, kind: str) -> str:
    found = fewer_epochs(arms, label, kind)
    if found is None:
        return "–"
    if found.factor.value == 0:
        return f"not reached (in {100 * found.share:.0f} % of the draws)"
    sign = "≥ " if found.at_once else ""
    low = f"{found.factor.low:.2f}" if found.factor.low else "not reached"
    return f"{sign}{found.factor.value:.2f} [{low}, {found.factor.high:.2f}]"


def _grid(arms: Arms) -> list[Table]:
    """Allocations by their trajectories and cycles; nothing for fewer than two of them."""
    cells: dict[tuple[int, int], Arm] = {}
    for label in arms.allocations:
        mine = arms.arm(label, "chain", "learned")
        if mine is not None:
            axes = next(iter(mine.runs.values())).axes
            cells[axes["trajectories"], axes["cycles"]] = mine
    counts, cycles = (sorted({place[axis] for place in cells}) for axis in (0, 1))
    if len(cells) < 2:
        return []
    lines = [
        [
            str(count),
            *(
                f"{mean_of(cells[count, c].values()).value:.4f}" if (count, c) in cells else "–"
                for c in cycles
            ),
        ]
        for count in counts
    ]
    header = ["trajectories", *(f"{c} cycle{'s' if c > 1 else ''}" for c in cycles)]
    note = "NLL of snapshots + chain + learned prior, less is better."
    return [Table("trajectories by cycles", header, lines, note=note)]


def _data(arms: Arms, label: str) -> Table:
    curve = arms.more_data(label)
    most = curve[-1][0]
    lines = [
        [
            f"best single model of {factor:g} × the data",
            f"{mean_of(arm.values()).value:.4f}",
            f"{factor:g}",
        ]
        for factor, arm in curve
    ]
    for arm, plan, name in (
        ("independent", "uniform", "independent models"),
        ("chain", "uniform", "snapshots + chain"),
        ("chain", "learned", "snapshots + chain + learned prior"),
        ("distilled", "uniform", "one model distilled from the mixture"),
    ):
        mine = arms.arm(label, arm, plan)
        if mine is not None:
            found = data_worth(curve, mine)
            value, low, high = (_times(x, most) for x in (found.value, found.low, found.high))
            lines.append([name, f"{mean_of(mine.values()).value:.4f}", f"{value} [{low}, {high}]"])
    note = (
        "Worth: how many times the data a single model needs to be as good, on the curve of the best "
        "single models, straight in the logarithm of the data."
    )
    return Table(f"{label}: worth in data", ["arm", "NLL ↓", "worth, × data"], lines, note=note)


def _times(factor: float, most: float) -> str:
    if factor > most:
        return f"> {most:g}"
    return "≤ 1" if factor <= 1 else f"{factor:.2f}"


def _singles(arms: Arms) -> Table:
    lines = [
        [label, f"{epochs:g}", f"{loss:.4f}"]
        for label in arms.allocations
        for epochs, loss in arms.singles(label)
    ]
    return Table("single models by epochs", ["allocation", "epochs", "NLL ↓"], lines)


def curves_figure(arms: Arms) -> Figure:
    """Loss by epochs: single models, independent ones, snapshots and the chain; an allocation each."""
    from matplotlib.figure import Figure

    count = max(1, len(arms.allocations))
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.6 * columns, 3.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, label in zip(grid.flat, arms.allocations, strict=False):
        _curves(axes, arms, label)
    for axes in grid.flat[len(arms.allocations) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("NLL, nats")
    grid[0, 0].legend(fontsize=7)
    return figure


def _curves(axes: Axes, arms: Arms, label: str) -> None:
    singles = arms.singles(label)
    ticks = {epochs for epochs, _ in singles}
    if singles:
        axes.plot(*zip(*singles, strict=True), marker="o", color="gray", label="one model")
    best = arms.arm(label, "single", "best")
    if best is not None:
        height = mean_of(best.values()).value
        axes.axhline(height, color="gray", linestyle=":", label="one model, stopped early")
    for arm, kind, name in (
        ("independent", "uniform", "independent models"),
        ("snapshots", "uniform", "snapshots"),
        ("chain", "uniform", "snapshots + chain"),
        ("chain", "learned", "snapshots + chain + prior"),
    ):
        curve = arms.curve(label, arm, kind)
        if curve:
            losses = [mean_of(one.values()).value for _, one in curve]
            epochs = [epochs for epochs, _ in curve]
            ticks |= {epochs[0], epochs[-1]}
            axes.plot(epochs, losses, marker="o", label=name)
    axes.set_xscale("log")
    # Epochs as numbers, where something was measured: powers of ten would name one or two of them.
    axes.set_xticks(sorted(ticks), [f"{tick:.3g}" for tick in sorted(ticks)], fontsize=7)
    axes.xaxis.minorticks_off()
    axes.set_xlabel("epochs of training")
    axes.set_title(f"{label}: {arms.size(label)}", fontsize=10)
