"""Training blocks that a run is surest of."""

from __future__ import annotations

import numpy as np

from steering.derived import Derive, scores
from steering.task import Task

from ..transforms import kept_by_scores
from .data import Blocks


def derived(blocks: Blocks, given: Derive, task: Task) -> Blocks:
    """The blocks that a `derive` section keeps: of the lowest mean score over their tokens."""
    if given.scored_by is None or given.keep.share == 1:
        return blocks
    found = scores(given.scored_by, given.keep.score, task, lambda _: blocks)  # (m, T)
    mask = np.arange(found.shape[1]) < blocks.counts[:, None]
    means = np.where(mask, found, 0.0).sum(1) / blocks.counts
    return blocks.take(kept_by_scores(means, given.keep.share, not given.keep.highest, "blocks"))
