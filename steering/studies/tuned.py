"""The study of fairly tuned methods: each gets the same number of tries, and none is reported on what
it was tuned on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from steering.analysis.halving import Round
from steering.analysis.intervals import DRAWS, Interval
from steering.analysis.page import Report, Table
from steering.analysis.trials import REPORT, TUNING, Trials
from steering.console import in_time
from steering.errors import ConfigError
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.distinct import require_distinct
from steering.studies.search_space import Settings, settings

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

Try = tuple[str, int]  # method, number of its try
_WHOLE = 1.0  # every run has the full length


@dataclass(frozen=True)
class TunedOptions:
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> a `method:` section; the first is the baseline."""
    ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label -> dotted key -> a list to choose from, or {low:, high:, log: true}."""
    common: dict[str, Any] = field(default_factory=dict)
    """The same, searched for every method: a learning rate, for one."""
    tries: int = 8
    """Settings of every method: its section as it stands, and drawn ones."""
    seeds: int = 2
    """Seeds of every try, from seed 0 on."""
    report_seeds: int = 5
    """Further seeds of each method's best try, which are reported."""
    metric: str = "test/accuracy"
    """What is tuned by and reported: a mean over evaluated examples."""
    split: int = 0
    """Seed of the hash that halves the evaluated examples into tuning and report."""
    draw: int = 0
    """Seed of the random search."""


@study("tuned", TunedOptions)
class Tuned:
    """Methods with as many tries each, tuned on one half and reported on another with other seeds."""

    def __init__(self, options: TunedOptions) -> None:
        where = "studies.tuned"
        if not options.methods:
            raise ConfigError(f"{where}.methods: empty; name at least one")
        for key, low in (
            ("tries", 1),
            ("seeds", 1),
            ("report_seeds", 1),
            ("split", 0),
            ("draw", 0),
        ):
            if getattr(options, key) < low:
                raise ConfigError(
                    f"{where}.{key}: expected at least {low}, got {getattr(options, key)}"
                )
        for label in options.ranges:
            if label not in options.methods:
                raise ConfigError(f"{where}.ranges.{label}: no such label in methods")
        self.options = options
        self.settings: dict[Try, Settings] = {
            (label, number): found
            for label in options.methods
            for number, found in enumerate(
                settings(
                    {**options.common, **options.ranges.get(label, {})},
                    options.tries,
                    options.draw,
                    f"{where}.ranges.{label}",
                )
            )
        }

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        trials, options = self._trials(done), self.options
        if not trials.over:
            asks = [
                ask
                for one in self.settings
                for ask in self._asks(base, one, TUNING, range(options.seeds))
            ]
            require_distinct(asks, "studies.tuned")
            return asks
        fresh = range(options.seeds, options.seeds + options.report_seeds)
        best = self._best(trials).values()
        return [ask for one in best for ask in self._asks(base, one, REPORT, fresh)]

    def _asks(self, base: RunConfig, one: Try, stage: str, seeds: range) -> list[Ask]:
        """A run of a try for each seed."""
        from steering.config import method_section, with_method, with_overrides
        from steering.runs.ask import training

        label, number = one
        section = self.options.methods[label]
        config = replace(base, compare=type(base.compare)(), studies={})
        config = with_method(config, method_section(section), f"studies.tuned.methods.{label}")
        named = {"reference": section["reference"]} if section.get("reference") else {}
        changes = named | self.settings[one]
        if changes:
            config = with_overrides(config, changes, f"studies.tuned.ranges.{label}")
        axes = {"method": label, "try": number, "stage": stage, "share": _WHOLE}
        return [
            training(
                replace(config, seed=seed),
                f"{label}-try{number}-seed{seed}",
                {**axes, "seed": seed},
            )
            for seed in seeds
        ]

    def _trials(self, done: Sequence[RunRecord]) -> Trials[Try]:
        given = self.options
        return Trials(
            done,
            _try_of,
            [*self.settings],
            [Round(_WHOLE, given.seeds)],
            1.0,
            "studies.tuned",
            given.metric,
            given.split,
        )

    def _best(self, trials: Trials[Try]) -> dict[str, Try]:
        """Method -> its best try on the tuning half."""
        found: dict[str, Try] = {}
        for label in self.options.methods:
            best = trials.race.best([one for one in self.settings if one[0] == label])
            found |= {} if best is None else {label: best}
        return found

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        trials = self._trials(done)
        best = self._best(trials)
        intro = (
            f"Every method had {self.options.tries} tries with {self.options.seeds} seeds each: its "
            "section as it stands, and settings drawn from its ranges. The best by "
            f"{self.options.metric} on one half of the evaluated examples (hash of seed "
            f"{self.options.split}) is reported on the other half with other seeds."
        )
        return Report(
            "tuned",
            f"{title}: tuned methods",
            intro,
            [
                self._result_table(trials, best),
                self._choice_table(trials, best),
                self._cost_table(trials),
            ],
            self._rows(trials, best),
        )

    def _result_table(self, trials: Trials[Try], best: Mapping[str, Try]) -> Table:
        first = next(iter(self.options.methods))
        lines = []
        for label, one in best.items():
            gain = trials.difference(REPORT, one, best[first], _WHOLE)
            shown = "–" if label == first else trials.signed(gain)
            lines.append([label, trials.shown(trials.mean(REPORT, one, _WHOLE)), shown])
        note = (
            f"{self.options.report_seeds} seeds and a half of the examples that had no part in the "
            f"tuning. In brackets 95 % of a bootstrap over both, paired ({DRAWS:,} draws)."
        )
        header = ["method", trials.head, f"over {first}"]
        return Table("on the other half", header, lines, note=note)

    def _choice_table(self, trials: Trials[Try], best: Mapping[str, Try]) -> Table:
        """Which try won, and what the tuning half said of it and of the section as it stands."""
        lines = []
        for label, one in best.items():
            said = ", ".join(f"{key} {value}" for key, value in self.settings[one].items())
            values = [
                trials.shown(trials.mean(TUNING, which, _WHOLE)) for which in ((label, 0), one)
            ]
            lines.append([label, str(self.options.tries), *values, said or "as it stands"])
        header = ["method", "tries", "as it stands", "best try", "settings"]
        note = "On the tuning half: the best of several tries looks better than it is."
        return Table("what was chosen", header, lines, note=note)

    def _cost_table(self, trials: Trials[Try]) -> Table:
        lines = []
        for label in self.options.methods:
            records = [one for one in trials.records() if one.axes["method"] == label]
            trained, drawn, flops = (
                sum(getattr(one.cost, key) for one in records)
                for key in ("trained", "drawn", "flops")
            )
            counted = f"{flops:.2e}" if flops else "–"
            seconds = in_time(sum(one.cost.seconds for one in records))
            lines.append([label, str(len(records)), f"{trained:,}", f"{drawn:,}", counted, seconds])
        header = ["method", "runs", "samples", "drawn", "FLOPs", "seconds of training"]
        return Table("cost, tuning included", header, lines)

    def _rows(self, trials: Trials[Try], best: Mapping[str, Try]) -> list[dict[str, Any]]:
        first = next(iter(self.options.methods))
        tries = [
            {
                "kind": "try",
                "method": one[0],
                "try": one[1],
                "settings": found,
                "tuning": trials.mean(TUNING, one, _WHOLE),
            }
            for one, found in self.settings.items()
        ]
        results = [
            {
                "kind": "method",
                "method": label,
                "try": one[1],
                "value": trials.mean(REPORT, one, _WHOLE),
                "gain": _plain(trials.difference(REPORT, one, best[first], _WHOLE)),
            }
            for label, one in best.items()
        ]
        return tries + results


def _try_of(axes: Mapping[str, Any]) -> Try:
    return axes["method"], axes["try"]


def _plain(found: Interval) -> list[float | None]:
    """Value, low, high; JSON knows no NaN."""
    return [None if math.isnan(one) else one for one in (found.value, found.low, found.high)]
