"""The bound made visible: a class on which plain training learns at the rate 1/√n, and a weak
reference that makes it 1/n.

    python examples/excess_risk_bound.py [--repetitions 1000] [--out figure.png]

0/1 losses. A share 0.3 of the examples is hard: the best model errs there, and only there. A
*sensible* model errs there and on a share g of the easy examples besides. A *tempting* model errs
on a share 0.3 + g of all examples, wherever. g is a model's excess risk. The class holds the best
model and 40 models of each kind, with g from 1e-5 to 1/2, so that at every n some tempting models
cannot be told from the best by their mean loss. Means over n examples scatter by 1/√n, and so does
what plain training picks.

The reference is sensible and weaker than the best by r = 0.01 or 0.2. Its losses share the noise of
the best model's, so that the excess loss tells tempting from sensible models. Each method takes the
member of the class with the least worst case in the half chi-square ball with the radius of the
theorem, ρ/n with ρ = log(4N/δ). docs/theory.md has the theorem, docs/solver-study.md explains the
picture.

A loss is 0 or 1, and so is the reference's. A table of four counts is thus all that a method sees
of a model, and the table of n examples is drawn as such; `worst_case` takes the counts as its
prior.
"""

from __future__ import annotations

import argparse
import math
import os
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # short rows: a second thread only waits

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

from steering.dro import worst_case

HARD, KIND, DELTA = (
    0.3,
    40,
    0.05,
)  # share of hard examples, models of a kind, what the bound may fail with
SIZES = [50 * 2**k for k in range(9)]
_STEPS = torch.arange(1, KIND + 1, dtype=torch.float64) / KIND
SENSIBLE = torch.cat(
    [torch.zeros(1, dtype=torch.float64), _STEPS**3 / 2]
)  # excess risks; the best model first
TEMPTING = _STEPS**2 / 3
EXCESS_RISK = torch.cat([SENSIBLE, TEMPTING])
RHO = math.log(4 * len(EXCESS_RISK) / DELTA)


class Way(NamedTuple):
    """A method: name, colour and marker, excess risk r of its reference, strength α, and ρ."""

    name: str
    style: str
    marker: str
    reference: float
    strength: float
    rho: float


WAYS = {
    "erm": Way("ERM", "#777777", "o", 0.2, 0.0, 0.0),
    "dro": Way("DRO", "#D55E00", "x", 0.2, 0.0, RHO),
    "half": Way("DRRho, r = 0.01, α = ½", "#CC79A7", "D", 0.01, 0.5, RHO),
    "weak": Way("DRRho, r = 0.2", "#009E73", "^", 0.2, 1.0, RHO),
    "near": Way("DRRho, r = 0.01", "#0072B2", "s", 0.01, 1.0, RHO),
}


def drawn(trials: Tensor, share: Tensor | float, generator: torch.Generator) -> Tensor:
    """Binomial counts of these trials, broadcast."""
    trials, share = torch.broadcast_tensors(trials, torch.as_tensor(share, dtype=torch.float64))
    return torch.binomial(trials.contiguous(), share.contiguous(), generator=generator)


def tables(n: int, repetitions: int, reference: float, generator: torch.Generator) -> Tensor:
    """How many of n examples have (loss, reference loss) = (0, 0), (0, 1), (1, 0), (1, 1):
    (repetitions, N, 4)."""
    hard = drawn(torch.full((repetitions, 1), float(n), dtype=torch.float64), HARD, generator)
    failed = drawn(
        n - hard, reference / (1 - HARD), generator
    )  # easy examples on which the reference errs
    known = n - hard - failed  # those on which it does not
    extra = SENSIBLE / (1 - HARD)
    both = torch.cat(
        [hard + drawn(failed, extra, generator), drawn(hard + failed, HARD + TEMPTING, generator)],
        dim=1,
    )
    alone = torch.cat(
        [drawn(known, extra, generator), drawn(known, HARD + TEMPTING, generator)], dim=1
    )
    return torch.stack([known - alone, hard + failed - both, alone, both], dim=-1)


def picked(counts: Tensor, way: Way, generator: torch.Generator) -> Tensor:
    """Excess risk of the model of least worst case in each repetition, (repetitions,). Ties are
    broken by chance."""
    rows = counts.flatten(0, 1)
    losses = torch.tensor(
        [0.0, -way.strength, 1.0, 1.0 - way.strength], dtype=torch.float64
    ).expand_as(rows)
    values = worst_case(
        losses, "chi2", radius=way.rho / rows[0].sum().item(), prior=rows
    ).value.view(counts.shape[:-1])
    return EXCESS_RISK[(values + 1e-9 * torch.rand(values.shape, generator=generator)).argmin(-1)]


def excess_risks(way: Way, n: int, repetitions: int) -> Tensor:
    """Excess risks over repetitions, (repetitions,); ways with the same reference see the same
    examples."""
    generator = torch.Generator().manual_seed(n)
    return picked(tables(n, repetitions, way.reference, generator), way, generator)


def variances(reference: float, strength: float) -> Tensor:
    """Var(ℓ − α ℓ_ref) of each model, (N,), from the shares of the four pairs of losses."""
    failed = HARD + reference
    both = torch.cat([HARD + reference * SENSIBLE / (1 - HARD), failed * (HARD + TEMPTING)])
    loss, mean = HARD + EXCESS_RISK, HARD + EXCESS_RISK - strength * failed
    return loss - 2 * strength * both + strength**2 * failed - mean.square()


def bound(n: int, reference: float, strength: float) -> float:
    """What the theorem promises for the excess risk with probability 1 − δ: right-hand side minus
    the least risk."""
    slow = EXCESS_RISK + 2 * (2 * RHO / n * variances(reference, strength)).sqrt()
    return float(slow.min()) + 7 * (1 + strength) * RHO / n


def slope(risks: dict[int, Tensor]) -> tuple[float, float]:
    """Least-squares slope of log mean excess risk over log n, and two standard errors of it."""
    x = torch.tensor([math.log(n) for n in risks], dtype=torch.float64)
    means = torch.stack([found.mean() for found in risks.values()])
    errors = torch.stack([found.std() / math.sqrt(len(found)) for found in risks.values()])
    pull = (x - x.mean()) / (x - x.mean()).square().sum()
    return float((pull * means.log()).sum()), 2 * float(
        (pull * errors / means).square().sum().sqrt()
    )


def end_labels(axis: Axes, at: float, labels: list[tuple[float, str, str]], apart: float) -> None:
    """Names at the right ends of curves, as (height, text, colour), pushed apart where they would
    touch."""
    height = math.inf
    for y, text, colour in sorted(labels, reverse=True):
        height = min(y, height / apart)
        axis.annotate(
            text,
            (at, height),
            (8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
        )


def draw(found: dict[str, dict[int, Tensor]], out: str) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    sizes = [*found["erm"]]
    names = []
    for key, risks in found.items():
        way = WAYS[key]
        means = [float(risks[n].mean()) for n in sizes]
        errors = [2 * float(risks[n].std()) / math.sqrt(len(risks[n])) for n in sizes]
        size, face = (
            (9, "none") if key == "erm" else (5, way.style)
        )  # DRO lies on ERM: its crosses in open circles
        left.errorbar(
            sizes,
            means,
            errors,
            color=way.style,
            marker=way.marker,
            markersize=size,
            markerfacecolor=face,
            linewidth=1.2,
        )
        names.append((means[-1], way.name, way.style))
    ends = [sizes[0], sizes[-1]]
    for power, text, start, place in ((0.5, "1/√n", 0.03, 12), (1.0, "1/n", 0.0035, -14)):
        line = [start * (sizes[0] / n) ** power for n in ends]
        left.plot(ends, line, color="black", linewidth=0.8, linestyle=(0, (1, 3)))
        at = (sizes[1], start * (sizes[0] / sizes[1]) ** power)
        left.annotate(
            text, at, (0, place), textcoords="offset points", ha="center", va="center", fontsize=9
        )
    end_labels(left, sizes[-1], names, apart=1.45)
    left.set(title="Mean excess risk, measured", ylabel="excess risk")
    names = []
    for text, colour, reference, strength in (
        ("DRO", WAYS["dro"].style, 0.0, 0.0),
        ("DRRho, r = 0.2", WAYS["weak"].style, 0.2, 1.0),
        ("DRRho, r = 0.01", WAYS["near"].style, 0.01, 1.0),
        ("DRRho, r = 0", "black", 0.0, 1.0),
    ):
        line = [bound(n, reference, strength) for n in sizes]
        right.plot(sizes, line, color=colour, linewidth=1.5)
        names.append((line[-1], f"bound: {text}", colour))
    for key in ("dro", "weak", "near"):
        line = [float(found[key][n].quantile(1 - DELTA)) for n in sizes]
        right.plot(sizes, line, WAYS[key].marker, color=WAYS[key].style, markersize=5)
        names.append((line[-1], f"runs: {WAYS[key].name}", WAYS[key].style))
    end_labels(right, sizes[-1], names, apart=1.7)
    right.set(
        title=f"What the theorem promises (lines), what {1 - DELTA:.0%} of the runs keep (markers)"
    )
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="examples n")
        axis.set_xticks(sizes[::2], labels=[f"{n:,}" for n in sizes[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.25, which="major")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[int, Tensor]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--out", help="where to save the figure; none is drawn without")
    parser.add_argument("--quick", action="store_true", help="three sizes")
    options = parser.parse_args(arguments)
    sizes = SIZES[::4] if options.quick else SIZES
    found = {
        key: {n: excess_risks(way, n, options.repetitions) for n in sizes}
        for key, way in WAYS.items()
    }
    print(
        f"N = {len(EXCESS_RISK)} models, ρ = {RHO:.2f}, mean excess risk ± standard error, in thousandths\n"
    )
    print("| n | " + " | ".join(WAYS[key].name for key in found) + " |")
    print("| --- " * (len(found) + 1) + "|")
    for n in sizes:
        cells = [
            f"{1e3 * x[n].mean():.3g} ± {1e3 * x[n].std() / len(x[n]) ** 0.5:.1g}"
            for x in found.values()
        ]
        print(f"| {n:,} | " + " | ".join(cells) + " |")
    print(
        "| slope | "
        + " | ".join("{:.2f} ± {:.2f}".format(*slope(risks)) for risks in found.values())
        + " |"
    )
    if options.out:
        draw(found, options.out)
    return found


if __name__ == "__main__":
    main()
