"""What looks on while a run trains.

    train: {observers: [{name: ema, decay: 0.999}]}

A log, evaluations and checkpoints are observers that every run has: `train.log_every`, `eval_every`
and `save_every` say when. Further ones are chosen by name. One of one's own is a frozen dataclass
with its options, registered in `OBSERVERS`, that makes an `Observer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.methods.registry import Step
    from steering.training.state import State


class Observer:
    """Looks on. Every function does nothing until it is overridden.

    All ranks have the same observers, and call each function together. An observer may not change
    what is trained: it reads `run.module`, and leaves random states as they were.
    """

    def begin(self, run: State) -> None:
        """Called once, before a checkpoint is taken over."""

    def start(self, run: State, step: int) -> None:
        """Called once, before the first step that is made: 0, or where a resumed run goes on."""

    def after_step(self, run: State, done: int, step: Step) -> None:
        """Called after every step.

        Args:
            done: steps that are done, from 1.
            step: loss and metrics of this one. `step.scalars()` must be asked on all ranks.
        """

    def finish(self, run: State) -> dict[str, Any]:  # noqa: ARG002
        """Called after the last step; plain values for the `summary` of result.json."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold for a resumed run to end as one that was never stopped."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def close(self) -> None:
        """Called at the end, also when the run has failed."""
