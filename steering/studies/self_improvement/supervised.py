"""Steering from labelled texts."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np

from steering.activation import Pair
from steering.data import mix
from steering.errors import SteeringError
from steering.reading import user_path
from steering.runs.call import Call, Outcome
from steering.runs.record import Metric
from steering.studies.self_improvement.fitting import Fitting, fitted
from steering.studies.self_improvement.judges import SHUFFLE, pieces
from steering.studies.self_improvement.rounds import (
    BANK,
    CHECK,
    keep_edits,
    key,
    summary_of,
)
from steering.studies.self_improvement.scene import (
    TRAIN,
    Prompting,
    Scene,
    open_scene,
    read_jsonl,
    to_jsonl,
)


def supervise(call: Call) -> Outcome:
    """A steering function from labelled texts: what self-improvement is measured against."""
    options, start = call.options, time.monotonic()
    how, fitting = Prompting(**options["prompting"]), Fitting(**options["fitting"])
    scene = open_scene(call, how)
    ranker = scene.ranker(options["ranker"], "studies.activation.ranker")
    pairs = labelled_pairs(scene, options["pairs"], how.train)
    fit = fitted(scene, fitting, pairs, ranker, (), key(int(options["seed"]), CHECK, 0))
    call.write(BANK, to_jsonl([asdict(pair) for pair in pairs]))
    keep_edits(call, fit.edits, fitting)
    cost = scene.cost([scene.speaker], 0, time.monotonic() - start)
    metrics = {"pairs": float(len(pairs))}
    return Outcome(
        metrics, {"pairs": Metric(percent=False)}, cost=cost, summary=summary_of(fit, pairs, pairs)
    )


def labelled_pairs(scene: Scene, file: str | None, count: int) -> list[Pair]:
    """Pairs of a JSONL file with "chosen" and "rejected" beside each prompt; without a file, stretches
    of training texts, one of the goal's domain and one of another, behind the same prompt."""
    how = scene.how
    if file is not None:
        rows = read_jsonl(user_path(file), "studies.activation.pairs")
        names = (how.column, "chosen", "rejected")
        if not all(isinstance(row.get(name), str) for row in rows for name in names):
            raise SteeringError(
                f"studies.activation.pairs: {file}: every line needs texts {how.column!r}, "
                "'chosen' and 'rejected'"
            )
        texts = [[str(row[name]) for name in names] for row in rows]
        return [Pair(x, y, z, 1.0) for x, y, z in texts if y and z and y != z][:count]
    documents = scene.task.documents()[0]
    if how.goal not in documents:
        raise SteeringError(
            "studies.activation.baselines: supervised needs pairs: a file, or a goal among the domains"
        )
    wanted = pieces(documents[how.goal], how.length, 0)
    others = [
        one
        for name, own in documents.items()
        if name != how.goal
        for one in pieces(own, how.length, 0)
    ]
    order = np.argsort(mix(SHUFFLE, np.arange(len(others))), kind="stable")
    prompts = scene.prompts[TRAIN]
    return [
        Pair(prompts[n % len(prompts)], wanted[n], others[order[n]], 1.0)
        for n in range(min(count, len(wanted), len(others)))
    ]
