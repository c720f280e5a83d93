"""One round of self-improving steering: answers of the steered policy, a ranking, contrast pairs, and
a steering function that is fitted to them. No weight changes.

Source: SIMS, arXiv 2507.08967: section 3; what the text leaves open is said in
docs/activation.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steering import distributed
from steering.activation import (
    DIRECTIONS,
    Direction,
    Edit,
    Pair,
    Speaker,
    answer_activations,
    best_and_worst,
    best_layers,
    block_names,
    find_layer,
    fitted_edits,
    layer_accuracies,
    likelihood_margin,
    load_edits,
    most_informative,
    save_edits,
    search_families,
    with_strength,
)
from steering.activation.preferences import Ranker
from steering.activation.search import Trial
from steering.data import mix
from steering.errors import ConfigError, SteeringError
from steering.runs.call import Call, Outcome
from steering.runs.record import Metric, RunRecord
from steering.studies.self_improvement.judges import encoded, shuffled
from steering.studies.self_improvement.scene import (
    TRAIN,
    VALID,
    Prompting,
    Scene,
    names_of,
    open_scene,
    read_jsonl,
    to_jsonl,
)

EDITS, SAMPLES, BANK = "edits.safetensors", "samples.jsonl", "bank.jsonl"
HELD_OUT = 5  # every fifth pair is for the search
SAMPLE, CHECK = 11, 12  # keys of the hash
_PLAIN = Metric(percent=False)
_LESS = Metric(percent=False, higher_is_better=False)


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
class _Fit:
    """A fitted steering function and how it was chosen."""

    edits: Sequence[Edit]
    accuracies: Mapping[str, float]
    trials: Sequence[Trial]


def improve(call: Call) -> Outcome:
    """A round. Parents: "model", unless the config gives weights, and the round before, "previous"."""
    options, start = call.options, time.monotonic()
    how, fitting = Prompting(**options["prompting"]), Fitting(**options["fitting"])
    seed, number = int(options["seed"]), int(options["round"])
    scene, before = open_scene(call, how), call.parent("previous")
    edits = policy_edits(before)
    policy = replace(scene.speaker, edits=edits, keep_norm=fitting.keep_norm)
    ranker = scene.ranker(options["ranker"], "studies.activation.ranker")
    ranker = shuffled(ranker, seed) if options["shuffled"] else ranker
    prompts = scene.prompts[TRAIN]
    drawn = scene.answers(policy, prompts, options["answers"], key(seed, SAMPLE, number))
    scores = ranker(prompts, drawn)
    fresh = _pairs(prompts, drawn, scores)
    bank = [*bank_of(before), *fresh]
    chosen = most_informative(bank, fitting.share) if bank else []
    fit = fitted(scene, fitting, chosen, ranker, edits, key(seed, CHECK, number))
    samples = [
        {"prompt": prompt, "answers": own, "scores": list(values)}
        for prompt, own, values in zip(prompts, drawn, scores, strict=True)
    ]
    call.write(SAMPLES, to_jsonl(samples))
    call.write(BANK, to_jsonl([asdict(pair) for pair in bank]))
    keep_edits(call, fit.edits, fitting)
    metrics = {
        "ranker": float(np.mean(scores)),
        "margin": float(np.mean([pair.margin for pair in fresh])) if fresh else 0.0,
        "pairs": float(len(fresh)),
    }
    cost = scene.cost([policy], sum(map(len, drawn)), time.monotonic() - start)
    meaning = dict.fromkeys(metrics, _PLAIN)
    return Outcome(metrics, meaning, cost=cost, summary=summary_of(fit, bank, chosen))


def fitted(
    scene: Scene,
    how: Fitting,
    pairs: Sequence[Pair],
    ranker: Ranker,
    before: Sequence[Edit],
    seed: int,
) -> _Fit:
    """The steering function of the pairs: layers and strength are what a search finds. Fewer than two
    pairs on a side of the split change nothing.

    Fitted on the base model's activations, the new function stands in place of the old one; with
    `compose: previous` on the steered model's, and is added to it.
    """
    train = [pair for n, pair in enumerate(pairs) if n % HELD_OUT]
    held = pairs[::HELD_OUT]
    if len(train) < 2 or len(held) < 2:
        return _Fit(before, {}, ())
    added = before if how.compose == "previous" else ()
    reader = replace(scene.speaker, edits=added, keep_norm=how.keep_norm)
    layers = _layers(scene, how)
    up, down = paired_activations(scene, reader, layers, train)
    accuracies: dict[str, float] = {}
    if how.choose == "probe":
        checks = paired_activations(scene, reader, layers, held)
        bias = how.direction["name"] != "householder"  # whose probe goes through the origin
        accuracies = layer_accuracies(up, down, *checks, bias)
        layers = best_layers(accuracies, how.layers)
    found = fitted_edits(
        direction_of(how.direction),
        {layer: up[layer] for layer in layers},
        {layer: down[layer] for layer in layers},
        how.scope,  # type: ignore[arg-type]
    )
    # A round may change nothing; by curves, the last function is compared at the same harm.
    again = [[*before]] if before and how.curve and not added else []
    trial, trials = search_families(
        [*_families(found, how.choose), *again],
        how.strengths,
        _judged(scene, how, held, ranker, seed),
        how.budget,
        how.refine,
        [[*before]] if before and not again else [],
        added,
        how.curve,
    )
    return _Fit(trial.edits, accuracies, trials)


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
    prompts, tokens = scene.prompts[VALID], scene.text.tokens
    asked = scene.rows([pair.prompt for pair in held])
    better, worse = (
        [encoded(tokens, one) for one in side]
        for side in ([pair.better for pair in held], [pair.worse for pair in held])
    )

    def judged(edits: Sequence[Edit]) -> tuple[float, float]:
        policy = replace(scene.speaker, edits=edits, keep_norm=how.keep_norm)
        answers = scene.answers(policy, prompts, how.valid_answers, seed)
        harm = float(scene.mean_losses(prompts, answers, scene.speaker).mean())
        if how.search == "samples":
            return float(np.mean(ranker(prompts, answers))), harm
        return likelihood_margin(policy, asked, better, worse)[0], harm

    return judged


def paired_activations(
    scene: Scene, reader: Speaker, layers: Sequence[str], pairs: Sequence[Pair]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations of the better and of the worse answers, layer -> (n, d): row i of both is of the
    same position of one pair, up to the shorter answer."""
    rows = scene.rows([pair.prompt for pair in pairs])
    tokens = scene.text.tokens
    sides = [
        answer_activations(reader, layers, rows, [encoded(tokens, text) for text in side])
        for side in ([pair.better for pair in pairs], [pair.worse for pair in pairs])
    ]
    up, down = {}, {}
    for layer in layers:
        both = zip(sides[0][layer], sides[1][layer], strict=True)
        cut = [(a[: len(b)], b[: len(a)]) for a, b in both]
        up[layer], down[layer] = (torch.cat(own) for own in zip(*cut, strict=True))
    return up, down


def direction_of(section: Mapping[str, Any]) -> Direction:
    """The direction of a config's section."""
    values = dict(section)
    if "name" not in values:
        raise ConfigError(
            f"studies.activation.direction: needs a name: {', '.join(DIRECTIONS.names())}"
        )
    part = DIRECTIONS.find(str(values.pop("name")), "studies.activation.direction.name")
    try:
        return part(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"studies.activation.direction: {error}") from error


def policy_edits(record: RunRecord | None) -> list[Edit]:
    """The edits that a run ended with; none without a run."""
    return [] if record is None else load_edits(record.folder / EDITS)[0]


def bank_of(record: RunRecord | None) -> list[Pair]:
    """The memory bank that a run ended with."""
    if record is None:
        return []
    return [Pair(**row) for row in read_jsonl(record.folder / BANK, "bank")]


def key(*numbers: int) -> int:
    """A seed from several numbers."""
    return int(mix(*numbers) >> np.uint64(1))


def _pairs(
    prompts: Sequence[str], answers: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> list[Pair]:
    every = zip(prompts, answers, scores, strict=True)
    found = [best_and_worst(prompt, own, values) for prompt, own, values in every]
    # an empty answer has no position to read
    return [pair for pair in found if pair is not None and pair.better and pair.worse]


def keep_edits(call: Call, edits: Sequence[Edit], how: Fitting) -> None:
    if distributed.rank() == 0:
        save_edits(call.folder / EDITS, edits, {"keep_norm": how.keep_norm})


def summary_of(fit: _Fit, bank: Sequence[Pair], chosen: Sequence[Pair]) -> dict[str, Any]:
    trials = [
        {"edits": names_of(one.edits), "gain": one.gain, "harm": one.harm} for one in fit.trials
    ]
    taken = [number for number, one in enumerate(fit.trials) if one.edits is fit.edits]
    return {
        "edits": names_of(fit.edits),
        "chosen": taken[0] if taken else None,
        "bank": len(bank),
        "used": len(chosen),
        "probe": dict(fit.accuracies),
        "search": trials,
    }
