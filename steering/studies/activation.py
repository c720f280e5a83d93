"""Self-improving activation steering: rounds of answers, a ranking, and a steering function; what it
gains, what it costs, and what else would have done (docs/activation.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from steering.analysis.page import Report
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.self_improvement.figure import gain_and_price
from steering.studies.self_improvement.options import ActivationOptions
from steering.studies.self_improvement.tables import (
    by_policy,
    claims,
    costs,
    examples,
    fits,
    gains,
    rows_of,
    side_effects,
)

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

_INTRO = (
    "`judge` is the mean score of a judge that never ranked; `nll` the loss of the answers under the unsteered "
    "model, nats a token (low fluency where it is high); `distinct` the share of different 4-grams of characters. "
    "In brackets: the difference to the base and its 95 % interval, Student's t over the seeds and a "
    "bootstrap over test prompts together, paired in both. "
    "The figure shows what each policy gains over what it costs in fluency."
)


@study("activation", ActivationOptions)
class Activation:
    """Self-improving activation steering, round by round, and its baselines."""

    def __init__(self, options: ActivationOptions) -> None:
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        from steering.studies.self_improvement.asks import Asks

        if done:
            return []  # one round of asking: the rounds of steering are parents of each other
        Asks(self.options, base).check()
        return [ask for seed in self.options.seeds for ask in Asks(self.options, base).of(seed)]

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        reports = by_policy(done)
        tables = [
            gains(reports),
            claims(reports),
            *side_effects(reports),
            *fits(done),
            *costs(done),
        ]
        return Report(
            name="activation",
            title=f"{title}: self-improving activation steering",
            intro=_INTRO,
            tables=[*tables, *examples(reports, self.options.examples)],
            rows=rows_of(done),
            figures={"": partial(gain_and_price, reports, self.options.budget)},
        )
