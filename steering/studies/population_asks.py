"""Which runs a population is: trajectories of cycles, and what it is compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from steering.errors import ConfigError

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

CALLS = "steering.studies.population_calls"
RENEWED = 64  # batches from which statistics of batch normalisation are computed anew


@dataclass(frozen=True)
class Allocation:
    """How a budget of epochs is spent, an entry of `studies.population.allocations`.

    Attributes:
        trajectories, cycles, epochs: P, C, and c of one cycle; the budget is P·C·c.
        chain: a `method:` section of the later cycles, whose reference is the snapshot before.
        chain_from: the first cycle that has it, counted from 1; at least 2.
        fresh: a cycle begins with new weights, and only the chain ties it to the one before.
    """

    trajectories: int = 3
    cycles: int = 4
    epochs: float = 2.0
    chain: dict[str, Any] = field(
        default_factory=lambda: {"name": "distillation", "weight": 0.45, "temperature": 1.2}
    )
    chain_from: int = 2
    fresh: bool = False

    @property
    def budget(self) -> float:
        return self.trajectories * self.cycles * self.epochs


def _kd(weight: float, temperature: float) -> dict[str, Any]:
    return {"name": "distillation", "weight": weight, "temperature": temperature}


PRESETS = {
    # A public repository's entries (the unlimited track of the NanoGPT Slowrun), by their numbers
    # there. They changed architectures, too: data, not a curve. Where the first member had fewer
    # epochs than the others, the others' count.
    "slowrun-26": Allocation(8, 1, 18),
    "slowrun-31": Allocation(1, 8, 18, _kd(0.5, 1.0), fresh=True),
    "slowrun-37": Allocation(1, 10, 24, _kd(0.7, 1.0), fresh=True),
    "slowrun-80": Allocation(1, 20, 32, _kd(0.7, 1.0), fresh=True),
    "slowrun-90": Allocation(5, 96, 2, _kd(0.45, 1.2), chain_from=9),
}


def allocation_of(label: str, section: Mapping[str, Any], key: str = "allocations") -> Allocation:
    """An entry of `allocations`: a preset's name under `preset`, and keys over it.

    Args:
        key: whose entry it is, for messages.

    Raises:
        ConfigError: an unknown key or preset, or a number that is too small.
    """
    where = f"studies.population.{key}.{label}"
    given = dict(section)
    preset = given.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"{where}.preset: no preset {preset!r}; known: {', '.join(PRESETS)}")
    start = Allocation() if preset is None else PRESETS[preset]
    known = {one.name: getattr(start, one.name) for one in fields(Allocation)}
    if unknown := given.keys() - known.keys():
        raise ConfigError(
            f"{where}: unknown key {sorted(unknown)[0]!r}; known: preset, {', '.join(known)}"
        )
    found = Allocation(**{**known, **given})
    for key in ("trajectories", "cycles"):
        value = getattr(found, key)
        if not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"{where}.{key}: expected a whole number of at least 1, got {value!r}"
            )
    if not found.epochs > 0:
        raise ConfigError(f"{where}.epochs: expected a number above 0, got {found.epochs!r}")
    if found.chain_from < 2:
        raise ConfigError(
            f"{where}.chain_from: expected at least 2, as the first cycle has nothing before it, "
            f"got {found.chain_from!r}"
        )
    return found


def cells_of(grid: Mapping[str, Any]) -> dict[str, Allocation]:
    """Label → allocation, for every pair of the lists of `studies.population.grid`.

    Raises:
        ConfigError: a key is missing or unknown, or a number is too small.
    """
    where = "studies.population.grid"
    if not grid:
        return {}
    further = dict(grid)
    try:
        budget, counts, cycles = (further.pop(k) for k in ("budget", "trajectories", "cycles"))
    except KeyError as error:
        raise ConfigError(f"{where}: expected budget, trajectories and cycles") from error
    if not (isinstance(counts, list) and isinstance(cycles, list) and counts and cycles):
        raise ConfigError(f"{where}: expected lists of trajectories and of cycles")
    if not isinstance(budget, int | float) or not budget > 0:
        raise ConfigError(f"{where}.budget: expected a number above 0, got {budget!r}")
    found = {}
    for p, c in itertools.product(counts, cycles):
        section = {**further, "trajectories": p, "cycles": c, "epochs": 1.0}
        cell = allocation_of(f"{p}x{c}", section, "grid")
        epochs = budget / (cell.trajectories * cell.cycles)
        found[f"{p}x{c}x{epochs:g}"] = replace(cell, epochs=epochs)
    return found


def more_of(base: RunConfig, factor: float) -> RunConfig:
    """The config with so many times the training data: its part begins where it did.

    Raises:
        ConfigError: the task's data have no part, or it would go beyond the whole.
    """
    from steering.config import with_overrides

    part = getattr(getattr(base.task, "data", None), "part", None)
    where = "studies.population.more_data"
    if part is None:
        raise ConfigError(f"{where}: task {base.task.name} has no task.data.part to widen")
    low, high = part
    end = low + factor * (high - low)
    if end > 1 + 1e-9:
        raise ConfigError(
            f"{where}: {factor:g} times task.data.part {[low, high]} ends beyond 1; narrow the part"
        )
    samples = round(factor * base.train.samples)
    return with_overrides(base, {"task.data.part": [low, min(end, 1.0)], "train.samples": samples})


def seed_of(seed: int, trajectory: int, cycle: int = 0) -> int:
    """A run's seed, another for each run of a study: of its first weights, its order and its
    noise."""
    return (seed * 1000 + trajectory) * 1000 + cycle


def cycling(base: RunConfig, floor: float, decay: float, decay_share: float) -> RunConfig:
    """The config with a rate that falls and a weight decay that rises within a run, both in
    straight lines.

    Formula: lr = peak·(1 − (1 − floor)·x), wd = decay·(f + (1 − f)·x), x = step/steps.

    Source: arXiv 2606.03938.
    """
    from steering.config import with_overrides

    changes = {
        "optimizer.schedule": "linear",
        "optimizer.warmup": 0.0,
        "optimizer.final_lr": floor,
        "optimizer.weight_decay": {"name": "linear", "start": decay * decay_share, "end": decay},
    }
    return with_overrides(base, changes, "studies.population")


def single(base: RunConfig, epochs: float, seed: int, label: str, axes: Mapping[str, Any]) -> Ask:
    """One training of so many epochs, `train.samples` of the config being one."""
    from steering.config import with_overrides
    from steering.runs.ask import training

    samples = max(base.train.batch_size, round(epochs * base.train.samples))
    return training(with_overrides(base, {"seed": seed, "train.samples": samples}), label, axes)


def trajectory(
    base: RunConfig,
    given: Allocation,
    number: int,
    seed: int,
    noise: Sequence[float],
    chained: bool,
) -> Iterator[Ask]:
    """The cycles of one trajectory, each a run that goes on from the one before."""
    from steering.config import with_overrides
    from steering.population.noise import noise_scale
    from steering.runs.ask import REFERENCE, START, training

    samples = max(base.train.batch_size, round(given.epochs * base.train.samples))
    before: Ask | None = None
    for cycle in range(given.cycles):
        changes: dict[str, Any] = {"train.samples": samples, "seed": seed_of(seed, number, cycle)}
        parents: dict[str, Ask] = {}
        if before is not None:
            linked = chained and cycle + 1 >= given.chain_from
            if linked:
                changes |= {"method": given.chain, "reference": None}
                # The file of the snapshot: the noise is on the student alone.
                parents[REFERENCE] = before
            if not given.fresh:
                scale = noise_scale(cycle, given.cycles, *noise)
                # What one method remembers means nothing to another: the chain's begins anew.
                same = not linked or cycle >= given.chain_from
                changes["restart"] = {"optimizer": True, "method": same, "noise": scale}
                parents[START] = before
        config = with_overrides(base, changes, "studies.population")
        kind = "chain" if REFERENCE in parents else "cycle"
        name = f"{kind}-{given.trajectories}x{given.cycles}x{given.epochs:g}"
        label = f"{name}-seed{seed}-{number}-{cycle + 1}"
        axes = {"role": kind, "trajectory": number, "cycle": cycle + 1, "seed": seed}
        before = training(config, label, axes, **parents)
        yield before


def roles(members: Sequence[Ask]) -> dict[str, Any]:
    """Members as parents, in an order that their names keep."""
    return {f"member_{number:05d}": member for number, member in enumerate(members)}
