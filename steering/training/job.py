"""What one training run needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from steering.data import IndexedData
from steering.methods.registry import Method
from steering.reference.frozen import Reference
from steering.schema import TrainConfig
from steering.task import Model, Task
from steering.training.recipes import Recipe


@dataclass
class Job:
    """Everything that one training run needs.

    Attributes:
        folder: of the run: checkpoints/, TensorBoard events, metrics.jsonl, scores.npz,
            model.safetensors, result.json.
        title: for the progress line.
        carried: state of another run's optimiser that this one's begins with; None: a fresh one.
        identity: strings that say which run this is; a checkpoint with others is refused.
        config: the run's config as YAML, kept as config.yaml beside the results; None keeps none.
    """

    folder: Path
    title: str
    task: Task
    target: Model
    reference: Reference | None
    method: Method
    data: IndexedData
    optimizer: Recipe
    train: TrainConfig
    seed: int
    device: torch.device
    carried: dict[str, Any] | None = None
    identity: dict[str, str] = field(default_factory=dict)
    config: str | None = None
