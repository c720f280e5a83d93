"""Proxy runs that rank data recipes: at which learning rate does a small model order the recipes as
the target, tuned for each of them, does?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from steering.analysis.page import Report
from steering.analysis.recipes_axis import Axis
from steering.analysis.recipes_figure import axis_figure
from steering.analysis.recipes_page import tables, verdict_of, winner_config
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.contestants import with_reference_of
from steering.studies.distinct import require_distinct

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

KEY = "studies.recipes"
ORDER_0 = "steering.studies.recipes_order0:order0"


@dataclass(frozen=True)
class RecipesOptions:
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label → dotted keys over the run's, such as {task.data.mix.email: 2}."""
    proxy: dict[str, Any] = field(default_factory=dict)
    """Dotted keys that make the run a proxy: a smaller model, fewer samples; or options of the
    function."""
    target: dict[str, Any] = field(default_factory=dict)
    """Dotted keys that make it the target; or options of the function."""
    function: str = ""
    """A function that makes proxies and targets in place of a training, "module:name", such as
    steering.studies.recipes_features:random_features."""
    rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2])
    """Learning rates of the proxy, the whole axis."""
    target_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-3, 1e-2])
    """Learning rates among which the target is tuned for each recipe; empty: no truth, the proxy's
    ranking alone."""
    seeds: int = 5
    """Seeds of the proxy."""
    target_seeds: int = 2
    """Seeds of the target."""
    metric: str = ""
    """Which metric recipes are compared by; empty: the first loss or perplexity, else the first mean
    over examples, such as test/accuracy, else the first that gets smaller. "loss/validation": the
    loss of the last evaluation, which a classifier has in its log alone."""
    small: float = 30.0
    """The small rate is the largest of `rates` that is at most the proxy's own best over this."""
    order0: bool = True
    """Also rank by the frequencies of tokens or labels alone: what a proxy must beat."""


@study("recipes", RecipesOptions)
class Recipes:
    """Rank data recipes by cheap proxies, and ask how far the ranking can be trusted."""

    def __init__(self, options: RecipesOptions) -> None:
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:  # noqa: ARG002
        from steering.config import with_overrides
        from steering.errors import ConfigError
        from steering.runs.ask import training
        from steering.runs.call import calling

        given = self.options
        if len(given.recipes) < 2:
            raise ConfigError(f"{KEY}.recipes: name at least two recipes")
        found: list[Ask] = []
        frequencies: list[Ask] = []
        for recipe, changes in given.recipes.items():
            cooked = with_overrides(base, changes, f"{KEY}.recipes.{recipe}")
            if given.order0:
                axes = {"scale": "order 0", "recipe": recipe, "rate": 0.0, "seed": 0}
                frequencies.append(calling(cooked, ORDER_0, {}, f"order0-{recipe}", axes))
            for scale, rates, seeds in (
                ("proxy", given.rates, given.seeds),
                ("target", given.target_rates, given.target_seeds),
            ):
                own = getattr(given, scale)
                sized = cooked if given.function else with_overrides(cooked, own, f"{KEY}.{scale}")
                for seed in range(seeds):
                    for rate in rates:
                        axes = {"scale": scale, "recipe": recipe, "rate": rate, "seed": seed}
                        label = f"{scale}-{recipe}-lr{rate:g}-seed{seed}"
                        if given.function:
                            more = {**own, "rate": rate, "seed": seed}
                            found.append(
                                calling(sized, given.function, more, label, axes, reads_model=True)
                            )
                        else:
                            config = with_overrides(sized, {"optimizer.lr": rate, "seed": seed})
                            # A recipe has one reference, whatever the size and the rate.
                            config = with_reference_of(config, cooked, [*own, "optimizer.lr"])
                            asked = training(config, label, axes)
                            found.append(replace(asked, may_diverge=True))
        require_distinct(found, KEY)
        require_distinct(frequencies, f"{KEY}.order0")
        return [*frequencies, *found]

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        axis = Axis(done, self.options.metric, self.options.small)
        rows = [
            {**record.axes, "metrics": dict(record.metrics), "flops": record.cost.flops}
            for record in done
        ]
        shown = f"the logarithm of {axis.metric}" if axis.log else axis.metric
        more = " (more is better)" if axis.sign < 0 else ""
        intro = (
            f"Recipes are compared by {shown}{more}. The truth of a recipe is the target's at the "
            "best of its learning rates, as a mean over seeds. In brackets are 95 % intervals of a "
            f"bootstrap over the recipes. {verdict_of(axis)}"
        )
        figures = {"": partial(axis_figure, axis)} if axis.has_truth else {}
        files = {"-winner.yaml": partial(winner_config, axis)}
        return Report(
            "recipes", f"{title}: data recipes", intro, tables(axis), rows, figures, files
        )
