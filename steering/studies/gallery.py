"""The study that shows which examples steering turns up and down, and how many of them are known to
be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from steering.analysis.cards import Card, cards_html
from steering.analysis.page import Report, Table
from steering.analysis.stored import arrays_of, losses_of
from steering.analysis.suspects import (
    Confident,
    Precision,
    confident_learning,
    log_weights,
    precision,
)
from steering.analysis.weighed import Weighed
from steering.errors import ConfigError
from steering.exhibits import Labels, read_exhibits, read_labels
from steering.runs.record import RunRecord
from steering.studies import study
from steering.studies.audit import reference_outputs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from steering.config import RunConfig
    from steering.runs.ask import Ask

TARGET, REFERENCE = "target losses", "reference losses"


@dataclass(frozen=True)
class GalleryOptions:
    tau: float | None = None
    """Temperature of the weights shown, ℓ/τ; null: no adversary, the reference's filter alone."""
    kappa: float = 1.0
    """Trust in the reference, κ·ℓ_ref."""
    shown: int = 24
    """Examples shown of each end."""
    precision_at: list[int] = field(default_factory=lambda: [10, 50, 100])
    """How many suspects to look at, where the task knows which labels are wrong."""
    csv: bool = True
    """Write all examples with their losses and weights as gallery.csv."""


@study("gallery", GalleryOptions)
class Gallery:
    """The examples with the highest and the lowest weights, as a page to look at."""

    def __init__(self, options: GalleryOptions) -> None:
        if options.shown < 1:
            raise ConfigError(f"studies.gallery.shown: expected at least 1, got {options.shown}")
        if options.tau is not None and options.tau <= 0:
            raise ConfigError(f"studies.gallery.tau: expected above 0, got {options.tau}")
        if not options.precision_at or min(options.precision_at) < 1:
            raise ConfigError(
                f"studies.gallery.precision_at: expected numbers >= 1, got {options.precision_at}"
            )
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        """First the losses and the labels; then the pictures of the examples that they choose."""
        if self.options.tau is None and (base.reference is None or self.options.kappa == 0):
            raise ConfigError(
                "studies.gallery: every weight is the same with no reference (or kappa: 0) and no tau"
            )
        losses = _asks(base)
        if len(done) < len(losses):
            return losses
        found = self._weighed(done)
        numbers = [*found.top(self.options.shown), *found.bottom(self.options.shown)]
        asks = [examples_ask(base, numbers, "examples-shown", "shown")]
        if found.labels.classes:  # confident learning needs probabilities of classes
            asks += [_logits_of(ask) for ask in losses if ask.axes["role"] in (TARGET, REFERENCE)]
        return asks

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        options, found = self.options, self._weighed(done)
        exhibits = read_exhibits(_of(done, "shown"))
        sections = {
            f"Turned up: the {options.shown} highest weights": found.top(options.shown),
            f"Turned down: the {options.shown} lowest weights": found.bottom(options.shown),
        }
        cards = {
            name: [found.card(number, exhibits[number]) for number in numbers if number in exhibits]
            for name, numbers in sections.items()
        }
        confident = _confident(done, found.labels)
        intro = _intro(options, found)
        files = {".csv": partial(found.csv, confident)} if options.csv else {}
        return Report(
            "gallery",
            f"{title}: what steering turns up and down",
            intro,
            [*_precision_tables(found, confident, options.precision_at), *_tables(cards)],
            [card.row() for one in cards.values() for card in one],
            {"": partial(_histogram, found)},
            files,
            partial(cards_html, cards),
        )

    def _weighed(self, done: Sequence[RunRecord]) -> Weighed:
        options = self.options
        target = losses_of(_of(done, TARGET)).examples
        steering = [record for record in done if record.axes.get("role") == REFERENCE]
        reference = losses_of(steering[0]).examples if steering else None
        log_p = log_weights(target, reference, options.tau, options.kappa)
        return Weighed(target, reference, log_p, read_labels(_of(done, "labels")))


def examples_ask(base: RunConfig, numbers: Sequence[int], label: str, role: str) -> Ask:
    """Keep training examples to look at, and the labels of all."""
    from steering.runs.call import calling
    from steering.runs.examples import KEEP_EXAMPLES

    config = replace(base, compare=type(base.compare)(), studies={})
    arguments = {"numbers": sorted(int(number) for number in numbers)}
    return calling(config, KEEP_EXAMPLES, arguments, label, {"role": role})


def _asks(base: RunConfig) -> list[Ask]:
    """The target's training, its losses, the reference's, and the labels."""
    from steering.runs.ask import model_outputs, training

    alone = replace(base, compare=type(base.compare)(), studies={})
    trained = training(alone, axes={"role": "training"})
    name = f"{trained.label}-on-train"
    asks = [
        trained,
        model_outputs(alone, "losses", "train", name, {"role": TARGET}, model=trained),
        examples_ask(alone, [], "labels", "labels"),
    ]
    if base.reference is not None:
        asks += reference_outputs(alone, None, {"reference": "own"})
    return asks


def _logits_of(ask: Ask) -> Ask:
    about = {**ask.about, "kind": "logits"}
    axes = {"role": str(ask.axes["role"]).replace("losses", "logits")}
    return replace(ask, label=f"{ask.label}-logits", axes=axes, about=about)


def _of(done: Sequence[RunRecord], role: str) -> RunRecord:
    return next(record for record in done if record.axes.get("role") == role)


def _confident(done: Sequence[RunRecord], labels: Labels) -> dict[str, Confident]:
    """Confident learning from the target's and from the reference's probabilities."""
    found = {}
    for record in done:
        role = str(record.axes.get("role"))
        if role.endswith(" logits") and labels.label is not None:
            logits = np.asarray(arrays_of(record)["logits"], dtype=np.float64)
            if logits.shape != (len(labels.label), len(labels.classes)):
                continue  # scores that are not of these classes
            shifted = np.exp(logits - logits.max(1, keepdims=True))
            probability = shifted / shifted.sum(1, keepdims=True)
            found[role.removesuffix(" logits")] = confident_learning(probability, labels.label)
    return found


def _intro(options: GalleryOptions, found: Weighed) -> str:
    own = "" if options.tau is None else f"ℓ/{options.tau:g} "
    steered = found.reference is not None and options.kappa != 0
    guide = f"− {options.kappa:g}·ℓ_ref" if steered else ""
    return (
        f"Weights of {len(found.target):,} training examples: log p = {own}{guide} + const, scaled to a "
        "mean of 1. ℓ is the trained target's loss, ℓ_ref the reference's, in nats."
    )


def _precision_tables(
    found: Weighed, confident: Mapping[str, Confident], ks: Sequence[int]
) -> list[Table]:
    wrong = found.labels.wrong
    if wrong is None:
        return []
    orders = {"low weight": -found.log_p, "high loss of the target": found.target}
    if found.reference is not None:
        orders["high loss of the reference"] = found.reference
        orders["low excess loss"] = found.reference - found.target
    for name, one in confident.items():
        orders[f"confident learning ({name})"] = one.suspicion()
    ks = [k for k in ks if k <= len(wrong)] or [len(wrong)]
    judged = {
        name: precision(order, wrong, [*ks, int(wrong.sum()) or 1])
        for name, order in orders.items()
    }
    lines = [[name, *_cells(one)] for name, one in judged.items()]
    last = f"at {int(wrong.sum()):,} (all wrong)"
    header = ["the most suspicious by", *(f"at {k}" for k in ks), last, "AUC"]
    note = (
        f"Share of known wrong labels among the first k, in percent; {100 * wrong.mean():.1f} % of all are "
        "wrong. AUC: chance that a wrong example stands before a right one."
    )
    return [Table("precision", header, lines, note=note)]


def _cells(one: Precision) -> list[str]:
    return [*(f"{100 * value:.1f}" for value in one.at.values()), f"{one.auc:.3f}"]


def _tables(cards: Mapping[str, Sequence[Card]]) -> list[Table]:
    header = ["number", "weight", "ℓ", "ℓ_ref", "known wrong", "text"]
    return [Table(name, header, [card.cells() for card in one]) for name, one in cards.items()]


def _histogram(found: Weighed) -> Figure:
    from matplotlib.figure import Figure  # here, as it takes a while, and tables need none

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, wrong = figure.subplots(), found.labels.wrong
    log_p = np.log(found.weights)
    known = np.isfinite(log_p)
    bins = np.histogram_bin_edges(log_p[known], 40)
    if wrong is None:
        axes.hist(log_p[known], bins.tolist())
    else:
        axes.hist(
            [log_p[known & ~wrong], log_p[known & wrong]],
            bins.tolist(),
            stacked=True,
            label=["right", "wrong"],
        )
        axes.legend()
    axes.set(xlabel="log weight (0: the mean)", ylabel="examples", yscale="log")
    return figure
