"""Steering in a loop of your own: a small clean reference steers a larger target on data with wrong
labels.

python examples/own_loop.py              seed 0: some seconds on a CPU; prints accuracies on clean test data
python examples/own_loop.py --seeds 5    seeds 0 to 4, then mean ± standard error: the numbers of README.md
"""

import argparse
import sys

import torch
import torch.nn.functional as F

import steering


def make_data(n: int, wrong: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in 20 dimensions, two classes by a curved border; a share of the labels is wrong."""
    x = torch.randn(n, 20)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    return x, torch.where(torch.rand(n) < wrong, 1 - y, y)


def mlp(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(20, width), torch.nn.ReLU(), torch.nn.Linear(width, 2)
    )


def fit(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    guide: torch.nn.Module | None,
    epochs: int,
) -> torch.nn.Module:
    """Plain training, or steered by `guide`."""
    steer = steering.DRRho(tau=1.0)
    reference_losses = None
    if guide is not None:
        with torch.no_grad():  # once, for the whole data set
            reference_losses = F.cross_entropy(guide(x), y, reduction="none")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(128):
            losses = F.cross_entropy(model(x[index]), y[index], reduction="none")
            loss = (
                losses.mean()
                if reference_losses is None
                else steer(losses, reference_losses[index])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    return (model(x).argmax(1) == y).float().mean().item()


def main(seed: int = 0) -> dict[str, float]:
    torch.manual_seed(seed)
    train, clean, test = (
        make_data(8000, wrong=0.3),
        make_data(800, wrong=0.0),
        make_data(10000, wrong=0.0),
    )
    reference = fit(mlp(16), *clean, guide=None, epochs=20)
    scores = {
        "reference": accuracy(reference, *test),
        "plain": accuracy(fit(mlp(256), *train, guide=None, epochs=15), *test),
        "steered": accuracy(fit(mlp(256), *train, guide=reference, epochs=15), *test),
    }
    for name, score in scores.items():
        print(f"{name:10s} {score:.3f}")
    return scores


def study(arguments: list[str]) -> dict[str, torch.Tensor]:
    """Accuracies by name, (seeds,)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="run seeds 0 to N − 1")
    seeds = parser.parse_args(arguments).seeds
    if seeds < 1:
        parser.error(f"--seeds: expected a whole number from 1 on, got {seeds}")
    runs = []
    for seed in range(seeds):
        if seeds > 1:
            print(f"seed {seed}")
        runs.append(main(seed))
    found = {name: torch.tensor([run[name] for run in runs]) for name in runs[0]}
    if seeds > 1:
        print(f"mean ± standard error over {seeds} seeds, percent")
        for name, scores in found.items():
            print(f"{name:10s} {100 * scores.mean():.1f} ± {100 * scores.std() / seeds**0.5:.1f}")
    return found


if __name__ == "__main__":
    study(sys.argv[1:])
