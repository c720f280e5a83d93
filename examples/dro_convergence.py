"""Where mini-batch estimates of the dual end: at the full-batch optimum, but for the plain
mini-batch, which is biased.

    python examples/dro_convergence.py [--seeds 5] [--out figure.png]

Logistic regression with an l2 term, on scikit-learn's digits (3 against 8) and on a synthetic
problem, each under the DRO risk of KL, half chi-square and CVaR. The optimum of each risk comes
from full batches of the exact solver. Then every estimator of `steering.dro.online.estimators` trains from
small batches with a falling step. Shown is F(θ) − F*, by the exact solver over all data, of the
mean of the second half of the iterates. docs/solver-study.md explains the picture.
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small vectors: a second thread only waits

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor

from steering.dro import divergence, worst_case
from steering.dro.online.row_table import Layout
from steering.dro.online.specs import Batch, EstimatorSpec, MirrorDescent, MovingAverage, Proximal

L2, CLIP, SHOWN = 0.01, 10.0, 8  # l2 term, largest gradient, the batch size of the curves
STEPS = {"synthetic": 0.1, "digits": 0.6}  # of the first iterate; the same for all estimators
RISKS: dict[
    str, tuple[dict[str, float], dict[str, float]]
] = {  # name: options of the divergence, budget
    "kl": ({}, {"penalty": 0.3}),
    "chi2": ({}, {"penalty": 0.3}),
    "cvar": ({"level": 0.2}, {}),
}
ESTIMATORS: dict[str, dict[str, EstimatorSpec]] = {
    "kl": {
        "batch": Batch(),
        "moving_average": MovingAverage(gamma=0.02),
        "mirror_descent": MirrorDescent(log_alpha=-4.5),
        "proximal": Proximal(step=0.5),
    },
    "chi2": {"batch": Batch(), "proximal": Proximal(step=0.5)},
    "cvar": {"batch": Batch(), "proximal": Proximal(step=0.5)},
}
LABELS = {
    "batch": "plain mini-batch",
    "moving_average": "moving average (SogCLR)",
    "mirror_descent": "mirror descent (SCENT)",
    "proximal": "proximal point",
}
COLOURS = {
    "batch": "#D55E00",
    "moving_average": "#0072B2",
    "mirror_descent": "#009E73",
    "proximal": "#CC79A7",
}
TITLES = {"kl": "KL, τ = 0.3", "chi2": "half chi-square, τ = 0.3", "cvar": "CVaR, level 0.2"}


def digits() -> tuple[Tensor, Tensor]:
    """Threes against eights, standardised, (357, 65), and labels ±1."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("the digits come with scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    keep = (data.target == 3) | (data.target == 8)
    x = torch.from_numpy(data.data[keep])
    x = (x - x.mean(0)) / (x.std(0) + 1e-3) / math.sqrt(x.shape[1])
    return torch.cat([4 * x, torch.ones(len(x), 1)], 1).double(), torch.from_numpy(
        data.target[keep] == 3
    ).double() * 2 - 1


def synthetic() -> tuple[Tensor, Tensor]:
    """Two overlapping clouds, 400 points in 5 dimensions, 5 % of the labels flipped, and labels
    ±1."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (400,), generator=generator).double() * 2 - 1
    x = torch.randn(400, 5, generator=generator).double() + 0.8 * y[:, None]
    y = torch.where(torch.rand(400, generator=generator) < 0.05, -y, y)
    return torch.cat([x, torch.ones(400, 1)], 1).double(), y


DATA = {"synthetic": synthetic, "digits": digits}


def losses(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return F.softplus(-y * (x @ theta))


def risk(theta: Tensor, x: Tensor, y: Tensor, name: str) -> Tensor:
    """F(θ) over all data, exactly."""
    options, budget = RISKS[name]
    return (
        worst_case(losses(theta, x, y), name, **options, **budget).value
        + L2 / 2 * theta.square().sum()
    )


def optimum(x: Tensor, y: Tensor, name: str) -> float:
    """F*, by full-batch quasi-Newton steps from several restarts of its memory."""
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    best = math.inf
    for _ in range(30):
        optimizer = torch.optim.LBFGS(
            [theta],
            max_iter=100,
            tolerance_grad=1e-12,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def closure(optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = risk(theta, x, y, name)
            value.backward()
            return value

        optimizer.step(closure)
        best = min(best, risk(theta, x, y, name).item())
    return best


def train(label: str, name: str, how: str, batch: int, steps: int, seeds: int) -> Tensor:
    """F(mean of the second half of the iterates) at powers of two of the steps, (seeds,
    checkpoints).

    All seeds train side by side: each is one row of the estimator.
    """
    x, y = DATA[label]()
    settings, budget = RISKS[name]
    phi, tau = divergence(name, settings.get("level")), budget.get("penalty", 1.0)
    estimator = ESTIMATORS[name][how].build(phi, seeds, Layout()).double()
    generator, rows = torch.Generator().manual_seed(0), torch.arange(seeds)
    theta, every = (
        torch.zeros(seeds, x.shape[1], dtype=torch.float64),
        torch.ones(seeds, batch, dtype=torch.bool),
    )
    path, found, due = torch.empty(steps, *theta.shape, dtype=torch.float64), [], 32
    for step in range(steps):
        index = torch.randint(len(x), (seeds, batch), generator=generator)
        inputs, labels = x[index], y[index]  # (seeds, batch, d), (seeds, batch)
        margin = labels * torch.einsum("sbd,sd->sb", inputs, theta)
        ratios, _ = estimator(rows, F.softplus(-margin) / tau, every)
        slope = -(ratios * torch.sigmoid(-margin) * labels) / batch
        gradient = torch.einsum("sb,sbd->sd", slope, inputs) + L2 * theta
        gradient = gradient / (gradient.norm(dim=-1, keepdim=True) / CLIP).clamp_min(
            1
        )  # far from the optimum only
        theta = theta - STEPS[label] / math.sqrt(1 + step / 20) * gradient
        path[step] = theta
        if step + 1 == due:
            means = path[due // 2 : due].mean(0)
            found.append(torch.stack([risk(mean, x, y, name) for mean in means]))
            due *= 2
    return torch.stack(found, -1)


def study(
    steps: int, batches: list[int], seeds: int, names: list[str]
) -> dict[tuple[str, str, str, int], Tensor]:
    """F − F* by (data, risk, estimator, batch): (seeds, checkpoints). The batch size varies for KL
    alone."""
    found = {}
    for label, data in DATA.items():
        for name in names:
            best = optimum(*data(), name)
            for how in ESTIMATORS[name]:
                for batch in batches if name == "kl" else [SHOWN]:
                    found[label, name, how, batch] = (
                        train(label, name, how, batch, steps, seeds) - best
                    )
    return found


def draw(found: dict[tuple[str, str, str, int], Tensor], batches: list[int], out: str) -> None:
    names = list(dict.fromkeys(name for _, name, _, _ in found))
    figure, axes = plt.subplots(
        2, len(names) + 1, figsize=(4 * (len(names) + 1), 7), layout="constrained", squeeze=False
    )
    for line, label in zip(axes, ("synthetic", "digits"), strict=True):
        for axis, name in zip(line, names, strict=False):
            for how in ESTIMATORS[name]:
                runs = found[label, name, how, SHOWN]
                steps = [32 * 2**k * SHOWN for k in range(runs.shape[1])]
                _band(axis, steps, runs, how)
            axis.set(
                xscale="log",
                yscale="log",
                title=f"{label}: {TITLES[name]}",
                xlabel=f"samples drawn (batches of {SHOWN})",
            )
        for how in ESTIMATORS["kl"]:
            runs = torch.stack([found[label, "kl", how, batch][:, -1] for batch in batches], -1)
            _band(line[-1], batches, runs, how)
        line[-1].set(
            xscale="log", yscale="log", title=f"{label}: KL, where they end", xlabel="batch size"
        )
        line[-1].set_xticks(batches, labels=[str(batch) for batch in batches])
        line[-1].minorticks_off()
        line[0].set_ylabel("F(θ) − F*, nats")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _band(axis: plt.Axes, at: list[int], runs: Tensor, how: str) -> None:
    """Median over seeds, and the range of them."""
    axis.plot(at, runs.median(0).values, "o-", color=COLOURS[how], label=LABELS[how], markersize=3)
    axis.fill_between(at, runs.amin(0), runs.amax(0), color=COLOURS[how], alpha=0.15, linewidth=0)
    axis.grid(alpha=0.25, which="major")


def main(arguments: list[str] | None = None) -> dict[tuple[str, str, str, int], Tensor]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", help="where to save the figure; none is drawn without")
    parser.add_argument("--quick", action="store_true", help="short runs of KL, two batch sizes")
    options = parser.parse_args(arguments)
    batches = [SHOWN, 4 * SHOWN] if options.quick else [2, 4, SHOWN, 16, 32]
    steps, names = (256, ["kl"]) if options.quick else (8192, [*RISKS])
    found = study(steps, batches, options.seeds, names)
    print("F − F* at the end, median over seeds\n")
    print("| data | risk | batch | estimator: F − F* |\n| --- | --- | --- | --- |")
    for label, name, batch in dict.fromkeys(
        (label, name, batch) for label, name, _, batch in found
    ):
        ends = [
            f"{LABELS[how]} {found[label, name, how, batch][:, -1].median():.1e}"
            for how in ESTIMATORS[name]
        ]
        print(f"| {label} | {TITLES[name]} | {batch} | {'; '.join(ends)} |")
    if options.out:
        draw(found, batches, options.out)
    return found


if __name__ == "__main__":
    main()
