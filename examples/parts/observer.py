"""An observer in one file: the norm of the target's weights, logged while it trains, and the largest
one in the record.

train: {observers: [{name: "examples/parts/observer.py:weight_norm", every: 50}]}
"""

from dataclasses import dataclass

from steering.training.observers import OBSERVERS, Observer, ObserverOptions


class WeightNorm(Observer):
    def __init__(self, every):
        self.every, self.largest = every, 0.0

    def after_step(self, run, done, step):
        if not run.due(done, self.every):
            return
        norm = sum(float(p.detach().square().sum()) for p in run.module.parameters()) ** 0.5
        self.largest = max(self.largest, norm)
        if run.log is not None:  # on rank 0
            run.log.scalars(done, {"train/weight_norm": norm})

    def finish(self, run):
        return {"largest_weight_norm": self.largest}

    def state_dict(self):
        return {"largest": self.largest}

    def load_state_dict(self, state):
        self.largest = state["largest"]


@OBSERVERS.register("weight_norm")
@dataclass(frozen=True)
class WeightNormOptions(ObserverOptions):
    every: int = 20
    """Steps between two entries."""

    def observer(self):
        return WeightNorm(self.every)
