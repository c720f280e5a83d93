"""A study of one's own (docs/guide-study.md): search the learning rate, then more seeds of the best."""

from dataclasses import dataclass

from steering.analysis.intervals import seeds_interval
from steering.analysis.page import Report, Table
from steering.studies import study


@dataclass(frozen=True)
class LrOptions:
    rates: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Learning rates of the first round, one seed each."""
    seeds: int = 3
    """Seeds of the best one, in the second round."""
    metric: str = "seen/image_to_text_R@1"
    """What is best."""


@study("lr", LrOptions)
class LearningRate:
    """The best of some learning rates, and how much its seeds differ."""

    def __init__(self, options):
        self.options = options

    def wanted(self, base, done):
        from steering.config import with_overrides
        from steering.runs.ask import training

        def ask(rate, seed):
            config = with_overrides(base, {"optimizer.lr": rate, "seed": seed})
            return training(config, f"lr{rate:g}-seed{seed}", {"rate": rate, "seed": seed})

        coarse = [ask(rate, 0) for rate in self.options.rates]
        if len(done) < len(coarse):
            return coarse
        return [ask(self._best(done), seed) for seed in range(self.options.seeds)]

    def _best(self, done):
        coarse = [record for record in done if record.axes["seed"] == 0]
        return max(coarse, key=lambda record: record.metrics[self.options.metric]).axes["rate"]

    def report(self, done, title):
        best, name = self._best(done), self.options.metric
        values = [record.metrics[name] for record in done if record.axes["rate"] == best]
        found = seeds_interval(values)
        shown = f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"
        line = [f"{best:g}", shown, str(len(values))]
        table = Table("best learning rate", ["rate", name, "seeds"], [line])
        rows = [{**record.axes, name: record.metrics[name]} for record in done]
        about = "Percent, with the 95 % interval over seeds."
        return Report("lr", f"{title}: learning rate", about, [table], rows)
