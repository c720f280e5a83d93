"""A task in one file: a network learns the sine from noisy points. A config for it:

task: {name: "examples/parts/task.py:Waves", points: 256}
target: mlp
method: erm
train: {samples: 2560, batch_size: 32}
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from steering import IndexedData, ReferenceRisk, Task, Units
from steering.data import uniform
from steering.runs.record import Metric
from steering.storage import sha256
from steering.task import Evaluation, Model, scores_of


@dataclass
class WavesOptions:
    name: str = "examples/parts/task.py:Waves"
    points: int = 256
    """Training examples."""


class Points(IndexedData):
    def __init__(self, n, noise):
        x = uniform(0, np.arange(n))[:, None] * 6 - 3  # a function of the number alone
        y = np.sin(x) + noise * (uniform(1, np.arange(n))[:, None] - 0.5)
        self.x, self.y = torch.from_numpy(x).float(), torch.from_numpy(y).float()  # (n, 1)

    def __len__(self):
        return len(self.x)

    def batch(self, index, epoch):
        rows = torch.from_numpy(index)
        return {"x": self.x[rows], "y": self.y[rows], "index": rows}

    def fingerprint(self):
        return sha256([self.x.numpy().tobytes(), self.y.numpy().tobytes()])


class SquaredError(ReferenceRisk):
    def outputs(self, model, batch):
        return {"loss": (model(batch["x"]) - batch["y"]).square().mean(-1)}  # (b,)

    def losses(self, target, reference, batch):
        return Units(target["loss"], None if reference is None else reference["loss"])


class Waves(Task):
    Options = WavesOptions
    metrics = {"error": Metric(percent=False, higher_is_better=False)}  # noqa: RUF012

    def __init__(self, options):
        self.options, self.risk = options, SquaredError()

    def network(self, spec):
        module = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
        return Model(module, inputs=None, inputs_fingerprint="numbers as they are")

    def train_data(self, target, reference, seed):
        return Points(self.options.points, noise=0.5)

    def plain_data(self, model):
        return Points(self.options.points, noise=0.5)

    @torch.no_grad()
    def evaluate(self, model, device):
        batch = Points(500, noise=0.0).batch(np.arange(500), 0)
        batch = {key: value.to(device) for key, value in batch.items()}
        return Evaluation({"test/error": scores_of(self.risk.outputs(model.module, batch)["loss"])})
