"""The contract of a method: what it asks of a run, what it is given, what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from steering.items import LossItems

if TYPE_CHECKING:
    from steering.methods.selection import Selector

Metrics = Mapping[str, Tensor]


@dataclass(frozen=True)
class Needs:
    """What a method asks of a run; a pure function of its options (`Entry.needs`).

    Attributes:
        reference: whether a reference is loaded at all.
        logits: whether loss items must carry whole distributions, of the target and the reference.
    """

    reference: bool = False
    logits: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.reference or other.reference, self.logits or other.logits)

    @property
    def outputs(self) -> str:
        """The kind of outputs that it needs of a reference; see `steering.outputs.kinds`."""
        return "logits" if self.logits else "losses"


@dataclass(frozen=True)
class Step:
    """What a method makes of one batch.

    Attributes:
        loss: scalar to descend; averaged over the ranks its gradient is that of the global batch.
        metrics: scalars for the log, detached, () each; or a function that computes them, which is
            called only for the steps that are logged.
        weights: of this process's items, detached, up to a factor: the shape of their losses; of b
            pairs (b,), or (2, b) of the anchors, images first. None: all items weigh the same.
        items: what the method was given, filled in by training; for who looks on.
        index: numbers of this process's examples, int64, (b,); likewise.
    """

    loss: Tensor
    metrics: Metrics | Callable[[], Metrics] = field(default_factory=dict)
    weights: Tensor | None = None
    items: LossItems | None = None
    index: Tensor | None = None

    def scalars(self) -> dict[str, Tensor]:
        """The metrics, computed if that has been left for later. Every rank calls this, or none."""
        found = self.metrics() if callable(self.metrics) else self.metrics
        return dict(found)


class Method(nn.Module, ABC):
    """Loss items in, one loss out. Buffers hold its memory, parameters what it learns (a
    temperature).

    The memory may change in train mode with gradients on, and at no other time:
    `steering.dro.online.estimator.learning` tells.

    Attributes:
        needs: what it asks of a run; filled in by `build_method`.
        selector: chooses examples before they are trained on; None: all are. `forward` sees the
            chosen ones alone.
    """

    needs: Needs = Needs()
    selector: Selector | None

    def __init__(self) -> None:
        super().__init__()
        # Set here, not on the class: torch keeps a module apart, and a class's None would hide it.
        self.selector = None

    @abstractmethod
    def forward(self, items: LossItems) -> Step: ...

    def at(self, progress: float) -> None:
        """Called before every step with the share of the steps that are done, in [0, 1): where
        schedules move."""

    def start_epoch(self, epoch: int) -> None:
        """Called with 0, 1, ... before the first batch of each pass over the data, and again after
        a resume."""

    def summary(self) -> dict[str, Any]:
        """What a finished run tells beside its metrics, for result.json: plain values, such as
        DoReMi's data mix."""
        return {}

    def without_groups(self, groups: Sequence[int]) -> None:
        """Called once before training with the numbers of the groups that no training example
        belongs to, if there are any.

        They must get no weight from then on. A method that weights groups and has no such function
        is refused for such data.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot leave groups out")

    def logit_scale(self) -> float | None:
        """1/τ of the distributions that a model of pairs has been trained with; None: nobody can
        tell.

        Only asked of pairs, once a run, and on all ranks.
        """
        return None
