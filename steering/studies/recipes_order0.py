"""The baseline of order 0: how well the frequencies of the training tokens (or labels) alone predict
the held-out ones. A proxy that ranks recipes no better has learnt nothing that counts."""

from __future__ import annotations

import numpy as np

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.runs.call import Call, Outcome
from steering.runs.record import Metric

MOST = 4096  # examples that are counted
KEYS = ("tokens", "label")


def order0(call: Call) -> Outcome:
    """Cross entropy, nats a symbol, of each held-out part under the smoothed training frequencies;
    "loss" is their mean."""
    opened = call.opened
    model = opened.task.build(call.ask.config.target)
    counts = _counts(opened.plain_data(model))
    parts = {name: _counts(data) for name, data in opened.task.held_out_data(model).items()}
    if not parts:
        raise SteeringError(
            "recipes: the task has no held-out data as numbered examples; set order0=false"
        )
    size = max(len(one) for one in [counts, *parts.values()])
    log_p = np.log((_padded(counts, size) + 1) / (counts.sum() + size))
    losses = {name: float(-(_padded(one, size) @ log_p) / one.sum()) for name, one in parts.items()}
    metrics = {f"{name}/order0_loss": value for name, value in losses.items()}
    metrics["loss"] = float(np.mean([*losses.values()]))
    meaning = {name: Metric(percent=False, higher_is_better=False) for name in metrics}
    return Outcome(metrics, meaning)


def _counts(data: IndexedData) -> np.ndarray:
    """How often each symbol occurs."""
    rows = np.arange(0, len(data), max(1, len(data) // MOST))
    found = np.zeros(1)
    for some in np.array_split(rows, max(1, len(rows) // 256)):
        batch = data.batch(some, 0)
        key = next((name for name in KEYS if name in batch), None)
        if key is None:
            raise SteeringError("recipes: examples without tokens or labels; set order0=false")
        new = np.bincount(batch[key].numpy().reshape(-1))
        found = _padded(found, max(len(found), len(new))) + _padded(new, max(len(found), len(new)))
    return found


def _padded(counts: np.ndarray, size: int) -> np.ndarray:
    return np.pad(counts.astype(np.float64), (0, size - len(counts)))
