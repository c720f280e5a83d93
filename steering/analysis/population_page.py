"""Tables and the figure of the population study."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from steering.analysis.intervals import Interval
from steering.analysis.page import Table
from steering.analysis.population import Arm, Arms, difference, mean_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADER = ["arm", "NLL ↓", "− independent", "− best single", "epochs", "FLOPs", "forwards"]


def tables(arms: Arms) -> list[Table]:
    """All arms of each allocation, and the claims."""
    found = [_arms_table(arms, label) for label in arms.allocations]
    return [*found, _claims(arms), _singles(arms)]


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
            if mine is None or best is None or others is None:
                continue
            won = [mine.values()[s] < best.values()[s] for s in mine.values() if s in best.values()]
            apart = difference(mine, others)
            below = apart is not None and apart.high < 0
            name = f"{label}, {kind}"
            lines.append(
                [
                    name,
                    f"{sum(won)} of {len(won)}",
                    "yes" if below else "no",
                    _fewer(arms, label, kind),
                ]
            )
    header = ["population", "seeds below best single", "below independent", "× fewer epochs"]
    note = (
        "Below independent: the whole interval is below zero. × fewer epochs: the independent "
        "models' epochs over those at which the population, cycle by cycle, is as good as they are "
        "at their end."
    )
    return Table("claims", header, lines, note=note)


def _fewer(arms: Arms, label: str, kind: str) -> str:
    found = arms.fewer(label, kind)
    if found is None:
        return "–"
    if found.factor.value == 0:
        return f"not reached (in {100 * found.share:.0f} % of the draws)"
    sign = "≥ " if found.at_once else ""
    return f"{sign}{found.factor.value:.2f} [{found.factor.low:.2f}, {found.factor.high:.2f}]"


def _singles(arms: Arms) -> Table:
    lines = [
        [label, f"{epochs:g}", f"{loss:.4f}"]
        for label in arms.allocations
        for epochs, loss in arms.singles(label)
    ]
    return Table("single models by epochs", ["allocation", "epochs", "NLL ↓"], lines)


def curves_figure(arms: Arms) -> Figure:
    """Loss by epochs: single models, independent ones, snapshots and the chain."""
    from matplotlib.figure import Figure

    count = max(1, len(arms.allocations))
    figure = Figure(figsize=(4.6 * count, 3.6), layout="constrained")
    for axes, label in zip(
        np.ravel(figure.subplots(1, count, sharey=True)), arms.allocations, strict=True
    ):
        singles = arms.singles(label)
        axes.plot(*zip(*singles, strict=True), marker="o", color="gray", label="one model")
        for arm, kind, name in (
            ("independent", "uniform", "independent models"),
            ("snapshots", "uniform", "snapshots"),
            ("chain", "uniform", "snapshots + chain"),
            ("chain", "learned", "snapshots + chain + prior"),
        ):
            curve = arms.curve(label, arm, kind)
            losses = [mean_of(one.values()).value for _, one in curve]
            axes.plot([epochs for epochs, _ in curve], losses, marker="o", label=name)
        axes.set_xscale("log")
        axes.set_xlabel("epochs")
        axes.set_title(label)
    axes.set_ylabel("NLL, nats")
    axes.legend(fontsize=7)
    return figure
