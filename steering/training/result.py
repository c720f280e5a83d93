"""What a finished run leaves behind: result.json, scores, weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from steering import distributed
from steering.reference.frozen import LiveReference
from steering.runs.record import SCORES, WEIGHTS, write_scores
from steering.task import Evaluation
from steering.training.checkpoint import write_json
from steering.training.state import State
from steering.weights import save_weights

_LOG = logging.getLogger("steering")


def write_result(run: State, found: Evaluation, told: Mapping[str, Any]) -> dict[str, Any]:
    """Write the files; every rank calls this.

    Args:
        found: the evaluation of the end.
        told: what the observers have to say, for the summary.

    Returns:
        The content of result.json.
    """
    job, skipped = run.job, run.all_skipped()
    result: dict[str, Any] = {
        "metrics": found.values(),
        "meaning": {
            name: asdict(one) | {"of": [*one.of]}
            for name, one in found.meanings(job.task.metrics).items()
        },
        **counts(run),
        "seconds": round(run.clock.seconds, 2),
        "evaluation_seconds": round(run.evaluation_seconds, 2),
        "steps": run.plan.steps,
        "skipped": skipped,
        "summary": run.method.summary() | dict(told),
        "identity": job.identity,
    }
    save_model(run, job.folder / WEIGHTS, run.module)
    if distributed.rank() == 0:
        write_scores(job.folder / SCORES, found.scores)
        write_json(job.folder / "result.json", result)
        if skipped:
            _LOG.warning("%s: %d unreadable examples were replaced by others", job.folder, skipped)
    distributed.barrier()
    return result


def counts(run: State) -> dict[str, int]:
    """Examples that were trained on, drawn, scored for a choice, and run through a live
    reference."""
    steps = run.plan.steps
    samples, drawn = steps * run.batch_size, steps * run.drawn
    # A selector that needs no reference leaves it to run on what is trained on alone.
    # A selector that asks the reference asks it for all that is drawn, once.
    asked = drawn if run.selection is None or run.selection.reference is not None else samples
    return {
        "samples": samples,
        "drawn": drawn,
        "scored": 0 if run.selection is None else drawn,
        "reference_samples": asked if isinstance(run.job.reference, LiveReference) else 0,
    }


def save_model(run: State, path: Path, module: nn.Module) -> None:
    """Write weights as a user loads them; every rank calls this, and rank 0 writes."""
    # Trained pairs are read with the method's temperature, which the model in training knows
    # nothing of. All ranks are asked: a table of temperatures is split over them.
    scale = run.method.logit_scale() if run.job.task.risk.unit == "pair" else None
    learned = {} if scale is None else {"logit_scale": math.log(scale)}
    if distributed.rank() == 0:
        save_weights(path, module, run.job.identity, learned)
