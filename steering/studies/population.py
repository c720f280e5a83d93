"""A population: is a budget of epochs better spent on one model, on independent ones, or on cycles
of a few whose snapshots are mixed?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.page import Report
from steering.analysis.population import Arms
from steering.analysis.population_page import curves_figure, tables
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.population_arms import ARMS, ArmAsks
from steering.studies.population_asks import (
    allocation_of,
    cells_of,
    cycling,
    more_of,
)

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask


@dataclass(frozen=True)
class PopulationOptions:
    allocations: dict[str, dict[str, Any]] = field(default_factory=lambda: {"population": {}})
    """Label → how epochs are spent: trajectories, cycles, epochs of a cycle, chain, chain_from,
    fresh; or a `preset` with keys over it. `train.samples` of the config is one epoch."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Further allocations, all of one budget: `budget` in epochs, and lists of `trajectories` and
    `cycles`, of which every pair is one; other keys are those of an allocation, the same for all."""
    independents: int = 6
    """Independent models that share the same epochs evenly."""
    arms: list[str] = field(default_factory=lambda: [*ARMS])
    """What is compared; "average" and "distilled" are made of the chain's snapshots. Fewer arms make
    a grid of allocations cheap."""
    singles: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    """Epochs of single models, of which the best is one that was stopped early; one of the whole
    budget is added."""
    more_data: list[float] = field(default_factory=list)
    """Single models are trained on so many times the data, too (a wider `task.data.part`): what the
    population is worth in data."""
    floor: float = 0.08
    """Where a cycle's learning rate ends, as a share of its peak."""
    weight_decay: float = 0.1
    """Weight decay at a cycle's end."""
    decay_share: float = 0.7
    """Share of it at a cycle's start; 1: it stays the same."""
    noise: list[float] = field(default_factory=lambda: [0.25, 0.05])
    """Noise on the weights at the first and the last change of cycles, as a share of each tensor's
    deviation; a cosine between."""
    fit: str = "reserved"
    """Held-out part on which weights are fitted and the single model is chosen."""
    test: str = ""
    """Held-out part on which all is measured; empty: the first other one."""
    tops: list[int] = field(default_factory=lambda: [2, 4, 8])
    """How many of the largest weights are kept, in smaller mixtures."""
    objective: str = "steering.population.prior:nll"
    """What the weights make small: a function of the mixture's probabilities of the true labels, as
    "package.module:function" or "file.py:function"."""
    distil_epochs: float = 4.0
    """Epochs of the single model that learns from the mixture; 0: none."""
    distil_members: int = 4
    """Members of the mixture that it learns from: those of the largest weights."""
    distil: dict[str, Any] = field(
        default_factory=lambda: {"name": "distillation", "weight": 0.9, "temperature": 1.0}
    )
    """A `method:` section by which it learns."""
    block: int = 1
    """Test examples that the bootstrap draws together: neighbours are alike where they are pieces of
    one text; as many as make some 500 bytes."""
    seeds: int = 3
    """Seeds of everything."""


@study("population", PopulationOptions)
class Population:
    """Cycles of a few models, mixed, against one model and against independent ones."""

    def __init__(self, options: PopulationOptions) -> None:
        self.options = options
        self.allocations = {
            label: allocation_of(label, section) for label, section in options.allocations.items()
        } | cells_of(options.grid)
        _check(options)

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        from steering.runs.ask import with_parents_first

        if done:
            return []
        given = self.options
        config = cycling(base, given.floor, given.weight_decay, given.decay_share)
        wider = {factor: more_of(config, factor) for factor in given.more_data}
        mixed = [
            ask
            for seed in range(given.seeds)
            for label, allocation in self.allocations.items()
            for ask in ArmAsks(config, given, allocation, label, seed, wider).all()
        ]
        # The members, too: the report tells what they cost.
        return with_parents_first(mixed)

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        arms = Arms(done, self.options.block)
        over = (
            "in which the seeds move by Student's t and test examples are drawn again"
            if self.options.seeds > 1
            else "of a bootstrap over test examples alone: another seed may differ by more"
        )
        block = self.options.block
        together = f", of which {block} neighbours are drawn together" if block > 1 else ""
        intro = (
            "Negative log likelihood on the test part, nats per item, as a mean over the seeds; "
            f"less is better. In brackets are 95 % intervals {over} (for text an example is a block"
            f"{together}). A learned mixture has weights that were fitted on the reserved part, "
            "which no model has trained on; the early-stopped single model was chosen on it, too. "
            "Forwards is what one prediction costs. Epochs counts all training that an arm is built "
            "on."
        )
        figures = {"": partial(curves_figure, arms)}
        return Report(
            "population", f"{title}: population", intro, tables(arms), arms.rows(), figures
        )


def _check(options: PopulationOptions) -> None:
    """ConfigError for what no run would make sense with."""
    at_least = {
        "independents": 1,
        "seeds": 1,
        "block": 1,
        "distil_members": 1,
        "distil_epochs": 0,
    }
    for key, low in at_least.items():
        if getattr(options, key) < low:
            value = getattr(options, key)
            raise ConfigError(f"studies.population.{key}: expected at least {low}, got {value}")
    for key in ("floor", "decay_share"):
        if not 0 <= getattr(options, key) <= 1:
            value = getattr(options, key)
            raise ConfigError(f"studies.population.{key}: expected a number in [0, 1], got {value}")
    if len(options.noise) != 2 or min(options.noise) < 0:
        raise ConfigError(
            f"studies.population.noise: expected two numbers ≥ 0, first and last, got {options.noise}"
        )
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        raise ConfigError(
            f"studies.population.arms: no arm {unknown[0]!r}; known: {', '.join(ARMS)}"
        )
    if not (options.allocations or options.grid):
        raise ConfigError("studies.population.allocations: name at least one")
    if any(not factor > 1 for factor in options.more_data):
        raise ConfigError(
            f"studies.population.more_data: expected numbers above 1, got {options.more_data}"
        )
    if any(top < 1 for top in options.tops):
        raise ConfigError(f"studies.population.tops: expected numbers ≥ 1, got {options.tops}")
