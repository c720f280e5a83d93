"""CLIP: contrastive learning of images and texts with open_clip models."""

from .risk import ClipRisk
from .task import ClipOptions, ClipTask

__all__ = ["ClipOptions", "ClipRisk", "ClipTask"]
