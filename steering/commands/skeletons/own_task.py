"""A task of your own: two classes of points, some training labels wrong. Change what is marked with
"<-"; the contracts stand in docs/guide-extend.md."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steering.data import uniform
from steering.extend import Evaluation, IndexedData, Model, ReferenceRisk, Task, Units, scores_of
from steering.runs.record import Metric
from steering.storage import sha256


@dataclass
class OwnTaskOptions:
    """The section `task:` of a config."""

    name: str = "own_task.py:OwnTask"
    examples: int = 5000
    """Training examples, those of the reference included."""
    noise: float = 0.0
    """Share of the training labels that are wrong."""
    part: list[float] = field(default_factory=lambda: [0.2, 1.0])
    """Which share of the examples is used; that of the reference is another one."""


class Points(IndexedData):
    """<- Your data: examples with fixed numbers, a batch of them by their numbers."""

    def __init__(self, numbers: np.ndarray, noise: float) -> None:
        # Random numbers are functions of an example's number alone, so that they do not depend on
        # the order, on the loader's processes, or on where a run was stopped.
        x = np.stack([uniform(key, numbers) for key in range(4)], axis=1) * 4 - 2  # (n, 4)
        y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).astype(np.int64)
        y = np.where(uniform(9, numbers) < noise, 1 - y, y)
        self.x, self.y = torch.from_numpy(x).float(), torch.from_numpy(y)  # (n, 4), (n,)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """The examples of these positions; `epoch` is for augmentation that changes."""
        rows = torch.from_numpy(index)
        return {"x": self.x[rows], "y": self.y[rows], "index": rows}

    def fingerprint(self) -> str:
        """What a cache of the reference's losses must not mix up."""
        return sha256([self.x.numpy().tobytes(), self.y.numpy().tobytes()])


class CrossEntropy(ReferenceRisk):
    """<- Your loss: one number for each example, of the target and of the reference alike."""

    def outputs(self, model: nn.Module, batch: Any, logits: bool = False) -> dict[str, Tensor]:
        answer = model(batch["x"])  # (b, 2)
        found = {"loss": F.cross_entropy(answer, batch["y"], reduction="none")}  # (b,)
        return found | {"logits": answer} if logits else found

    def losses(self, target: Any, reference: Any, batch: Any) -> Units:
        given = reference or {}  # without a reference there are no losses of it
        logits = {"logits": target.get("logits"), "reference_logits": given.get("logits")}
        return Units(target["loss"], given.get("loss"), **logits)


class OwnTask(Task):
    """Data, networks and evaluation, named by a config as "own_task.py:OwnTask"."""

    Options = OwnTaskOptions
    metrics = {"test/accuracy": Metric(percent=True, higher_is_better=True)}  # noqa: RUF012

    def __init__(self, options: OwnTaskOptions) -> None:
        self.options, self.risk = options, CrossEntropy()

    def network(self, spec: Any) -> Model:
        """<- The model that `target:` or `reference:` names, with its `options`."""
        width = spec.options.get("width", 32)
        module = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        return Model(module, inputs=None, inputs_fingerprint="numbers as they are")

    def train_data(self, target: Any, reference: Any, seed: int) -> Points:
        start, stop = (round(share * self.options.examples) for share in self.options.part)
        return Points(np.arange(start, stop), self.options.noise)

    def plain_data(self, model: Any) -> Points:
        """The same without augmentation, for a cache."""
        return self.train_data(None, None, 0)

    @torch.no_grad()
    def evaluate(self, model: Any, device: torch.device) -> Evaluation:
        """<- What counts, on examples that nobody has trained on, with right labels."""
        numbers = np.arange(10**6, 10**6 + 2000)
        batch = Points(numbers, noise=0.0).batch(np.arange(2000), 0)
        right = model.module(batch["x"].to(device)).argmax(1).cpu() == batch["y"]
        return Evaluation({"test/accuracy": scores_of(right.float())})
