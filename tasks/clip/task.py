"""The CLIP task: options, data, models, evaluation, tied together for the framework."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.storage import cache_dir
from steering.task import Model, ModelSpec, Task
from tasks.clip.data.glyph_data import GlyphData, glyph_retrieval
from tasks.clip.data.pairs import PairData, View
from tasks.clip.data.shards import ShardSource
from tasks.clip.data.source import ImageTextSource, Unreadable
from tasks.clip.data.table import TableSource
from tasks.clip.evaluation import RetrievalSet, gallery, retrieve, zero_shot_accuracy
from tasks.clip.figures import retrieved_captions
from tasks.clip.models import ClipInputs, build_clip
from tasks.clip.risk import ClipRisk


@dataclass
class ClipData:
    """Training pairs."""

    source: str = "glyphs"
    """"glyphs" (embedded), "shards" (webdataset tars) or "table" (a CSV/TSV of image files and captions)."""
    path: str | None = None
    """Shards: file, glob or {000..010}, several joined by "::". Table: the CSV or TSV file."""
    root: str | None = None
    """Table: folder that the image paths start from; null: the table's own."""
    image_column: str = "image"
    """Table: column of image paths."""
    caption_column: str = "caption"
    """Table: column of captions."""
    caption_noise: float = 0.0
    """Share of the pairs whose captions are shuffled among them."""
    fraction: float = 1.0
    """Share of the pairs to use."""
    seed: int = 0
    """Chooses the noisy pairs and the kept ones; independent of the run's seed."""


@dataclass
class ZeroShot:
    """Zero-shot classification of a folder of images, one sub-folder per class."""

    path: str | None = None
    """The folder; null: not evaluated."""
    classes: list[str] | None = None
    """Name of each class, in the alphabetical order of the sub-folders; null: the sub-folders' names."""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    """Prompts whose features are averaged."""


@dataclass
class ClipOptions:
    """The `task:` section of a CLIP config."""

    name: str = "clip"
    """Says which task this is."""
    data: ClipData = field(default_factory=ClipData)
    """Training pairs."""
    retrieval: dict[str, str] = field(default_factory=dict)
    """Label -> held-out shards, or a table, for retrieval. Glyphs bring their own three splits."""
    recall_at: list[int] = field(default_factory=lambda: [1, 5, 10])
    """The k of recall@k."""
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
    """Zero-shot classification."""


class ClipTask(Task):
    """Image–text contrastive learning with open_clip models."""

    Options: ClassVar[type] = ClipOptions

    def __init__(self, options: ClipOptions) -> None:
        self.options = options
        self.risk = ClipRisk()
        self._sets: dict[str, RetrievalSet] | None = None

    def build(self, spec: ModelSpec) -> Model:
        return build_clip(spec)

    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:
        views = {"": target.inputs}
        if reference is not None and reference.inputs_fingerprint != target.inputs_fingerprint:
            views["reference"] = reference.inputs
        return self._data(views, seed)

    def plain_data(self, model: Model) -> IndexedData:
        return self._data({"": model.inputs}, None)

    def _data(self, views: Mapping[str, ClipInputs], seed: int | None) -> IndexedData:
        """Training pairs for some models; `seed` None leaves out the augmentation."""
        data = self.options.data
        if data.source == "glyphs":
            return GlyphData(views, seed, data.caption_noise, data.fraction, data.seed)
        # The target is augmented; a live reference with other preprocessing sees the plain image, as it was trained to.
        shown = {
            prefix: View(inputs.train if seed is not None and not prefix else inputs.plain, inputs.tokenizer)
            for prefix, inputs in views.items()
        }
        return PairData(
            open_source(data),
            shown,
            seed or 0,
            seed is not None,
            data.caption_noise,
            data.fraction,
            data_seed=data.seed,
        )

    def evaluate(self, model: Model, device: torch.device) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for label, held_out in self._retrieval().items():
            found = retrieve(model.module, model.inputs, held_out, device, self.options.recall_at)
            metrics |= {f"{label}/{name}": value for name, value in found.items()}
        if self.options.zero_shot.path is not None:
            metrics |= self._zero_shot(model, device, Path(self.options.zero_shot.path))
        return metrics

    def figures(self, model: Model, device: torch.device) -> Mapping[str, Figure]:
        sets = self._retrieval()
        return {
            f"retrieved/{label}": retrieved_captions(model.module, model.inputs, sets[label], device) for label in sets
        }

    def _retrieval(self) -> dict[str, RetrievalSet]:
        if self._sets is None:
            self._sets = glyph_retrieval() if self.options.data.source == "glyphs" else {}
            for label, path in self.options.retrieval.items():
                self._sets[label] = source_retrieval(open_held_out(path, self.options.data))
        return self._sets

    def _zero_shot(self, model: Model, device: torch.device, folder: Path) -> dict[str, float]:
        from torchvision.datasets import ImageFolder

        try:
            images = ImageFolder(str(folder), transform=model.inputs.plain)
        except (FileNotFoundError, OSError) as error:
            raise SteeringError(f"task.zero_shot.path: {error}") from error
        names = self.options.zero_shot.classes or images.classes
        if len(names) != len(images.classes):
            raise SteeringError(
                f"task.zero_shot.classes: {len(names)} names for {len(images.classes)} folders in {folder}"
            )
        batches = torch.utils.data.DataLoader(images, batch_size=256)
        return zero_shot_accuracy(model.module, model.inputs, batches, names, self.options.zero_shot.templates, device)


def open_source(data: ClipData) -> ImageTextSource:
    """The pairs that a `data:` section names."""
    if data.source not in ("shards", "table"):
        raise SteeringError(f"task.data.source: expected glyphs, shards or table, got {data.source!r}")
    if data.path is None:
        raise SteeringError(f"task.data.path: needed for source {data.source!r}")
    if data.source == "shards":
        return ShardSource(data.path, cache_dir("shards"))
    root = Path(data.root) if data.root else Path(data.path).parent
    return TableSource(Path(data.path), root, data.image_column, data.caption_column)


def open_held_out(path: str, like: ClipData) -> ImageTextSource:
    """A held-out set: a CSV or TSV by its suffix, shards otherwise."""
    kind = "table" if path.endswith((".csv", ".tsv")) else "shards"
    held_out = ClipData(source=kind, path=path, image_column=like.image_column, caption_column=like.caption_column)
    return open_source(held_out)


def source_retrieval(source: ImageTextSource) -> RetrievalSet:
    """Retrieval among a source's own captions; an unreadable image is left out, with a warning by the loader."""
    captions, number = gallery(source.captions())

    def images(inputs: ClipInputs) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(source), 256):
            pictures, kept = [], []
            for i in range(start, min(start + 256, len(source))):
                try:
                    pictures.append(inputs.plain(source.pair(i)[0]))
                except Unreadable:
                    continue
                kept.append(i)
            if kept:
                yield torch.stack(pictures), torch.from_numpy(number[np.array(kept)])

    return RetrievalSet(captions, images)
