"""Image classification: torchvision and timm models, any folder or torchvision data set, noisy
labels, groups."""

from tasks.classification.task import ClassificationOptions, ClassificationTask

__all__ = ["ClassificationOptions", "ClassificationTask"]
