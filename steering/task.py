"""The contract of a task: one domain's data, models, losses and evaluation. The framework knows tasks by name only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import nn

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.plugins import load_file, load_module
from steering.risk import ReferenceRisk


@dataclass
class ModelSpec:
    """Which model: the `target:` section of a config, and the first half of `reference:`."""

    name: str = "???"
    """Architecture, in the task's own terms: for CLIP an open_clip name or a JSON file."""
    pretrained: str | None = None
    """A published set of weights, in the task's own terms: for CLIP an open_clip tag or a file."""
    checkpoint: str | None = None
    """A `model.safetensors` of ours; its weights are loaded last."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the architecture."""


@dataclass(frozen=True)
class Model:
    """A network together with what its inputs need."""

    module: nn.Module
    inputs: Any
    """Transforms, tokenizers, ...: made and read by the task alone."""
    inputs_fingerprint: str
    """Hex digest of the preprocessing: two models with the same one can share a batch."""


@dataclass(frozen=True)
class Metric:
    """How to show a metric."""

    percent: bool = True
    """A share, shown in percent; else shown as it is."""
    higher_is_better: bool = True


class Task(ABC):
    """One domain. Implementations are built from their options only, and hold no model."""

    Options: ClassVar[type]
    """The dataclass of the `task:` section; its first field is `name`."""
    units: ClassVar[tuple[str, ...]] = ("example",)
    """What its losses can belong to, by its options: some of "example", "token", "sequence", "pair"."""
    may_have_groups: ClassVar[bool] = False
    """Whether its examples can belong to groups (domains, subpopulations)."""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    """How to show metrics that are no shares of which more is better, by the last part of the name, else the first."""

    risk: ReferenceRisk
    groups: tuple[str, ...] = ()
    """Names of the groups that `Units.groups` numbers; empty when the data have none."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    @abstractmethod
    def build(self, spec: ModelSpec) -> Model:
        """The network of a spec, weights loaded, on the CPU, in train mode. Raises SteeringError when it cannot be had."""

    @abstractmethod
    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:
        """Training examples prepared for the target, and for the reference too when one runs live beside it.

        `reference` is None when there is no reference or its outputs come from a cache.
        """

    @abstractmethod
    def plain_data(self, model: Model) -> IndexedData:
        """The same examples under the same numbers for one model, without augmentation: what a reference cache is built on."""

    @abstractmethod
    def evaluate(self, model: Model, device: torch.device) -> dict[str, float]:
        """Metrics of a model in eval mode; names like "heldout_images/image_to_text_R@1". See `metrics` for their meaning."""

    @abstractmethod
    def figures(self, model: Model, device: torch.device) -> Mapping[str, Figure]:
        """Pictures for TensorBoard on a fixed set of examples; may be empty."""


def weights_state(module: nn.Module) -> tuple[object, ...]:
    """Changes whenever a parameter or buffer does: tells whether what was computed of a module still holds."""
    tensors = [*module.parameters(), *module.buffers()]
    return id(module), *((id(tensor), tensor._version) for tensor in tensors)


def find_task(name: str) -> type[Task]:
    """The task class of a config's `task.name`.

    Args:
        name: an entry point in the group "steering.tasks" ("clip"), "package.module:Class", or "path/to/file.py:Class".

    Raises:
        SteeringError: nothing of that name can be loaded; the message lists what is installed.
    """
    known = {point.name: point for point in entry_points(group="steering.tasks")}
    if name in known:
        return known[name].load()
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise SteeringError(
            f"task.name: no task {name!r}; installed: {', '.join(sorted(known))}; or give 'file.py:Class'"
        )
    module = (load_file if where.endswith(".py") else load_module)(where, "task.name")
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise SteeringError(f"task.name: {where} has no subclass of steering.Task named {attribute!r}")
    return found
