"""Observers of a run, by name. Importing this registers ours."""

from steering.training.observers.observer import Observer
from steering.training.observers.options import OBSERVERS, EmaOptions, ObserverOptions

__all__ = ["OBSERVERS", "EmaOptions", "Observer", "ObserverOptions"]
