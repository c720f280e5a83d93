"""What steering with a cached reference adds to a step of plain training: classification and
language modelling.

    OMP_NUM_THREADS=1 python tests/benchmarks/step_overhead.py [--rounds 40] [--fixed]

A step is: load the batch, read the cache, forward, loss, backward, AdamW. The methods take turns,
step by step, on the same batches; the table has medians of process time and of their ratio within a
turn.

The addition is a fixed cost of small calls, and a second table has it alone: forward and backward
of a method over the losses of 256 examples, less those of plain training. On a machine that others
use, every disturbance adds to it: of several medians the smallest counts. `--fixed` makes only
this table, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from steering.config import load_config
from steering.dro import CVaR
from steering.items import Units
from steering.methods import build_method, find_method
from steering.outputs import WithOutputs, weights_fingerprint
from steering.reference import STORED, StoredReference
from steering.runs.ask import Ask
from steering.runs.opened import TRAINING, Frozen
from steering.runs.store import Store
from steering.runs.workshop import Workshop
from steering.task import find_task
from steering.training.recipes import AdamW
from steering.training.step import Gradient

CASES = {
    "classification, cnn, 8×8": ("configs/classification/digits.yaml", []),
    "classification, cnn, 32×32": (
        "configs/classification/digits.yaml",
        ["target.options.size=32"],
    ),
    "language, 2 layers, tokens": (
        "configs/language/stdlib.yaml",
        ["task.data.modules=[email, xml]"],
    ),
}
METHODS = {
    "erm": {},
    "drrho": {},
    "drrho auto": {"strength": "auto"},
    "drrho chi2": {"divergence": "chi2"},
    "drrho cvar": {"divergence": CVaR(level=0.7)},
}
CPU = torch.device("cpu")
ITEMS, MEDIANS, BOUNDS = 256, 9, {"drrho": 0.2, "drrho chi2": 0.6, "drrho cvar": 0.6}


def stepper(config, task, data, reference, name):  # type: ignore[no-untyped-def]
    """A function of a batch number that makes one step of training by a method."""
    torch.manual_seed(0)
    model = task.build(config.target)
    key = name.partition(" ")[0]
    method = build_method(
        key, find_method(key).options(**METHODS[name]), len(data), task.groups, task.risk.unit
    )
    gradient = Gradient(model.module, method, task.risk, reference if key != "erm" else None)
    optimizer = AdamW().build(model.module, method)

    def step(number: int) -> float:
        start = time.process_time()
        size = config.train.batch_size
        batch = data.batch(np.arange(number * size, (number + 1) * size) % len(data), 0)
        optimizer.zero_grad(set_to_none=True)
        gradient(batch)
        optimizer.step()
        return time.process_time() - start

    return step


def loss_alone(name):  # type: ignore[no-untyped-def]
    """A function that takes a method forward and backward over the losses of one batch."""
    key = name.partition(" ")[0]
    method = build_method(key, find_method(key).options(**METHODS[name]), 1000, (), "example")
    torch.manual_seed(0)
    target, reference = torch.rand(2, ITEMS)
    row = torch.zeros((), dtype=torch.int64)

    def step() -> float:
        leaf = target.clone().requires_grad_()
        start = time.process_time()
        method(Units(leaf, reference, row)).loss.backward()
        return time.process_time() - start

    return step


def fixed_costs(rounds: int) -> dict[str, float]:
    """Milliseconds that each method adds to a step, the smallest of several medians."""
    steps = {name: loss_alone(name) for name in METHODS}
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(MEDIANS):
        times: dict[str, list[float]] = {name: [] for name in METHODS}
        for _ in range(rounds):
            for name, step in steps.items():
                times[name].append(step())
        plain = statistics.median(times["erm"])
        for name, values in times.items():
            found[name].append(1000 * (statistics.median(values) - plain))
    return {name: min(values) for name, values in found.items() if name != "erm"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--fixed", action="store_true")
    arguments = parser.parse_args()
    print("| method | ms added to a step | wanted |\n| --- | --- | --- |")
    for name, cost in fixed_costs(10 * arguments.rounds).items():
        print(f"| {name} | {cost:.2f} | {BOUNDS.get(name, '')} |", flush=True)
    if not arguments.fixed:
        print()
        whole_steps(arguments.rounds)


def whole_steps(rounds: int) -> None:
    """The table of whole steps."""
    print("| task | method | ms a step | of plain training |\n| --- | --- | --- | --- |")
    for label, (path, overrides) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            reference_there = [
                "reference.train=null",
                f"reference.cache={folder}/cache",
                f"output={folder}",
            ]
            config = load_config(path, [*overrides, *reference_there])
            task = find_task(config.task.name)(config.task)
            guide = task.build(config.reference)
            workshop = Workshop(Store(Path(folder)), CPU)
            frozen = Frozen(guide, weights_fingerprint(guide.module))
            ask = Ask(config, "overhead")
            stored = workshop.outputs(ask, frozen, ask.needs.outputs, TRAINING)
            target = task.build(config.target)
            data = WithOutputs(task.train_data(target, None, 0), stored, STORED)
            steps = {name: stepper(config, task, data, StoredReference(), name) for name in METHODS}
            times: dict[str, list[float]] = {name: [] for name in METHODS}
            for number in range(rounds + 5):
                order = list(METHODS) if number % 2 else list(METHODS)[::-1]
                for name in order:
                    times[name].append(steps[name](number))
            for name, found in times.items():
                ratio = statistics.median(
                    a / b for a, b in zip(found[5:], times["erm"][5:], strict=True)
                )
                print(
                    f"| {label} | {name} | {1000 * statistics.median(found[5:]):.1f} | {ratio:.3f} |",
                    flush=True,
                )
            assert Path(folder).is_dir()


if __name__ == "__main__":
    main()
