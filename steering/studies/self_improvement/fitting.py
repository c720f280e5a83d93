"""How a round, or a set of labelled pairs, becomes a steering function: a direction at each layer,
then a search for layers and strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering.activation import (
    DIRECTIONS,
    Direction,
    Edit,
    Likely,
    Pair,
    Speaker,
    answer_activations,
    best_layers,
    block_names,
    find_layer,
    fitted_edits,
    layer_accuracies,
    likelihood_margin,
    search_families,
    with_strength,
)
from steering.activation.preferences import Ranker
from steering.activation.search import Trial
from steering.errors import ConfigError, SteeringError
from steering.studies.self_improvement.judges import encoded
from steering.studies.self_improvement.scene import VALID, Scene

HELD_OUT = 5  # every fifth pair is for the search
LIKELY = "likely"


@dataclass(frozen=True)
class Fitting:
    """How a steering function is fitted; see `steering.studies.self_improvement.options.ActivationOptions`."""

    direction: dict[str, Any]
    blocks: list[str]
    choose: str
    layers: int
    strengths: list[float]
    refine: int
    curve: bool
    scope: str
    keep_norm: bool
    share: float
    budget: float
    search: str
    valid_answers: int
    compose: str


@dataclass(frozen=True)
class Fit:
    """A fitted steering function and how it was chosen."""

    edits: Sequence[Edit]
    accuracies: Mapping[str, float]
    trials: Sequence[Trial]


def fitted(
    scene: Scene,
    how: Fitting,
    pairs: Sequence[Pair],
    ranker: Ranker,
    before: Sequence[Edit],
    seed: int,
) -> Fit:
    """The steering function of the pairs: layers and strength are what a search finds. Fewer than two
    pairs on a side of the split change nothing.

    Fitted on the base model's activations, the new function stands in place of the old one; with
    `compose: previous` on the steered model's, and is added to it.
    """
    train = [pair for n, pair in enumerate(pairs) if n % HELD_OUT]
    held = pairs[::HELD_OUT]
    if len(train) < 2 or len(held) < 2:
        return Fit(before, {}, ())
    added = before if how.compose == "previous" else ()
    reader = replace(scene.speaker, edits=added, keep_norm=how.keep_norm)
    direction, layers = direction_of(how.direction), _layers(scene, how)
    accuracies: dict[str, float] = {}
    if isinstance(direction, Likely):
        sides = _in_tokens(scene, train)
        families = [direction.fit(reader, layers, *sides, how.scope)]  # type: ignore[arg-type]
    else:
        up, down = paired_activations(scene, reader, layers, train)
        if how.choose == "probe":
            checks = paired_activations(scene, reader, layers, held)
            bias = how.direction["name"] != "householder"  # whose probe goes through the origin
            accuracies = layer_accuracies(up, down, *checks, bias)
            layers = best_layers(accuracies, how.layers)
        up, down = ({layer: side[layer] for layer in layers} for side in (up, down))
        found = fitted_edits(direction, up, down, how.scope)  # type: ignore[arg-type]
        families = _families(found, how.choose)
    # A round may change nothing; by curves, the last function is compared at the same harm.
    again = [[*before]] if before and how.curve and not added else []
    trial, trials = search_families(
        [*families, *again],
        how.strengths,
        _judged(scene, how, held, ranker, seed),
        how.budget,
        how.refine,
        [[*before]] if before and not again else [],
        added,
        how.curve,
    )
    return Fit(trial.edits, accuracies, trials)


def _families(found: Sequence[Edit], choose: str) -> list[list[Edit]]:
    """What is tried at each strength: all edits together, and with "effect" also each by itself. Edits
    that work together share the strength."""
    together = with_strength(found, 1 / len(found))
    alone = [[edit] for edit in found] if choose == "effect" else []
    return [*alone, together] if len(alone) != 1 else alone


def _layers(scene: Scene, how: Fitting) -> list[str]:
    """The layers to choose from."""
    network = scene.speaker.network
    for layer in how.blocks:
        try:
            find_layer(network, layer)
        except ValueError as error:
            raise SteeringError(f"studies.activation.blocks: {error}") from error
    return how.blocks or block_names(network)


def _judged(
    scene: Scene, how: Fitting, held: Sequence[Pair], ranker: Ranker, seed: int
) -> Callable[[Sequence[Edit]], tuple[float, float]]:
    """Gain and harm of edits. Harm: nats a token of fresh answers to validation prompts under the
    unsteered model. Gain: their scores ("samples"), or the likelihood margin of held-out pairs."""
    prompts = scene.prompts[VALID]
    asked, better, worse = _in_tokens(scene, held)

    def judged(edits: Sequence[Edit]) -> tuple[float, float]:
        policy = replace(scene.speaker, edits=edits, keep_norm=how.keep_norm)
        answers = scene.answers(policy, prompts, how.valid_answers, seed)
        harm = float(scene.mean_losses(prompts, answers, scene.speaker).mean())
        if how.search == "samples":
            return float(np.mean(ranker(prompts, answers))), harm
        return likelihood_margin(policy, asked, better, worse)[0], harm

    return judged


def _in_tokens(
    scene: Scene, pairs: Sequence[Pair]
) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Prompts, better and worse answers of pairs."""
    better, worse = (
        [encoded(scene.text.tokens, text) for text in side]
        for side in ([pair.better for pair in pairs], [pair.worse for pair in pairs])
    )
    return scene.rows([pair.prompt for pair in pairs]), better, worse


def paired_activations(
    scene: Scene, reader: Speaker, layers: Sequence[str], pairs: Sequence[Pair]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations of the better and of the worse answers, layer -> (n, d): row i of both is of the
    same position of one pair, up to the shorter answer."""
    rows, *both_sides = _in_tokens(scene, pairs)
    sides = [answer_activations(reader, layers, rows, side) for side in both_sides]
    up, down = {}, {}
    for layer in layers:
        both = zip(sides[0][layer], sides[1][layer], strict=True)
        cut = [(a[: len(b)], b[: len(a)]) for a, b in both]
        up[layer], down[layer] = (torch.cat(own) for own in zip(*cut, strict=True))
    return up, down


def direction_of(section: Mapping[str, Any]) -> Direction | Likely:
    """The direction of a config's section, or what fits shifts through the model.

    Raises:
        ConfigError: no such direction, or wrong options.
    """
    values = dict(section)
    if "name" not in values:
        known = ", ".join([*DIRECTIONS.names(), LIKELY])
        raise ConfigError(f"studies.activation.direction: needs a name: {known}")
    name, key = str(values.pop("name")), "studies.activation.direction.name"
    part = Likely if name == LIKELY else DIRECTIONS.find(name, key)
    try:
        return part(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"studies.activation.direction: {error}") from error
