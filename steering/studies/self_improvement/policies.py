"""Runs that report on a policy: the unsteered model, a round's edits, a control, best of N, or other
weights."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from steering.activation import Speaker, distinct_share, steered
from steering.runs.call import Call, Outcome
from steering.runs.record import WEIGHTS, Metric, Scores
from steering.studies.self_improvement.rounds import key, policy_edits
from steering.studies.self_improvement.scene import TEST, Prompting, Scene, open_scene, to_jsonl
from steering.task import Model
from steering.weights import load_weights

ANSWERS = "answers.jsonl"
_TEST = 20  # key of the hash
_MEANING = {
    "judge": Metric(percent=False, of=("judge",)),
    "nll": Metric(percent=False, higher_is_better=False, of=("nll",)),
    "distinct_4": Metric(percent=False),
}


def report_policy(call: Call) -> Outcome:
    """Answers to the test prompts, the judge's scores, fluency, repetition, side effects.

    Parents: "policy", whose edits are used, or "weights", whose weights; neither: the unsteered model.
    """
    options, start = call.options, time.monotonic()
    scene = open_scene(call, Prompting(**options["prompting"]))
    edits = policy_edits(call.parent("policy"))
    if options["random"]:
        edits = [
            replace(edit, move=edit.move.random(key(int(options["seed"]), number)))
            for number, edit in enumerate(edits)
        ]
    model, writer = _writer(scene, call)
    policy = replace(writer, edits=edits, keep_norm=options["keep_norm"])
    prompts, seed = scene.prompts[TEST], key(int(options["seed"]), _TEST)
    asked = replace(scene, how=replace(scene.how, prefix=options["prefix"]))
    answers, ranked = _answers(asked, policy, prompts, options, seed)
    scores = scene.judge(options["judge"])(prompts, answers)
    judge = np.array([float(np.mean(own)) for own in scores])
    nll = scene.mean_losses(prompts, answers, replace(scene.speaker, edits=()))
    side, meaning = _side_effects(scene, model, policy)
    metrics = {
        "judge": float(judge.mean()),
        "nll": float(nll.mean()),
        "distinct_4": distinct_share([one for own in answers for one in own]),
    }
    rows = [
        {"prompt": prompt, "answers": own, "judge": list(values), "nll": float(loss)}
        for prompt, own, values, loss in zip(prompts, answers, scores, nll, strict=True)
    ]
    call.write(ANSWERS, to_jsonl(rows))
    kept = {
        name: Scores(values, np.ones(len(values)))
        for name, values in (("judge", judge), ("nll", nll))
    }
    return Outcome(
        metrics | side,
        _MEANING | meaning,
        kept,
        scene.cost([policy], ranked, time.monotonic() - start),
        {"examples": rows[: options["examples"]]},
    )


def _writer(scene: Scene, call: Call) -> tuple[Model, Speaker]:
    """Who writes: the model, or one with the weights that another run has tuned."""
    tuned = call.parent("weights")
    if tuned is None:
        return scene.model, scene.speaker
    model = scene.task.build(call.ask.config.target)
    load_weights(tuned.folder / WEIGHTS, model.module)
    model.module.to(call.workshop.device).eval()
    return model, replace(scene.speaker, network=scene.task.text_model(model).network)


def _answers(
    scene: Scene, policy: Speaker, prompts: Sequence[str], options: Mapping[str, Any], seed: int
) -> tuple[list[list[str]], int]:
    """Answers to each prompt, and how many were ranked: with `best_of` the ranker's best of as many
    samples, for each answer anew."""
    count, best_of = int(options["count"]), int(options["best_of"])
    if best_of < 2:
        return scene.answers(policy, prompts, count, seed), 0
    drawn = scene.answers(policy, prompts, count * best_of, seed)
    ranker = scene.ranker(options["ranker"], "studies.activation.ranker")
    found: list[list[str]] = [[] for _ in prompts]
    for part in range(count):
        own = [answers[part * best_of : (part + 1) * best_of] for answers in drawn]
        for number, scores in enumerate(ranker(prompts, own)):
            found[number].append(own[number][int(np.argmax(scores))])
    return found, len(prompts) * count * best_of


def _side_effects(
    scene: Scene, model: Model, policy: Speaker
) -> tuple[dict[str, float], dict[str, Metric]]:
    """The task's own evaluation under the edits, at every position: perplexity by domain."""
    everywhere = [replace(edit, scope="all") for edit in policy.edits]
    with steered(policy.network, everywhere, keep_norm=policy.keep_norm):
        found = scene.task.evaluate(model, scene.call.workshop.device).values()
    names = [name for name in found if name.startswith("perplexity/")]
    # Their scores are not kept, so they have no interval over examples.
    meaning = {name: Metric(percent=False, higher_is_better=False) for name in names}
    return {name: found[name] for name in names}, meaning
