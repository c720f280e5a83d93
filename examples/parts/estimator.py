"""An estimator in one file: how much of the dual of a row is believed from one batch to the next.
This one averages over the batches seen so far, each counting the same.

method: {name: drrho, estimator: "examples/parts/estimator.py:mean_so_far"}
"""

from dataclasses import dataclass

import torch

from steering.dro.online.estimators import MovingAverageDual
from steering.dro.online.specs import ESTIMATORS, EstimatorSpec


class MeanSoFar(MovingAverageDual):
    """u ← u + (g − u)/k at the k-th visit: the moving average whose rate falls as 1/k."""

    def __init__(self, num_rows, layout):
        super().__init__(num_rows, 1.0, 0, layout)
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64))

    def track(self, rows, log_g, sharded=False, *, learn=None):
        self.gamma = 1 / (1 + int(self.visits))
        found = super().track(rows, log_g, sharded, learn=learn)
        self.visits += bool(self.training if learn is None else learn)
        return found


@ESTIMATORS.register("mean_so_far")
@dataclass(frozen=True)
class MeanSoFarSpec(EstimatorSpec):
    def build(self, divergence, num_rows, layout):
        if not divergence.has_log_means:
            raise ValueError("estimator: 'mean_so_far' is for the divergence 'kl'")
        return MeanSoFar(num_rows, layout)
