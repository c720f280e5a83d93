"""The study of the steering plane: where between sharp adversaries and trust in the reference a
target learns best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.halving import Round
from steering.analysis.page import Report
from steering.analysis.plane import ORIGIN, Cell, cell_of, choices, group
from steering.analysis.trials import REPORT, TUNING, Trials
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.distinct import require_distinct
from steering.studies.plane_figure import figure
from steering.studies.plane_page import intro, rows, tables

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

_METHODS = {"inner": "drrho", "outer": "nested"}


@dataclass(frozen=True)
class PlaneOptions:
    adversary: str = "inner"
    """Whose plane: "inner", the adversary of `drrho` (over examples, tokens or sequences; of pairs
    over an anchor's negatives), or "outer", that of `nested` over pairs."""
    sharpness: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 2.0])
    """x = 1/τ of the grid, ≥ 0."""
    trust: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 1.0, 2.0])
    """y = κ of the grid, ≥ 0."""
    method: dict[str, Any] = field(default_factory=dict)
    """Further keys of the method's section, for every cell."""
    unguided: dict[str, Any] = field(default_factory=dict)
    """The `method:` section that stands at (0, 0); empty: `erm`, or for "outer" the inner risk
    alone."""
    shares: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])
    """Length of a run in each round, as a share of `train.samples`."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 4])
    """How many seeds each round has, from seed 0 on."""
    survivors: float = 0.5
    """Share of a round's cells that the next round has: of the diagonal, of each axis, of the rest."""
    report_seeds: int = 5
    """Further seeds for the runs that are reported."""
    metric: str = "test/accuracy"
    """What is chosen by and reported: a mean over evaluated examples."""
    split: int = 0
    """Seed of the hash that halves the evaluated examples into tuning and report."""
    published: float | None = 1.0
    """1/τ of DRRho as published, κ = 1/τ, which is reported in any case; null: it is not."""


@study("plane", PlaneOptions)
class Plane:
    """A map of the steering plane by successive halving, tuned on one half and reported on another."""

    def __init__(self, options: PlaneOptions) -> None:
        for key, ok, expected in _rules(options):
            if not ok:
                raise ConfigError(
                    f"studies.plane.{key}: expected {expected}, got {getattr(options, key)!r}"
                )
        self.options = options
        self.rounds = [Round(*one) for one in zip(options.shares, options.seeds, strict=True)]
        self.cells = [Cell(float(x), float(y)) for x in options.sharpness for y in options.trust]

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        if base.reference is None:
            raise ConfigError("reference: the study needs one; add a reference: section")
        lengths = self._lengths(base)
        trials = self._trials(done)
        race, options = trials.race, self.options
        asks: list[Ask] = []
        if not trials.over:
            one = self.rounds[len(race.finished)]
            for cell in dict.fromkeys([ORIGIN, *race.left]):  # what all gains are measured against
                asks += self._asks(base, cell, TUNING, one.share, lengths, range(one.seeds))
            require_distinct(asks, "studies.plane")
            return asks
        # Neither the seeds nor the examples of the report have had a say in the choice.
        first, last = max(options.seeds), self.rounds[-1].share
        fresh = range(first, first + options.report_seeds)
        for cell in dict.fromkeys(choices(trials, options.published).values()):
            asks += self._asks(base, cell, REPORT, last, lengths, fresh)
        return asks

    def _lengths(self, base: RunConfig) -> dict[float, int]:
        """Share -> samples of a run."""
        train = base.train
        found = {
            share: max(train.batch_size, round(share * train.samples))
            for share in self.options.shares
        }
        if len(set(found.values())) < len(found):
            raise ConfigError(
                f"studies.plane.shares: {self.options.shares} of train.samples, {train.samples:,}, "
                "make runs of one length; lengthen train.samples"
            )
        return found

    def _trials(self, done: Sequence[RunRecord]) -> Trials[Cell]:
        given = self.options
        return Trials(
            done,
            cell_of,
            self.cells,
            self.rounds,
            given.survivors,
            "studies.plane",
            given.metric,
            given.split,
            group,
        )

    def _asks(
        self,
        base: RunConfig,
        cell: Cell,
        stage: str,
        share: float,
        lengths: Mapping[float, int],
        seeds: range,
    ) -> list[Ask]:
        """A run of a cell for each seed."""
        from steering.config import with_method
        from steering.runs.ask import training

        config = replace(base, compare=type(base.compare)(), studies={})
        config = with_method(config, self.section(cell), "studies.plane.method")
        train = replace(config.train, samples=lengths[share])
        axes = {"x": cell.x, "y": cell.y, "stage": stage, "share": share}
        return [
            replace(
                training(
                    replace(config, train=train, seed=seed),
                    f"{cell.name}-{lengths[share]}-seed{seed}",
                    {**axes, "seed": seed},
                ),
                may_diverge=True,
            )
            for seed in seeds
        ]

    def section(self, cell: Cell) -> dict[str, Any]:
        """The `method:` section of a cell."""
        given = self.options
        if cell == ORIGIN and given.unguided:
            return given.unguided
        if given.adversary == "outer":
            outer = {**given.method.get("outer", {}), **_adversary(cell)}
            return {"name": _METHODS["outer"], **given.method, "outer": outer}
        if cell == ORIGIN:
            return {"name": "erm"}
        return {"name": _METHODS["inner"], **given.method, **_adversary(cell)}

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        trials = self._trials(done)
        chosen = choices(trials, self.options.published)
        plain = "ERM" if self.section(ORIGIN)["name"] == "erm" else "unguided"
        return Report(
            "plane",
            f"{title}: the steering plane",
            intro(trials),
            tables(trials, chosen),
            rows(trials, chosen),
            {"": partial(figure, trials, self.options.published, plain)},
        )


def _adversary(cell: Cell) -> dict[str, Any]:
    """log p = x·ℓ − y·ℓ_ref as keys of an adversary.

    With x > 0 the trust is a strength α = κ·τ, so that the diagonal is DRRho as published, and pairs
    go in blocks. With x = 0 there is no excess loss: the reference is the prior.
    """
    if cell.x == 0:
        return {"tau": math.inf, "strength": 0.0, "prior": cell.y}
    return {"tau": 1 / cell.x, "strength": cell.y / cell.x, "prior": 0.0}


def _rules(options: PlaneOptions) -> list[tuple[str, bool, str]]:
    """Key, whether it is well, and what was expected."""
    shares, seeds = options.shares, options.seeds
    return [
        ("adversary", options.adversary in _METHODS, "inner or outer"),
        ("sharpness", _grid(options.sharpness), "different numbers ≥ 0, at least one"),
        ("trust", _grid(options.trust), "different numbers ≥ 0, at least one"),
        (
            "shares",
            bool(shares) and shares == sorted(shares) and 0 < shares[0] <= shares[-1] <= 1,
            "rising numbers in (0, 1], one for each round",
        ),
        (
            "seeds",
            0 < len(seeds) == len(shares) and seeds == sorted(seeds) and seeds[0] >= 1,
            f"{len(shares)} rising numbers ≥ 1, one for each of the shares",
        ),
        ("survivors", 0 < options.survivors <= 1, "a number in (0, 1]"),
        ("report_seeds", options.report_seeds >= 1, "at least 1"),
        ("split", options.split >= 0, "a number ≥ 0"),
        ("published", options.published is None or options.published > 0, "above 0, or null"),
    ]


def _grid(values: Sequence[float]) -> bool:
    good = all(0 <= value < math.inf for value in values)
    return bool(values) and good and len(set(values)) == len(values)
