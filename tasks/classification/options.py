"""The `task:` section of a classification config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from steering.derived import DeriveLabels
from steering.errors import SteeringError
from steering.registry import chosen

from ..transforms import Duplicate, require_dedup, require_part
from .losses import LOSSES, CrossEntropy, LabelLoss
from .merged import require_members
from .recipe import ImagesFilter
from .shares import require_shares

SOURCES = (
    *("digits", "coloured_digits", "digits_on_photographs"),
    *("arrays", "folder", "table", "torchvision", "glyphs", "stdlib", "texts"),
)
EMBEDDED = ("digits", "coloured_digits", "glyphs", "stdlib")
TEXTS = ("stdlib", "texts")
GROUPED = ("coloured_digits", "digits_on_photographs", "table", *TEXTS)
AUGMENTATIONS = ("none", "crop", "flip-crop")


@dataclass
class ClassificationData:
    """Labelled images, or texts."""

    source: str = "digits"
    """"digits", "coloured_digits" and "glyphs" (embedded), "digits_on_photographs", "arrays" (.npz
    files), "folder" (a sub-folder per class), "table" (a CSV that names files) or "torchvision"; of texts
    "stdlib" (embedded) or "texts" (a table, or files by class)."""
    path: str | None = None
    """arrays: the training .npz with "image" and "label"; digits_on_photographs: that of the
    photographs; folder: the training folder; table: the CSV; torchvision: where the data lie;
    texts: a .csv, .tsv or .jsonl, or files by class, such as texts/{class}/*.txt."""
    test_path: str | None = None
    """arrays, digits_on_photographs, folder and texts: the same for the test part."""
    dataset: str | None = None
    """torchvision: the data set's class, such as CIFAR10."""
    download: bool = False
    """torchvision: fetch the data if they are not there."""
    options: dict[str, Any] = field(default_factory=dict)
    """torchvision: further arguments of the class for both parts, such as {split: letters} of
    EMNIST; coloured_digits: label, minority, test_minority, cue, seed; digits_on_photographs:
    digits, kinds, opacity, label, minority, test_minority, count, test_count, seed; glyphs:
    characters; table: image, label, split, train, test, group, spurious, goes_with, root; stdlib and texts: length, pieces,
    kinds, marks, minority, test_minority, seed; stdlib: modules; texts: text, label, group,
    spurious, separator."""
    train_options: dict[str, Any] = field(default_factory=dict)
    """torchvision: arguments for the training part, such as {split: trainval}; absent: by the usual
    names."""
    test_options: dict[str, Any] = field(default_factory=dict)
    """torchvision: arguments for the test part, such as {split: val}; absent: by the usual
    names."""
    part: tuple[float, float] = (0.0, 1.0)
    """The training examples whose seeded hash lies in [low, high): [0, 0.2] for a reference, [0.2,
    1] for its target."""
    reserved: float = 0.0
    """Share of the training examples that are kept from training, drawn at random: the part
    "reserved", on which weights of models are fitted."""
    class_shares: dict[int, float] = field(default_factory=dict)
    """Class number -> share of its training examples to keep: makes a class rare."""
    label_noise: float = 0.0
    """Probability that a training label is replaced by another class, each as likely."""
    labels: str | None = None
    """A file of training labels that replace the source's: FILE.npy, FILE.npz:KEY, FILE.pt:KEY, or
    text with one a line."""
    merge: dict[str, list[Any]] = field(default_factory=dict)
    """Name of a class -> classes of the source that become it, by their names or numbers, each once;
    empty: the source's own. A file of `labels` has numbers of the source's classes."""
    groups: str | None = None
    """"class": a group for each class as labelled in training; "source": those that the source
    knows (coloured_digits, digits_on_photographs, table) or `group_classes`; or a file of group
    numbers, as `labels`; null: no groups."""
    group_classes: dict[str, list[Any]] = field(default_factory=dict)
    """Name of a group -> classes of the source (before `merge`) that are in it, each once: with
    groups "source"."""
    test_groups: str | None = None
    """The same for the test part, when `groups` is a file."""
    group_shares: dict[int, float] = field(default_factory=dict)
    """Group number -> share that it shall have among the training examples; what is too many of the
    others is left out."""
    blur: float = 0.0
    """Gaussian blur of the training images: its standard deviation in pixels."""
    dedup: str = "none"
    """Leave out training images that stand there already: "exact" (the same pixels) or "near" (the
    same difference hash of 64 bits); "none": all stay."""
    filter: ImagesFilter = field(default_factory=ImagesFilter)
    """Which training images stay."""
    duplicate: Duplicate = field(default_factory=Duplicate)
    """Training images that stand there several times."""
    mix: dict[int, float] = field(default_factory=dict)
    """Group number, or class number where there are no groups -> weight in the training data, some
    repeated and some left out; without a weight: none; empty: as they come."""
    derive: DeriveLabels = field(default_factory=DeriveLabels)
    """Labels, or a subset, by what a finished run says of these very examples."""
    augment: str = "none"
    """"none", "crop" (moved by up to an eighth) or "flip-crop" (also mirrored)."""
    seed: int = 0
    """Chooses part, mix, copies and noise; independent of the run's seed."""

    def __post_init__(self) -> None:
        needs = {
            **dict.fromkeys(EMBEDDED, ()),
            "digits_on_photographs": ("path", "test_path"),
            "arrays": ("path", "test_path"),
            "table": ("path",),
            "folder": ("path", "test_path"),
            "texts": ("path", "test_path"),
        }
        if self.source not in SOURCES:
            raise SteeringError(
                f"source: expected one of {', '.join(SOURCES)}, got {self.source!r}"
            )
        for key in needs.get(self.source, ("path", "dataset")):
            if not getattr(self, key):
                raise SteeringError(f"{key}: needed for source {self.source!r}")
        # Somebody's own data must not give way to embedded ones without a word.
        embedded = self.source in EMBEDDED
        unread = {"path": embedded, "test_path": embedded or self.source == "table"}
        for key in unread:
            if unread[key] and getattr(self, key):
                raise SteeringError(
                    f"{key}: source {self.source!r} does not read it; set source, or leave it out"
                )
        for key in ("options", "train_options", "test_options"):
            own = key == "options" and self.source in (*GROUPED, "glyphs")
            if getattr(self, key) and self.source != "torchvision" and not own:
                raise SteeringError(
                    f"{key}: for source 'torchvision' alone, got source {self.source!r}"
                )
        if self.augment not in AUGMENTATIONS:
            raise SteeringError(
                f"augment: expected one of {', '.join(AUGMENTATIONS)}, got {self.augment!r}"
            )
        require_dedup(self.dedup)
        if self.source in TEXTS:
            self._require_texts()
        if self.blur < 0:
            raise SteeringError(f"blur: expected a number of pixels >= 0, got {self.blur}")
        if self.mix and not all(0 <= weight < math.inf for weight in self.mix.values()):
            raise SteeringError(f"mix: expected numbers >= 0, got {self.mix}")
        require_part(self.part)
        if not 0 <= self.reserved < 1:
            raise SteeringError(f"reserved: expected a number in [0, 1), got {self.reserved}")
        if not 0 <= self.label_noise <= 1:
            raise SteeringError(f"label_noise: expected a number in [0, 1], got {self.label_noise}")
        for label, share in self.class_shares.items():
            if label < 0 or not 0 < share <= 1:
                raise SteeringError(
                    f"class_shares: expected class number -> share in (0, 1], got {label}: {share}"
                )
        if self.groups == "source" and self.source not in GROUPED and not self.group_classes:
            raise SteeringError(
                f"groups: source {self.source!r} knows of none; give a file, or set group_classes"
            )
        if self.group_classes and self.groups != "source":
            raise SteeringError(f"group_classes: wants groups: source, got {self.groups}")
        for key in ("merge", "group_classes"):
            require_members(getattr(self, key), key)
        if self.group_shares and self.groups is None:
            raise SteeringError("group_shares: there are no groups; set groups")
        require_shares(self.group_shares)
        if self.groups not in (None, "class", "source") and not self.test_groups:
            raise SteeringError("test_groups: needed when groups is a file")

    def _require_texts(self) -> None:
        """SteeringError for what can be done to pictures alone."""
        given = {
            "blur": self.blur != 0,
            "augment": self.augment != "none",
            "dedup": self.dedup == "near",
            "filter.side": self.filter.side != 0,
        }
        if wrong := [key for key, is_set in given.items() if is_set]:
            more = "; expected none or exact" if wrong[0] == "dedup" else ""
            raise SteeringError(
                f"{wrong[0]}: is for images, and source {self.source!r} has texts{more}"
            )


@dataclass
class ClassificationOptions:
    """The `task:` section of a classification config."""

    name: str = "classification"
    """Says which task this is."""
    data: ClassificationData = field(default_factory=ClassificationData)
    """Labelled images."""
    loss: LabelLoss = chosen(LOSSES, CrossEntropy())
    """Of an example, the target's and the reference's: cross_entropy, or {name: gce, q: 0.7}."""
