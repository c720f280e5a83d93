"""How near must a reference be? Linear regression with references at a known distance from the
optimum.

    python examples/reference_distance.py [--seeds 40] [--out figure.png]

x ~ N(0, I), y = x·θ* + noise, squared loss, so that the excess risk of θ is exactly ‖θ − θ*‖², and
the reference is θ* + δ. On n samples each method minimises its risk to the end: the mean (ERM), the
half chi-square worst case with radius ρ/n of the losses (DRO), and of the excess losses (DRRho).
The loss has no bound and plain training learns at the rate 1/n already, so this says nothing about
the theorem; that is what examples/excess_risk_bound.py is for. docs/solver-study.md explains the
picture.
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
from torch import Tensor

from steering.dro import worst_case

DIMENSIONS, NOISE, RHO, SAMPLES = 10, 1.0, 5.0, 100
BLUE, ORANGE, GREY, GREEN = (
    "#0072B2",
    "#D55E00",
    "#777777",
    "#009E73",
)  # told apart by the colour-blind too


def problem(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs (n, d), targets (n,), the optimum θ* (d,), and a random unit direction (d,) for the
    reference's error."""
    generator = torch.Generator().manual_seed(seed)
    optimum, direction, x, noise = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((DIMENSIONS,), (DIMENSIONS,), (n, DIMENSIONS), (n,))
    )
    return x, x @ optimum + NOISE * noise, optimum, direction / direction.norm()


def minimiser(
    x: Tensor, y: Tensor, reference: Tensor | None, rho: float, strength: float = 1.0
) -> Tensor:
    """θ of least worst-case risk, (d,): reference losses (n,) or None; ρ = 0 is ERM."""
    theta = torch.linalg.lstsq(x, y[:, None]).solution[:, 0].requires_grad_()
    if rho == 0:
        return theta.detach()
    guide = torch.zeros_like(y) if reference is None else strength * reference
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = worst_case((y - x @ theta).square() - guide, "chi2", rho=rho).value
        value.backward()
        return value

    optimizer.step(closure)
    return theta.detach()


def best_strength(losses: Tensor, reference: Tensor) -> float:
    """α* = Cov(ℓ, ℓ_ref)/Var(ℓ_ref), at least 0."""
    covariance = torch.cov(torch.stack([losses, reference]))
    return max(0.0, float(covariance[0, 1] / covariance[1, 1]))


def excess_risks(distance: float, n: int, seeds: int, how: str) -> Tensor:
    """Excess risk ‖θ − θ*‖² for each seed, (seeds,), of "erm", "dro", "drrho", or "auto" (DRRho
    with α*)."""
    found = []
    for seed in range(seeds):
        x, y, optimum, direction = problem(n, seed)
        reference = (y - x @ (optimum + distance * direction)).square()
        erm = minimiser(x, y, None, 0.0)
        strength = best_strength((y - x @ erm).square(), reference) if how == "auto" else 1.0
        guide = None if how == "dro" else reference
        theta = erm if how == "erm" else minimiser(x, y, guide, RHO, strength)
        found.append(float((theta - optimum).square().sum()))
    return torch.tensor(found)


def summary(values: Tensor) -> tuple[float, float]:
    """Mean and standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def study(
    distances: list[float], sizes: list[int], seeds: int
) -> dict[str, dict[float, dict[str, tuple[float, float]]]]:
    """Excess risks by distance of the reference (n fixed) and by n (distance 0.3 fixed)."""
    ways = ("erm", "dro", "drrho", "auto")
    flat = {
        how: summary(excess_risks(0.0, SAMPLES, seeds, how)) for how in ("erm", "dro")
    }  # no reference in these
    near = {
        d: {
            how: flat[how] if how in flat else summary(excess_risks(d, SAMPLES, seeds, how))
            for how in ways
        }
        for d in distances
    }
    return {
        "distance": near,
        "n": {n: {how: summary(excess_risks(0.3, n, seeds, how)) for how in ways} for n in sizes},
    }


def draw(found: dict[str, dict[float, dict[str, tuple[float, float]]]], out: str) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = {
        "drrho": (BLUE, "o-", "DRRho, α = 1"),
        "auto": (GREEN, "s-", "DRRho, α = α*"),
        "erm": (GREY, "--", "ERM"),
        "dro": (ORANGE, ":", "DRO (no reference)"),
    }
    for axis, key in zip(axes, ("distance", "n"), strict=True):
        at = [*found[key]]
        for how, (colour, style, label) in styles.items():
            mean, error = (torch.tensor([found[key][x][how][part] for x in at]) for part in (0, 1))
            axis.plot(at, mean, style, color=colour, label=label, markersize=4)
            axis.fill_between(
                at, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.15, linewidth=0
            )
        if key == "distance":
            axis.plot(
                at,
                [x**2 for x in at],
                color="black",
                linewidth=1,
                linestyle=(0, (1, 3)),
                label="the reference itself",
            )
        axis.set(xscale="log", yscale="log", ylabel="excess risk  ‖θ − θ*‖²")
        axis.grid(alpha=0.25, which="major")
    axes[0].set(
        xlabel="distance of the reference from the optimum, ‖δ‖", title=f"n = {SAMPLES} samples"
    )
    axes[1].set(xlabel="samples n", title="reference at distance 0.3")
    axes[0].set_ylim(bottom=1e-4)
    axes[1].set_xticks([*found["n"]], labels=[str(n) for n in found["n"]])
    axes[1].minorticks_off()
    axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main(
    arguments: list[str] | None = None,
) -> dict[str, dict[float, dict[str, tuple[float, float]]]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--out", help="where to save the figure; none is drawn without")
    parser.add_argument("--quick", action="store_true", help="three distances, two sizes")
    options = parser.parse_args(arguments)
    distances = (
        [0.03, 0.3, 3.0]
        if options.quick
        else [0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.5, 0.8, 1.3, 2.0, 4.0]
    )
    sizes = [50, 400] if options.quick else [30, 50, 100, 200, 400, 800]
    found = study(distances, sizes, options.seeds)
    print("| | " + " | ".join(f"{how}" for how in ("erm", "dro", "drrho", "auto")) + " |")
    print("| --- " * 5 + "|")
    for key, table in found.items():
        for x, row in table.items():
            cells = " | ".join(f"{mean:.4f} ± {error:.4f}" for mean, error in row.values())
            print(f"| {'‖δ‖' if key == 'distance' else 'n'} = {x} | {cells} |")
    if options.out:
        draw(found, options.out)
    return found


if __name__ == "__main__":
    main()
