"""Which classes a zero-shot evaluation tells apart, and by which prompts: a config's own, or a list of
open_clip's by its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from steering.errors import SteeringError
from steering.values import quote_it, shown

SYNSETS = "imagenet"
CLASSES = {SYNSETS: "IMAGENET_CLASSNAMES"}
TEMPLATES = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}


@dataclass
class ZeroShot:
    """Zero-shot classification of a folder of images, one sub-folder per class."""

    path: str | None = None
    """The folder; null: not evaluated."""
    classes: Any = None
    """Name of each class, in the alphabetical order of the sub-folders; "imagenet": open_clip's, of
    its 1,000 synsets; null: the sub-folders' names."""
    templates: Any = field(default_factory=lambda: ["a photo of a {}."])
    """Prompts whose features are averaged; the class name takes the place of {}. "openai" and
    "simple": open_clip's 80 and 7 for ImageNet."""

    def __post_init__(self) -> None:
        if self.classes is not None:
            _require_texts("classes", self.classes, CLASSES)
        _require_texts("templates", self.templates, TEMPLATES)
        if not self.templates:
            raise SteeringError("templates: expected at least one, such as 'a photo of a {}.'")
        for template in [] if isinstance(self.templates, str) else self.templates:
            if "{}" not in template:
                raise SteeringError(f"templates: {template!r} has no {{}} for the class name")

    @property
    def synsets(self) -> bool:
        """Whether the names are in the order of ImageNet's sub-folders, n01440764 and so on."""
        return bool(self.classes == SYNSETS)

    def class_names(self) -> list[str] | None:
        """The names as a list; None: the sub-folders' names."""
        if self.classes is None:
            return None
        return list(_of_open_clip(CLASSES, self.classes) or self.classes)

    def prompts(self) -> list[str]:
        """The prompts, with a "{}" each."""
        found = _of_open_clip(TEMPLATES, self.templates)
        return list(self.templates) if found is None else [prompt("{}") for prompt in found]


def _require_texts(key: str, value: Any, named: dict[str, str]) -> None:
    if isinstance(value, str) and value in named:
        return
    if not isinstance(value, list | tuple):
        names = " or ".join(named)
        raise SteeringError(f"{key}: expected a list of texts, or {names}; got {shown(value)}")
    for entry in value:
        if not isinstance(entry, str):
            raise SteeringError(f"{key}: expected texts, got {shown(entry)}{quote_it(entry)}")


def _of_open_clip(named: dict[str, str], value: Any) -> Any:
    """The list that a name stands for; None for any other value."""
    if not isinstance(value, str):
        return None
    import open_clip  # here, as it takes seconds

    return getattr(open_clip, named[value])
