"""Which layer, which strength: decided on held-out pairs, never on those that were fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from steering.activation.directions import Direction, probe_accuracy, probe_normal
from steering.activation.edits import Edit, Scope
from steering.activation.sampling import Speaker, Tokens, answer_losses


@dataclass(frozen=True)
class Trial:
    """One candidate of a search.

    Attributes:
        edits: none for the unsteered model.
        gain: what is sought, more is better.
        harm: what must stay below a budget.
    """

    edits: Sequence[Edit]
    gain: float
    harm: float


def layer_accuracies(
    positive: Mapping[str, Tensor],
    negative: Mapping[str, Tensor],
    held_positive: Mapping[str, Tensor],
    held_negative: Mapping[str, Tensor],
    bias: bool = True,
) -> dict[str, float]:
    """For each layer the share of held-out activations on their own side of a logistic probe that
    was fitted on the others."""
    found = {}
    for layer, own in positive.items():
        normal, offset = probe_normal(own, negative[layer], bias=bias)
        found[layer] = probe_accuracy(normal, offset, held_positive[layer], held_negative[layer])
    return found


def best_layers(accuracies: Mapping[str, float], count: int) -> list[str]:
    """The layers of the highest accuracies, in the model's order; the earlier one of equals."""
    order = sorted(accuracies, key=lambda layer: -accuracies[layer])  # sorting is stable
    return [layer for layer in accuracies if layer in order[:count]]


def fitted_edits(
    direction: Direction,
    positive: Mapping[str, Tensor],
    negative: Mapping[str, Tensor],
    scope: Scope = "decoded",
) -> list[Edit]:
    """One edit of strength 1 for each layer."""
    return [
        Edit(layer, direction.fit(own, negative[layer]), scope=scope)
        for layer, own in positive.items()
    ]


def with_strength(edits: Sequence[Edit], strength: float) -> list[Edit]:
    """The same edits, their strengths times a number."""
    return [replace(edit, strength=strength * edit.strength) for edit in edits]


Judged = Callable[[Sequence[Edit]], tuple[float, float]]
"""Gain and harm of edits; harm counts from the unsteered model's, which is judged first, with ()."""


def search(
    candidates: Sequence[Sequence[Edit]], judged: Judged, budget: float
) -> tuple[Trial, list[Trial]]:
    """The candidate of the highest gain among those whose harm is at most the budget.

    The unsteered model is always a candidate, so nothing is steered where nothing helps. Of equals
    the first wins.

    Args:
        budget: largest harm beyond the unsteered model's.

    Returns:
        the best trial and all, the unsteered one first.
    """
    gain, base = judged(())
    trials = [Trial((), gain, 0.0)]
    trials += [_tried(edits, judged, base) for edits in candidates]
    return _best(trials, budget), trials


def search_families(
    families: Sequence[Sequence[Edit]],
    strengths: Sequence[float],
    judged: Judged,
    budget: float,
    refine: int = 0,
    others: Sequence[Sequence[Edit]] = (),
    fixed: Sequence[Edit] = (),
    curve: bool = False,
) -> tuple[Trial, list[Trial]]:
    """As `search`, of several sets of edits, each at growing strengths: which set gains most for the
    harm that is allowed?

    A set's strengths are tried from below until the harm exceeds the budget. Sets are compared by
    the gain that they reach where the harm meets the budget, on the straight line between the last
    allowed and the first refused strength. So one whose grid happens to end just below the budget
    is not preferred. The strength of the best set is then halved towards the budget.

    Gain and harm of one trial are means over a few samples, and the best of several trials is the
    luckiest one. With `curve` a set's trials are taken together: gain and harm are parabolas of the
    strength through strength 0, by least squares. Sets are compared, and the strength is
    taken, where the parabolas say; the last trial has their values.

    Args:
        families: sets of edits, at strength 1.
        strengths: above 0; tried in rising order.
        refine: halvings between the last allowed and the first refused strength of the best set.
        others: further candidates, as they are.
        fixed: edits beside every set, whose strength stays.
        curve: go by a curve through a set's trials, not by single ones.

    Returns:
        the best trial and all, the unsteered one first.
    """
    gain, base = judged(())
    trials = [Trial((), gain, 0.0), *(_tried(edits, judged, base) for edits in others)]

    def made(number: int, strength: float) -> list[Edit]:
        return [*fixed, *with_strength(families[number], strength)]

    def at(number: int, strength: float) -> Trial:
        return _tried(made(number, strength), judged, base)

    start = _tried(fixed, judged, base) if curve and fixed else trials[0]
    climbs = []
    for number in range(len(families)):
        climbs.append(_climb(partial(at, number), strengths, budget, start))
        trials += [trial for _, trial in climbs[-1][1:]]
    if not climbs:
        return _best(trials, budget), trials
    reach = _reach_on_curve if curve else _reach
    number = max(range(len(climbs)), key=lambda n: reach(climbs[n], budget))
    halved = _halved(partial(at, number), climbs[number], budget, refine)
    trials += [trial for _, trial in halved]
    if not curve:
        return _best(trials, budget), trials
    strength, gain, harm = _top_of_curve([*climbs[number], *halved], budget)
    if strength > 0:
        trials.append(Trial(made(number, strength), gain, harm))
    single = trials[: 1 + len(others)]
    return _best([*single, trials[-1]] if strength > 0 else single, budget), trials


Climb = list[tuple[float, Trial]]
"""Strengths from 0 upwards, and what they do; all but the last one are within the budget."""


def _climb(
    at: Callable[[float], Trial], strengths: Sequence[float], budget: float, unsteered: Trial
) -> Climb:
    found = [(0.0, unsteered)]
    for strength in sorted(strengths):
        found.append((strength, at(strength)))
        if found[-1][1].harm > budget:
            break
    return found


def _halved(at: Callable[[float], Trial], climb: Climb, budget: float, times: int) -> Climb:
    """Strengths between the last allowed and the first refused one; none where none was refused."""
    if climb[-1][1].harm <= budget:
        return []
    low, high = climb[-2][0], climb[-1][0]
    found: Climb = []
    for _ in range(times):
        middle = (low + high) / 2
        found.append((middle, at(middle)))
        low, high = (middle, high) if found[-1][1].harm <= budget else (low, middle)
    return found


def _reach(climb: Climb, budget: float) -> float:
    """The highest gain of a climb within the budget, up to where the harm meets it."""
    allowed = max(trial.gain for _, trial in climb if trial.harm <= budget)
    (_, below), (_, above) = climb[-2:]  # strengths are at least one
    if above.harm <= budget:
        return allowed
    share = (budget - below.harm) / (above.harm - below.harm)
    return max(allowed, below.gain + share * (above.gain - below.gain))


def _reach_on_curve(climb: Climb, budget: float) -> float:
    return _top_of_curve(climb, budget)[1]


def _top_of_curve(climb: Climb, budget: float) -> tuple[float, float, float]:
    """Strength, gain and harm where the gain's parabola is highest, up to where the harm's meets the
    budget, and not beyond the largest strength that was tried."""
    tried = np.array([strength for strength, _ in climb[1:]])
    strengths = np.linspace(0, tried.max(), 1001)
    gains, harms = (
        first + _parabola(tried, np.array(further) - first, strengths)
        for first, *further in (
            [trial.gain for _, trial in climb],
            [trial.harm for _, trial in climb],
        )
    )
    refused = np.flatnonzero(harms > budget)
    best = int(gains[: max(refused[0], 1)].argmax()) if len(refused) else int(gains.argmax())
    return float(strengths[best]), float(gains[best]), float(harms[best])


def _parabola(x: np.ndarray, y: np.ndarray, where: np.ndarray) -> np.ndarray:
    """a·x + b·x² by least squares, at other places; of a single point a straight line."""
    powers = [1, 2] if len(x) > 1 else [1]
    found = np.linalg.lstsq(x[:, None] ** powers, y, rcond=None)[0]
    return where[:, None] ** powers @ found


def _tried(edits: Sequence[Edit], judged: Judged, base: float) -> Trial:
    gain, harm = judged(edits)
    return Trial(edits, gain, harm - base)


def _best(trials: Sequence[Trial], budget: float) -> Trial:
    return max((trial for trial in trials if trial.harm <= budget), key=lambda trial: trial.gain)


def likelihood_margin(
    speaker: Speaker, prompts: Sequence[Tokens], better: Sequence[Tokens], worse: Sequence[Tokens]
) -> tuple[float, float]:
    """How clearly a policy prefers the better answers of held-out pairs: gain and harm for `search`.

    Returns:
        mean of log p(better)/|better| − log p(worse)/|worse|, and the mean −log p(better)/|better|,
        nats a token.
    """
    means = [_mean_losses(speaker, prompts, answers) for answers in (better, worse)]
    return float((means[1] - means[0]).mean()), float(means[0].mean())


def _mean_losses(speaker: Speaker, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    counts = torch.tensor([max(len(answer), 1) for answer in answers], dtype=torch.float64)
    return answer_losses(speaker, prompts, answers) / counts
