"""Stored outputs of a record of kind "outputs", read without torch: losses per example and per
item.

`steering.outputs` opens the same files for training. A report must not need torch, so it reads the
arrays here.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np

from steering.errors import SteeringError
from steering.runs.record import RunRecord

NEGATIVES = 256
"""Other pairs that an anchor is compared with."""
TAU = 0.07
"""Temperature of a pair's loss: that of the contrastive defaults."""
_VALID = "valid"
_CHUNK = 8192  # anchors at a time, as a table of all would not fit into memory


@dataclass(frozen=True)
class Losses:
    """What a model says of n examples, in nats.

    Attributes:
        examples: a loss for each example, float64, (n,); NaN where the example could not be read.
        items: loss items by row, float64, (rows, m): one row of all examples or tokens, or a row
            of pairwise losses for each anchor.
        guess: loss of a model that knows nothing, where the outputs say among how many it chooses;
            NaN where they do not.
    """

    examples: np.ndarray
    items: np.ndarray
    guess: float = math.nan


def arrays_of(record: RunRecord) -> dict[str, np.ndarray]:
    """Tensors of a record of kind "outputs", (n, ...) each, and "valid", bool (n,), which examples
    could be read.

    Raises:
        SteeringError: the record holds no outputs, or their files are gone or damaged.
    """
    where = record.summary.get("outputs")
    if record.kind != "outputs" or where is None:
        raise SteeringError(f"{record.label}: a run of kind {record.kind!r} stores no outputs")
    folder = record.folder.parent / str(where)
    try:
        files = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))["files"]
        return {
            name: np.load(folder / files[name]["file"], mmap_mode="r", allow_pickle=False)
            for name in [*record.summary["tensors"], _VALID]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SteeringError(
            f"{record.label}: its outputs in {folder} cannot be read ({error}); "
            "delete that folder and the run's, and run the study again"
        ) from error


def losses_of(record: RunRecord) -> Losses:
    """Losses of a record of kind "outputs"; of pairs they are made of the features.

    A loss of several items per example (tokens) is averaged over those that are not zero, as
    padding is.
    """
    arrays = arrays_of(record)
    valid = np.asarray(arrays[_VALID])
    if "loss" in arrays:
        return _units(np.asarray(arrays["loss"], dtype=np.float64), valid)
    if {"image", "text"} <= arrays.keys():
        return pair_losses(np.asarray(arrays["image"]), np.asarray(arrays["text"]), valid)
    raise SteeringError(f"{record.label}: outputs {', '.join(arrays)} hold no losses and no pairs")


def _units(loss: np.ndarray, valid: np.ndarray) -> Losses:
    loss = np.where(valid.reshape(-1, *[1] * (loss.ndim - 1)), loss, np.nan)
    if loss.ndim == 1:
        return Losses(loss, loss[None])
    flat = loss.reshape(len(loss), -1)  # (n, tokens)
    counted = flat != 0
    mean = np.where(counted, flat, 0).sum(1) / np.maximum(counted.sum(1), 1)
    return Losses(mean, np.where(counted, flat, np.nan).reshape(1, -1))


def pair_losses(
    image: np.ndarray, text: np.ndarray, valid: np.ndarray, tau: float = TAU, rows: int = 1024
) -> Losses:
    """Losses of pairs from unit-norm features, both directions.

    The loss of a pair is the mean over its two anchors of log(1 + Σ_j exp(l_ij/τ)) over other pairs
    drawn once (InfoNCE in a batch of them); its items are l_ij = s_ij − s_ii, divided by τ, of the
    first `rows` pairs. Which pairs are drawn depends on n alone: two models are compared on the
    same ones.

    Args:
        image, text: (n, d), (n, d).
        valid: bool, (n,).
    """
    n = len(image)
    others = np.random.default_rng(n).choice(n, size=min(NEGATIVES, n), replace=False)
    losses, items = np.zeros(n), []
    for anchor, other in ((image, text), (text, image)):
        negatives = np.asarray(other[others], dtype=np.float64)
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            scores = anchor[part].astype(np.float64) @ negatives.T  # (b, m)
            positive = np.einsum("nd,nd->n", anchor[part], other[part], dtype=np.float64)
            own = np.arange(n)[part, None] == others[None]
            excess = np.where(own | ~valid[others], np.nan, (scores - positive[:, None]) / tau)
            losses[part] += np.log1p(np.nansum(np.exp(excess), axis=1)) / 2
            if start < rows:
                items.append(np.where(valid[part, None], excess, np.nan)[: rows - start])
    guess = math.log1p(valid[others].sum())
    return Losses(np.where(valid, losses, np.nan), np.concatenate(items), guess)
