"""One round of self-improving steering: answers of the steered policy, a ranking, contrast pairs, and
a steering function that is fitted to them. No weight changes.

Source: SIMS, arXiv 2507.08967: section 3; what the text leaves open is said in
docs/activation.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from steering import distributed
from steering.activation import (
    Edit,
    Pair,
    best_and_worst,
    load_edits,
    most_informative,
    save_edits,
)
from steering.data import mix
from steering.runs.call import Call, Outcome
from steering.runs.record import Metric, RunRecord
from steering.studies.self_improvement.fitting import Fit, Fitting, fitted
from steering.studies.self_improvement.judges import shuffled
from steering.studies.self_improvement.scene import (
    TRAIN,
    Prompting,
    names_of,
    open_scene,
    read_jsonl,
    to_jsonl,
)

EDITS, SAMPLES, BANK = "edits.safetensors", "samples.jsonl", "bank.jsonl"
SAMPLE, CHECK = 11, 12  # keys of the hash
_PLAIN = Metric(percent=False)


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


def summary_of(fit: Fit, bank: Sequence[Pair], chosen: Sequence[Pair]) -> dict[str, Any]:
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
