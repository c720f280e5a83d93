"""The arms of the population study: which runs each of them is a mixture of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from steering.studies.population_asks import (
    CALLS,
    RENEWED,
    Allocation,
    roles,
    seed_of,
    single,
    trajectory,
)

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask
    from steering.studies.population import PopulationOptions

ARMS = ("single", "independent", "snapshots", "chain", "average", "distilled")


class ArmAsks:
    """What one allocation with one seed asks for.

    Args:
        wider: factor → the config with so many times the data.
    """

    def __init__(
        self,
        config: RunConfig,
        options: PopulationOptions,
        allocation: Allocation,
        label: str,
        seed: int,
        wider: Mapping[float, RunConfig] | None = None,
    ) -> None:
        self.config, self.options, self.allocation = config, options, allocation
        self.label, self.seed, self.wider = label, seed, wider or {}

    def all(self) -> list[Ask]:
        """The mixtures, and what is made of them; the runs that they are built on come with them."""
        chained = self._snapshots(True)
        chain = self._mix("chain", chained, self._by_cycles())
        made: dict[str, Callable[[], list[Ask]]] = {
            "single": lambda: [self._mix("single", self._singles(), {}), *self._more_data()],
            "independent": lambda: [
                self._mix("independent", self._independents(), self._by_models())
            ],
            "snapshots": lambda: [
                self._mix("snapshots", self._snapshots(False), self._by_cycles())
            ],
            "chain": lambda: [chain],
            "average": lambda: [
                self._averaged("average", chained),
                self._averaged("average-one", chained[-self.allocation.cycles :]),
            ],
            "distilled": lambda: [self._mix("distilled", [self._distilled(chained, chain)], {})],
        }
        wanted = self.options.arms
        if not self.options.distil_epochs:
            wanted = [arm for arm in wanted if arm != "distilled"]
        return [ask for arm in wanted for ask in made[arm]()]

    def _axes(self, arm: str, epochs: float) -> dict[str, Any]:
        return {
            "arm": arm,
            "allocation": self.label,
            "seed": self.seed,
            "epochs": epochs,
            "budget": self.allocation.budget,
            "trajectories": self.allocation.trajectories,
            "cycles": self.allocation.cycles,
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

    def _more_data(self) -> list[Ask]:
        """Single models with more data, which are no part of the budget."""
        return [
            self._mix(f"data-{factor:g}", self._wider(factor, config), {}, config)
            for factor, config in self.wider.items()
        ]

    def _wider(self, factor: float, config: RunConfig) -> list[Ask]:
        seed = seed_of(self.seed, 0)
        return [
            single(
                config,
                epochs,
                seed,
                f"single-{epochs:g}-of-{factor:g}-seed{self.seed}",
                {"role": "single", "epochs": epochs * factor, "seed": self.seed, "data": factor},
            )
            for epochs in sorted(set(self.options.singles))
        ]

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

    def _mix(
        self,
        arm: str,
        members: Sequence[Ask],
        groups: Mapping[str, list[int]],
        config: RunConfig | None = None,
    ) -> Ask:
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
        if arm == "single" or config is not None:
            axes["lengths"] = [ask.axes["epochs"] for ask in members]
        # An objective from a file counts by its text: once changed, the prior is fitted again.
        files = [given.objective] if ".py:" in given.objective else []
        label = self._name(arm)
        # With more data another part of them may be the reserved one: it is that of the members.
        base = self.config if config is None else config
        return calling(base, f"{CALLS}:mix", arguments, label, axes, files, **roles(members))

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
