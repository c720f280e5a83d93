"""Image classification: torchvision and timm models, any folder or torchvision data set, noisy
labels, groups."""

from .task import ClassificationOptions, ClassificationTask

__all__ = ["ClassificationOptions", "ClassificationTask"]
