"""CLIP: contrastive learning of images and texts with open_clip models."""

from tasks.clip.risk import ClipRisk
from tasks.clip.task import ClipOptions, ClipTask

__all__ = ["ClipOptions", "ClipRisk", "ClipTask"]
