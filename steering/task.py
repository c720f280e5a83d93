"""The contract of a task: one domain's data, models, losses and evaluation. The framework knows
tasks by name only."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.exhibits import Exhibit, Judged, Labels
from steering.extras import explained
from steering.plugins import installed, load_file, load_module
from steering.risk import Batch, ReferenceRisk
from steering.runs.record import Metric, Scores
from steering.weights import load_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


class Tokenizer(Protocol):
    """Text to tokens and back; `end` is the token after a document."""

    end: int

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, tokens: list[int]) -> str: ...


@dataclass(frozen=True)
class TextModel:
    """A causal language model that can be asked to write.

    Attributes:
        network: called as the causal models of `transformers` are.
        limit: most tokens of a row; None: no limit that is known.
    """

    network: nn.Module
    tokens: Tokenizer
    limit: int | None


@dataclass(frozen=True)
class Sketch:
    """A model in outline: every tensor of it, and of the batch, is on the "meta" device.

    Attributes:
        model: the network; its inputs are real.
        batch: one example, what `ReferenceRisk.outputs` reads of it.
    """

    model: Model
    batch: Batch


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: scores first, everything else is made of them.

    Attributes:
        scores: name -> one number for each evaluated example, in an order that is the same for
            every model. The mean of each is a metric of the same name, unless `metrics` says
            otherwise.
        metrics: further figures: those of `of`, and what is no mean of scores (a calibration error,
            a worst group).
        meaning: of metrics that are no shares of which more is better, or that are made of scores
            of other names; what a task's `metrics` says of a name holds for the rest.
        figures: pictures for TensorBoard.
        loss: mean loss of the evaluated examples, in the unit of the training's loss items; None
            where a task has no such number.
        judged: the evaluated examples with their losses, so that TensorBoard can show the worst;
            None where a task shows none.
    """

    scores: Mapping[str, Scores] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    meaning: Mapping[str, Metric] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    loss: float | None = None
    judged: Judged | None = None

    def values(self) -> dict[str, float]:
        """Every metric: the means of the scores that stand for themselves, then the further
        ones."""
        parts = {name for meaning in self.meaning.values() for name in meaning.of}
        own = {name: score.mean() for name, score in self.scores.items() if name not in parts}
        return {name: float(value) for name, value in (own | dict(self.metrics)).items()}

    def meanings(self, styles: Mapping[str, Metric]) -> dict[str, Metric]:
        """What each metric of `values` means; `styles` are a task's `metrics`."""
        found = {}
        for name in self.values():
            shown = styles.get(name.rpartition("/")[2]) or styles.get(
                name.partition("/")[0], Metric()
            )
            shown = self.meaning.get(name, shown)
            found[name] = (
                replace(shown, of=(name,)) if not shown.of and name in self.scores else shown
            )
        return found


def scores_of(values: Tensor, weights: Tensor | None = None) -> Scores:
    """Scores from tensors, (n,), on any device."""
    array = values.detach().double().cpu().numpy()
    return Scores(array, np.ones(len(array)) if weights is None else weights.double().cpu().numpy())


class Task(ABC):
    """One domain. Implementations are built from their options only, and hold no model."""

    Options: ClassVar[type]
    """The dataclass of the `task:` section; its first field is `name`."""
    units: ClassVar[tuple[str, ...]] = ("example",)
    """What its losses can belong to, by its options: some of "example", "token", "sequence",
    "pair"."""
    may_have_groups: ClassVar[bool] = False
    """Whether its examples can belong to groups (domains, subpopulations)."""
    metrics: ClassVar[Mapping[str, Metric]] = {}
    """What metrics mean that are no shares of which more is better, by the last part of the name,
    else the first."""

    risk: ReferenceRisk
    groups: tuple[str, ...] = ()
    """Names of the groups that `Units.groups` numbers; empty when the data have none."""

    @abstractmethod
    def __init__(self, options: Any) -> None: ...

    def build(self, spec: ModelSpec) -> Model:
        """The model of a spec with all of its weights, on the CPU, in train mode.

        Raises:
            SteeringError: it cannot be had, or `checkpoint` holds another architecture's weights.
        """
        model = self.network(spec)
        if spec.checkpoint is not None:
            load_weights(Path(spec.checkpoint), model.module)
        model.module.train()
        return model

    @abstractmethod
    def network(self, spec: ModelSpec) -> Model:
        """The network of a spec, with the `pretrained` weights if it names some; those of its
        `checkpoint` are loaded by `build`.

        Raises:
            SteeringError: it cannot be had.
        """

    def sketch(self, spec: ModelSpec) -> Sketch:
        """The network of a spec without weights and one example for it, on the "meta" device: shapes
        without numbers, for `steering dry-run`.

        By default the network is built as usual, with random weights, and the example is one of the
        data. A task that knows their shapes without the data, or whose models are large, has a
        `sketch` of its own.

        Raises:
            SteeringError: it cannot be had.
        """
        model = self.network(replace(spec, pretrained=None, checkpoint=None))
        batch = self.plain_data(model).batch(np.arange(1), 0)
        module = model.module.to("meta")
        on_meta = {key: value.to("meta") for key, value in batch.items()}
        return Sketch(replace(model, module=module), on_meta)

    @abstractmethod
    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:
        """Training examples prepared for the target, and for the reference too when one runs live
        beside it.

        `reference` is None when there is no reference or its outputs come from a cache.
        """

    @abstractmethod
    def plain_data(self, model: Model) -> IndexedData:
        """The same examples under the same numbers for one model, without augmentation: what a
        reference cache is built on."""

    @abstractmethod
    def evaluate(self, model: Model, device: torch.device) -> Evaluation:
        """Scores, metrics and pictures of a model in eval mode; names like
        "heldout_images/image_to_text_R@1".

        Every process of a run calls this, each evaluates its share of the examples
        (`steering.distributed.share`), and all return the whole
        (`steering.distributed.gather_uneven`). An example that cannot be read is left out, counted
        and reported, never replaced.
        """

    def labels(self) -> Labels:
        """What is known of the training examples' labels, under their numbers; by default
        nothing."""
        return Labels()

    def exhibits(self, numbers: Sequence[int]) -> list[Exhibit]:  # noqa: ARG002
        """Training examples for a person to look at, without augmentation; one that cannot be read
        says so in its text. A task that has none raises SteeringError."""
        raise SteeringError(f"{type(self).__name__} shows no examples: it has no exhibits()")

    def held_out_data(self, model: Model) -> Mapping[str, IndexedData]:  # noqa: ARG002
        """The evaluated examples as numbered data, by part, where the task has such: what outputs
        can be stored of."""
        return {}

    def documents(self) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
        """Training and validation texts by domain, for tasks of texts; others raise
        SteeringError."""
        raise SteeringError("task.name: needs a task of texts, such as language")

    def text_model(self, model: Model) -> TextModel:  # noqa: ARG002
        """A model as one that writes, for tasks of texts; others raise SteeringError."""
        raise SteeringError("task.name: needs a task of texts, such as language")


def find_task(name: str) -> type[Task]:
    """The task class of a config's `task.name`.

    Args:
        name: an entry point in the group "steering.tasks" ("clip"), "package.module:Class", or
            "path/to/file.py:Class".

    Raises:
        SteeringError: nothing of that name can be loaded; the message lists what is installed.
    """
    known = installed("steering.tasks")
    if name in known:
        with explained(f"the task {name!r}", name):
            return known[name].load()
    where, colon, attribute = name.rpartition(":")
    if not colon:
        raise SteeringError(
            f"task.name: no task {name!r}; installed: {', '.join(sorted(known))}; or give 'file.py:Class'"
        )
    module = (load_file if where.endswith(".py") else load_module)(where, "task.name")
    found = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise SteeringError(
            f"task.name: {where} has no subclass of steering.Task named {attribute!r}"
        )
    return found
