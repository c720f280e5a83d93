"""A population: is a budget of epochs better spent on one model, on independent ones, or on cycles
of a few whose snapshots are mixed?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.page import Report
from steering.analysis.population import Arms
from steering.analysis.population_page import curves_figure, tables
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.population_asks import (
    CALLS,
    RENEWED,
    Allocation,
    allocation_of,
    cycling,
    roles,
    seed_of,
    single,
    trajectory,
)

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask


@dataclass(frozen=True)
class PopulationOptions:
    allocations: dict[str, dict[str, Any]] = field(default_factory=lambda: {"population": {}})
    """Label → how epochs are spent: trajectories, cycles, epochs of a cycle, chain, chain_from,
    fresh; or a `preset` with keys over it. `train.samples` of the config is one epoch."""
    independents: int = 6
    """Independent models that share the same epochs evenly."""
    singles: list[float] = field(default_factory=lambda: [1.0, 2.0, 4.0, 8.0])
    """Epochs of single models, of which the best is one that was stopped early; one of the whole
    budget is added."""
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
    seeds: int = 3
    """Seeds of everything."""


@study("population", PopulationOptions)
class Population:
    """Cycles of a few models, mixed, against one model and against independent ones."""

    def __init__(self, options: PopulationOptions) -> None:
        self.options = options
        self.allocations = {
            label: allocation_of(label, section) for label, section in options.allocations.items()
        }
        _check(options)

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        from steering.runs.ask import with_parents_first

        if done:
            return []
        given = self.options
        config = cycling(base, given.floor, given.weight_decay, given.decay_share)
        mixed = [
            ask
            for seed in range(given.seeds)
            for label, allocation in self.allocations.items()
            for ask in _Asks(config, given, allocation, label, seed).all()
        ]
        # The members, too: the report tells what they cost.
        return with_parents_first(mixed)

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        arms = Arms(done)
        intro = (
            "Negative log likelihood on the test part, nats per item, as a mean over the seeds; "
            "less is better. In brackets are 95 % intervals of a bootstrap over seeds and test "
            "examples together (for text an example is a block). A learned mixture has weights that "
            "were fitted on the reserved part, which no model has trained on; the early-stopped "
            "single model was chosen on it, too. Forwards is what one prediction costs. Epochs "
            "counts all training that an arm is built on."
        )
        figures = {"": partial(curves_figure, arms)}
        return Report(
            "population", f"{title}: population", intro, tables(arms), arms.rows(), figures
        )


class _Asks:
    """What one allocation with one seed asks for."""

    def __init__(
        self,
        config: RunConfig,
        options: PopulationOptions,
        allocation: Allocation,
        label: str,
        seed: int,
    ) -> None:
        self.config, self.options, self.allocation = config, options, allocation
        self.label, self.seed = label, seed

    def all(self) -> list[Ask]:
        """The mixtures, and what is made of them; the runs that they are built on come with them."""
        snapshots, chained = self._snapshots(False), self._snapshots(True)
        chain = self._mix("chain", chained, self._by_cycles())
        found = [
            self._mix("single", self._singles(), {}),
            self._mix("independent", self._independents(), self._by_models()),
            self._mix("snapshots", snapshots, self._by_cycles()),
            chain,
            self._averaged("average", chained),
            self._averaged("average-one", chained[-self.allocation.cycles :]),
        ]
        if self.options.distil_epochs:
            distilled = self._distilled(chained, chain)
            found.append(self._mix("distilled", [distilled], {}))
        return found

    def _axes(self, arm: str, epochs: float) -> dict[str, Any]:
        return {
            "arm": arm,
            "allocation": self.label,
            "seed": self.seed,
            "epochs": epochs,
            "budget": self.allocation.budget,
        }

    def _name(self, what: str) -> str:
        return f"{self.label}-{what}-seed{self.seed}"

    def _single(self, epochs: float, number: int) -> Ask:
        axes = {"role": "single", "epochs": epochs, "seed": self.seed}
        name = f"single-{epochs:g}-seed{self.seed}-{number}"
        return single(self.config, epochs, seed_of(self.seed, number), name, axes)

    def _singles(self) -> list[Ask]:
        budget = self.allocation.budget
        shorter = sorted({epochs for epochs in self.options.singles if epochs < budget})
        return [self._single(epochs, 0) for epochs in [*shorter, budget]]

    def _independents(self) -> list[Ask]:
        count = self.options.independents
        return [self._single(self.allocation.budget / count, number) for number in range(count)]

    def _snapshots(self, chained: bool) -> list[Ask]:
        given, noise = self.allocation, self.options.noise
        return [
            ask
            for number in range(given.trajectories)
            for ask in trajectory(self.config, given, number, self.seed, noise, chained)
        ]

    def _by_cycles(self) -> dict[str, list[int]]:
        """Epochs so far → the snapshots that there are."""
        given = self.allocation
        return {
            f"{given.trajectories * given.epochs * count:g}": [
                number * given.cycles + cycle
                for number in range(given.trajectories)
                for cycle in range(count)
            ]
            for count in range(1, given.cycles)
        }

    def _by_models(self) -> dict[str, list[int]]:
        count = self.options.independents
        each = self.allocation.budget / count
        return {f"{each * some:g}": [*range(some)] for some in range(1, count)}

    def _mix(self, arm: str, members: Sequence[Ask], groups: Mapping[str, list[int]]) -> Ask:
        from steering.runs.call import calling

        given = self.options
        arguments = {
            "fit": given.fit,
            "test": given.test,
            "tops": sorted({*given.tops, given.distil_members}),
            "arm": f"{self.label}, {arm}",  # two allocations may share the very same models
            "groups": dict(groups),
            "objective": given.objective,
        }
        extra = given.distil_epochs if arm == "distilled" else 0.0
        axes = self._axes(arm, self.allocation.budget + extra)
        if arm == "single":
            axes["lengths"] = [ask.axes["epochs"] for ask in members]
        # An objective from a file counts by its text: once changed, the prior is fitted again.
        files = [given.objective] if ".py:" in given.objective else []
        label = self._name(arm)
        return calling(self.config, f"{CALLS}:mix", arguments, label, axes, files, **roles(members))

    def _averaged(self, arm: str, members: Sequence[Ask]) -> Ask:
        from steering.runs.call import calling

        arguments = {"batch_size": self.config.train.batch_size, "batches": RENEWED}
        made = calling(
            self.config,
            f"{CALLS}:average",
            arguments,
            self._name(f"{arm}-weights"),
            {"role": "average", "seed": self.seed},
            **roles(members),
        )
        return self._mix(arm, [made], {})

    def _distilled(self, members: Sequence[Ask], chain: Ask) -> Ask:
        from steering.config import with_overrides
        from steering.runs.ask import training
        from steering.runs.call import calling

        given = self.options
        changes = {
            "method": given.distil,
            "reference": None,
            "seed": seed_of(self.seed, self.allocation.trajectories),
            "train.samples": round(given.distil_epochs * self.config.train.samples),
        }
        config = with_overrides(self.config, changes, "studies.population.distil")
        # The one member that stands in for the teacher makes the key complete: method, rates, seed.
        inner = training(config, "inner", reference=members[0])
        smaller = given.distil_members < len(members)
        plan = f"learned@{given.distil_members}" if smaller else "learned"
        return calling(
            config,
            f"{CALLS}:distil",
            {"training": inner.key, "plan": plan},
            self._name("distilled-weights"),
            {"role": "distilled", "seed": self.seed},
            mixture=chain,
            **roles(members),
        )


def _check(options: PopulationOptions) -> None:
    """ConfigError for what no run would make sense with."""
    at_least = {"independents": 1, "seeds": 1, "distil_members": 1, "distil_epochs": 0}
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
    if not options.allocations:
        raise ConfigError("studies.population.allocations: name at least one")
    if any(top < 1 for top in options.tops):
        raise ConfigError(f"studies.population.tops: expected numbers ≥ 1, got {options.tops}")
