"""How the learning rate goes from its peak to its end: shapes that a config picks by name.

    optimizer: {lr: 1e-3, schedule: cosine}
    optimizer: {lr: 1e-3, schedule: {name: cosine, cycles: 4}, final_lr: 0.1}

A shape is a pure function of how far the run is behind its warm-up. So a resumed run, in the middle
of a cycle too, has the rates of one that was never stopped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from steering.registry import Registry
from steering.schedules import moved_share, require_span


class Decay(ABC):
    """Shape of a learning rate behind its warm-up."""

    @abstractmethod
    def __call__(self, progress: float, final: float) -> float:
        """Share of the peak.

        Args:
            progress: share of the steps behind the warm-up that is done, in [0, 1].
            final: share of the peak on which a cycle ends.
        """


DECAYS: Registry[Decay] = Registry("schedule of a learning rate", "steering.decays")


@DECAYS.register("cosine")
@dataclass(frozen=True)
class CosineDecay(Decay):
    """Half a wave, from the peak to `final`: slow, fast, slow. ValueError for no cycle at all."""

    cycles: int = 1
    """Equal parts of the run, in each of which it starts anew from the peak."""

    def __post_init__(self) -> None:
        require_span(0.0, 1.0, self.cycles)

    def __call__(self, progress: float, final: float) -> float:
        moved = moved_share(progress, 0.0, 1.0, self.cycles)
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * moved))


@DECAYS.register("linear")
@dataclass(frozen=True)
class LinearDecay(Decay):
    """A straight line from the peak to `final`. ValueError for no cycle at all."""

    cycles: int = 1
    """Equal parts of the run, in each of which it starts anew from the peak."""

    def __post_init__(self) -> None:
        require_span(0.0, 1.0, self.cycles)

    def __call__(self, progress: float, final: float) -> float:
        return 1 + (final - 1) * moved_share(progress, 0.0, 1.0, self.cycles)


@DECAYS.register("constant")
@dataclass(frozen=True)
class NoDecay(Decay):
    """The peak throughout."""

    def __call__(self, progress: float, final: float) -> float:  # noqa: ARG002
        return 1.0


def learning_rate_factor(step: int, steps: int, warmup: float, decay: Decay, final: float) -> float:
    """Share of the peak learning rate at a step: a linear warm-up, then the decay.

    Args:
        step: 0-based, of `steps` in total.
        warmup: steps of the warm-up if ≥ 1, share of all steps if below.
        final: share of the peak that the decay ends on.
    """
    # Not rounded: a share of few steps would become none.
    warm = warmup if warmup >= 1 else warmup * steps
    if step < warm:
        # From step 0 on the rate is above zero; the peak comes right after the warm-up.
        return (step + 1) / (warm + 1)
    # A warm-up longer than the run leaves nothing to divide by.
    return decay((step - warm) / max(1.0, steps - warm), final)
