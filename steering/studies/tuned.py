"""The study of fairly tuned methods: each gets the same number of tries, and none is reported on what
it was tuned on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.halving import Round
from steering.analysis.page import Report
from steering.analysis.points import share_of
from steering.analysis.trials import REPORT, TUNING, Trials, require_metric
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.contestants import references_of, with_reference_of
from steering.studies.distinct import require_distinct
from steering.studies.search_space import Settings, settings
from steering.studies.tuned_forest import forest, gaps_of
from steering.studies.tuned_page import LOSSES, WHOLE, Found, Place, rows, tables
from steering.studies.tuned_ranges import origin, with_documented
from steering.studies.tuned_shares import share_figure, share_tables

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask


@dataclass(frozen=True)
class TunedOptions:
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> a `method:` section; the first is the baseline."""
    ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> dotted key -> a list to choose from, or {low:, high:, log: true}. A label that is not
    here is searched where its method says (`steering methods NAME`); {}: by `common` alone."""
    common: dict[str, Any] = field(default_factory=dict)
    """The same, searched for every method: a learning rate, for one."""
    families: dict[str, list[str]] = field(default_factory=dict)
    """Label -> methods: all are also compared with the member that is best on the tuning half, such
    as `unguided: [erm, dro]`. Empty: the first method alone."""
    losers: bool = True
    """Report also those members of a family that are not its best on the tuning half; false saves
    their runs."""
    tries: int = 8
    """Settings of every method: its section as it stands, and drawn ones."""
    seeds: int = 2
    """Seeds of every try, from seed 0 on."""
    report_seeds: int = 5
    """Further seeds of each method's best try, which are reported."""
    metric: str = "test/accuracy"
    """What is tuned by and reported: a mean over evaluated examples."""
    also: list[str] = field(default_factory=list)
    """Further metrics that are reported, and chosen by none."""
    share: float = 1.0
    """Share of the data that the config itself trains on: a label, where `shares` has others."""
    shares: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Other shares, such as "0.1" -> changes of the config: the settings that won are reported on
    each of them."""
    share_methods: list[str] = field(default_factory=list)
    """Which methods on the other shares; empty: all."""
    part: str | None = None
    """A held-out part of the task, such as "test", whose losses say what the theory expects on each
    share; null: none."""
    split: int = 0
    """Seed of the hash that halves the evaluated examples into tuning and report."""
    draw: int = 0
    """Seed of the random search."""
    documented: list[str] = field(default_factory=list)
    """Filled in: labels whose `ranges` are those that their methods document."""

    def for_config(self, base: RunConfig) -> TunedOptions:
        return with_documented(self, base)


@study("tuned", TunedOptions)
class Tuned:
    """Methods with as many tries each, tuned on one half and reported on another with other seeds."""

    def __init__(self, options: TunedOptions) -> None:
        _require(options)
        self.options = options
        self.own = f"{options.share:g}"
        self.settings: dict[Place, Settings] = {
            (label, number, self.own): found
            for label in options.methods
            for number, found in enumerate(
                settings(
                    {**options.common, **options.ranges.get(label, {})},
                    options.tries,
                    options.draw,
                    f"studies.tuned.ranges.{label}",
                )
            )
        }

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        trials, options = self._trials(done), self.options
        if not trials.over:
            configs = {one: self._config(base, one) for one in self.settings}
            asks = [
                ask
                for one, config in configs.items()
                for ask in _asks(config, one, self.own, TUNING, range(options.seeds))
            ]
            require_distinct(
                asks,
                "studies.tuned",
                "leave one out, or where a drawn value is the one that stands anyway, change "
                "studies.tuned.draw or the range",
            )
            # Before the others: a reference that is also one of the runs has its place among these.
            return [*_references([*configs.values()]), *asks]
        found, reported = self._found(trials, done), range(options.seeds, self._end())
        asks, probes = [], {}
        for share in [self.own, *options.shares]:
            for label in self._methods(share, found):
                one = (label, found.best[label][1], share)
                config = self._config(base, one)
                mine = _asks(config, one, self.own, REPORT, reported)
                asks += mine
                if options.part is not None and label == found.opponent:
                    # Once they are done: the first one that has not diverged.
                    runs = found.runs(label, share)
                    whole = [seed for seed, run in runs.items() if not run.diverged]
                    if len(runs) == len(mine) and whole:
                        probes[share] = config, mine[reported.index(min(whole))]
        # By seed: a study that is stopped early has as many runs of each method.
        return [*sorted(asks, key=lambda ask: ask.axes["seed"]), *self._outputs(probes)]

    def _end(self) -> int:
        return self.options.seeds + self.options.report_seeds

    def _methods(self, share: str, found: Found) -> Sequence[str]:
        """Which methods are reported on a share of the data."""
        options = self.options
        beaten = {label for labels in options.families.values() for label in labels}
        beaten -= {*found.opponents.values(), *(options.methods if options.losers else ())}
        chosen = (share != self.own and options.share_methods) or [*options.methods]
        return [label for label in chosen if label not in beaten and label in found.best]

    def _config(self, base: RunConfig, one: Place) -> RunConfig:
        from steering.config import method_section, with_method, with_overrides

        label, number, share = one
        section = self.options.methods[label]
        config = replace(base, compare=type(base.compare)(), studies={})
        if share != self.own:
            config = with_overrides(config, self.options.shares[share], "studies.tuned.shares")
        config = with_method(config, method_section(section), f"studies.tuned.methods.{label}")
        named = {"reference": section["reference"]} if section.get("reference") else {}
        changes = named | self.settings[label, number, self.own]
        if changes:
            tried = with_overrides(config, changes, f"studies.tuned.ranges.{label}")
            config = with_reference_of(tried, config, changes)  # one for all tries
        return config

    def _outputs(self, probes: Mapping[str, tuple[RunConfig, Ask]]) -> list[Ask]:
        """Held-out losses of an unguided run on each share, and of the reference there."""
        from steering.runs.ask import model_outputs
        from steering.studies.audit import reference_outputs

        part = self.options.part
        found: list[Ask] = []
        guides: dict[str, Ask] = {}
        shares: dict[str, list[str]] = {}
        for share, (config, run) in probes.items():
            assert part is not None
            axes = {"role": LOSSES, "of": "target", "data": [share]}
            found.append(
                model_outputs(config, "losses", part, f"{run.label}-on-{part}", axes, model=run)
            )
            if config.reference is not None:
                guide = reference_outputs(config, part, {}, f"share{share}-")[-1]
                guides[guide.key] = guide
                shares.setdefault(guide.key, []).append(share)
        for key, guide in guides.items():
            axes = {"role": LOSSES, "of": "reference", "data": shares[key]}
            found.append(replace(guide, axes=axes))
        return found

    def _trials(self, done: Sequence[RunRecord]) -> Trials[Place]:
        given = self.options
        for record in done:
            for name in given.also if "stage" in record.axes and not record.diverged else ():
                require_metric(record, name, "studies.tuned.also")
        return Trials(
            done,
            partial(_place_of, self.own),
            [*self.settings],
            [Round(WHOLE, given.seeds)],
            1.0,
            "studies.tuned",
            given.metric,
            given.split,
        )

    def _found(self, trials: Trials[Place], done: Sequence[RunRecord]) -> Found:
        """What won on the tuning half, by method and by family."""
        best = {
            label: one
            for label in self.options.methods
            if (one := trials.race.best([try_ for try_ in self.settings if try_[0] == label]))
        }
        families = self.options.families or {"": [next(iter(self.options.methods))]}
        opponents = {
            family: one[0]
            for family, labels in families.items()
            if (one := trials.race.best([best[label] for label in labels if label in best]))
        }
        return Found(self.options, trials, self.settings, best, opponents, done)

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        found = self._found(self._trials(done), done)
        s = "" if self.options.seeds == 1 else "s"
        tries = "try" if self.options.tries == 1 else "tries"
        intro = (
            f"Every method had {self.options.tries} {tries} with {self.options.seeds} seed{s} each: its "
            f"section as it stands, and settings drawn from its ranges. {origin(self.options)} The best by "
            f"{self.options.metric} on one half of the evaluated examples (hash of seed "
            f"{self.options.split}) is reported on the other half with other seeds."
        )
        by_share = share_tables(found)
        figures = {"": partial(share_figure, found)} if by_share else {}
        if gaps := gaps_of(found):
            figures["differences"] = partial(forest, found, gaps)
        return Report(
            "tuned",
            f"{title}: tuned methods",
            intro,
            [*tables(found), *by_share],
            rows(found),
            figures,
        )


def _require(options: TunedOptions) -> None:
    """ConfigError, which names the key, for what cannot be done."""
    where = "studies.tuned"
    if not options.methods:
        raise ConfigError(f"{where}.methods: empty; name at least one")
    lows = {"tries": 1, "seeds": 1, "report_seeds": 1, "split": 0, "draw": 0}
    for key, low in lows.items():
        if getattr(options, key) < low:
            raise ConfigError(
                f"{where}.{key}: expected at least {low}, got {getattr(options, key)}"
            )
    named = {
        **{f"ranges.{label}": [label] for label in options.ranges},
        **{f"families.{family}": labels for family, labels in options.families.items()},
        "share_methods": options.share_methods,
    }
    for key, labels in named.items():
        if any(label not in options.methods for label in labels):
            raise ConfigError(f"{where}.{key}: no such label in methods")
    if empty := [family for family, labels in options.families.items() if not labels]:
        raise ConfigError(f"{where}.families.{empty[0]}: empty; name at least one method")
    for label in [f"{options.share:g}", *options.shares]:
        share_of(label, f"{where}.shares")
    if f"{options.share:g}" in options.shares:
        raise ConfigError(f"{where}.shares: {options.share:g} is the config's own (share)")
    if options.part is not None and not options.shares:
        raise ConfigError(f"{where}.part: what the theory expects is drawn over shares; name some")


def _asks(config: RunConfig, one: Place, own: str, stage: str, seeds: range) -> list[Ask]:
    """A run for each seed; `own` is the share of the data that goes without saying."""
    from steering.runs.ask import training

    label, number, share = one
    on = "" if share == own else f"-share{share}"
    axes = {"method": label, "try": number, "stage": stage, "share": WHOLE, "data": share}
    return [
        replace(
            training(
                replace(config, seed=seed),
                f"{label}-try{number}{on}-seed{seed}",
                {**axes, "seed": seed},
            ),
            may_diverge=True,
        )
        for seed in seeds
    ]


def _references(configs: Sequence[RunConfig]) -> list[Ask]:
    """The references as contestants; their cost counts."""
    from steering.runs.ask import needs_of

    steered = [config for config in configs if needs_of(config).reference]
    return references_of(steered, "reference", {"role": "reference"})


def _place_of(own: str, axes: Mapping[str, Any]) -> Place:
    return axes["method"], axes["try"], axes.get("data", own)
