"""What a config says of observers: entries of `train.observers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from steering.registry import Registry
from steering.training.observers.observer import Observer


class ObserverOptions(ABC):
    """An entry of `train.observers`: a frozen dataclass, registered in `OBSERVERS`."""

    @abstractmethod
    def observer(self) -> Observer:
        """Make the observer; ValueError where an option is out of range."""


OBSERVERS: Registry[ObserverOptions] = Registry("observer", "steering.observers")


@OBSERVERS.register("ema")
@dataclass(frozen=True)
class EmaOptions(ObserverOptions):
    """A moving average of the target's weights.

    Raises:
        ValueError: a decay outside [0, 1).
    """

    decay: float = 0.999
    """Share of the average that stays at a step, in [0, 1)."""
    warm: bool = True
    """Begin with a smaller one, (1 + t)/(10 + t) at step t, so that a short run forgets its random
    start."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), got {self.decay}")

    def observer(self) -> Observer:
        # Late: a config is checked without what trains, which in turn knows the config.
        from steering.training.observers.ema import Ema

        return Ema(self)
