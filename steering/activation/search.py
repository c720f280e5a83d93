"""Which layer, which strength: decided on held-out pairs, never on those that were fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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


def search(
    candidates: Sequence[Sequence[Edit]],
    judged: Callable[[Sequence[Edit]], tuple[float, float]],
    budget: float,
) -> tuple[Trial, list[Trial]]:
    """The candidate of the highest gain among those whose harm is at most the budget.

    The unsteered model is always a candidate, so nothing is steered where nothing helps. Of equals
    the first wins.

    Args:
        judged: gain and harm of edits; called with () first. Harm counts from the unsteered
            model's.
        budget: largest harm beyond the unsteered model's.

    Returns:
        the best trial and all, the unsteered one first.
    """
    gain, base = judged(())
    trials = [Trial((), gain, 0.0)]
    for edits in candidates:
        gain, harm = judged(edits)
        trials.append(Trial(edits, gain, harm - base))
    allowed = [trial for trial in trials if trial.harm <= budget]
    return max(allowed, key=lambda trial: trial.gain), trials


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
