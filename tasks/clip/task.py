"""The CLIP task: options, data, models, evaluation, tied together for the framework."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.exhibits import Exhibit, Labels
from steering.reading import report_once, user_path
from steering.storage import cache_dir
from steering.task import Evaluation, Model, ModelSpec, Sketch, Task, scores_of

from ..transforms import require_part, require_share
from .data.glyph_data import GlyphData, glyph_retrieval
from .data.held_out import ClassFolder, source_retrieval
from .data.pairs import PairData, View
from .data.shards import ShardSource
from .data.source import ImageTextSource
from .data.table import TableSource
from .evaluation import Embedded, RetrievalSet, embed_galleries, embed_images, zero_shot_scores
from .exhibits import judged
from .figures import retrieved_captions
from .models import ClipInputs, build_clip, sketch_clip
from .risk import ClipRisk
from .zero_shot import ZeroShot

SOURCES = ("glyphs", "shards", "table")


@dataclass
class ClipData:
    """Training pairs."""

    source: str = "glyphs"
    """"glyphs" (embedded), "shards" (webdataset tars) or "table" (a CSV/TSV of image files and
    captions)."""
    path: str | None = None
    """Shards: file, glob or {000..010}, several joined by "::". Table: the CSV or TSV file."""
    root: str | None = None
    """Tables: folder that the image paths start from; null: each table's own."""
    image_column: str = "image"
    """Tables: column of image paths."""
    caption_column: str = "caption"
    """Tables: column of captions."""
    caption_noise: float = 0.0
    """Share of the pairs whose captions are shuffled among them."""
    vague_captions: float = 0.0
    """Share of the pairs whose captions lose each word with probability one half; one stays."""
    fraction: float = 1.0
    """Share of the pairs to use, drawn at random."""
    part: tuple[float, float] | None = None
    """The pairs between these two shares of the same random order: [0, 0.7] for a reference,
    [0.7, 1] for its target; null: [0, fraction]."""
    seed: int = 0
    """Chooses the noisy pairs and the kept ones; independent of the run's seed."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise SteeringError(
                f"source: expected one of {', '.join(SOURCES)}, got {self.source!r}"
            )
        if self.source == "glyphs" and self.path is not None:
            raise SteeringError(
                f"path: the embedded glyphs have none, got {self.path!r}; set source to shards or table"
            )
        if self.source != "glyphs" and not self.path:
            raise SteeringError(f"path: needed for source {self.source!r}")
        require_share("caption_noise", self.caption_noise)
        require_share("vague_captions", self.vague_captions)
        if not 0 < self.fraction <= 1:
            raise SteeringError(f"fraction: expected a number in (0, 1], got {self.fraction}")
        if self.part is not None:
            require_part(self.part)
            if self.fraction < 1:
                raise SteeringError("part, fraction: both say which pairs to use; give one")

    @property
    def kept(self) -> tuple[float, float]:
        """Which shares of the random order are used."""
        return self.part or (0.0, self.fraction)


@dataclass
class ClipOptions:
    """The `task:` section of a CLIP config."""

    name: str = "clip"
    """Says which task this is."""
    data: ClipData = field(default_factory=ClipData)
    """Training pairs."""
    retrieval: dict[str, str] = field(default_factory=dict)
    """Label -> held-out shards, or a table (by its suffix .csv or .tsv), for retrieval. Glyphs
    bring their own three splits."""
    recall_at: list[int] = field(default_factory=lambda: [1, 5, 10])
    """The k of recall@k."""
    zero_shot: ZeroShot = field(default_factory=ZeroShot)
    """Zero-shot classification."""

    def __post_init__(self) -> None:
        if not self.recall_at or min(self.recall_at) < 1:
            raise SteeringError(
                f"recall_at: expected one or more numbers >= 1, got {self.recall_at}"
            )


class ClipTask(Task):
    """Image–text contrastive learning with open_clip models."""

    Options: ClassVar[type] = ClipOptions
    units: ClassVar[tuple[str, ...]] = ("pair",)

    def __init__(self, options: ClipOptions) -> None:
        self.options = options
        self.risk = ClipRisk()
        self._opened: tuple[dict[str, RetrievalSet], ClassFolder | None] | None = None

    def network(self, spec: ModelSpec) -> Model:
        return build_clip(spec)

    def sketch(self, spec: ModelSpec) -> Sketch:
        """Needs neither pairs nor weights."""
        model = sketch_clip(spec)
        image = torch.zeros(1, 3, *model.inputs.size, device="meta")
        return Sketch(model, {"image": image, "text": model.inputs.tokenizer([""]).to("meta")})

    def train_data(self, target: Model, reference: Model | None, seed: int) -> IndexedData:
        self._held_out()  # what is wrong with it shows before the training, not after
        views = {"": target.inputs}
        if reference is not None and reference.inputs_fingerprint != target.inputs_fingerprint:
            views["reference"] = reference.inputs
        return self._data(views, seed)

    def plain_data(self, model: Model) -> IndexedData:
        return self._data({"": model.inputs}, None)

    def labels(self) -> Labels:
        """Wrong are shuffled captions; without `caption_noise` nothing is known."""
        return self._shown.labels() if self.options.data.caption_noise else Labels()

    def exhibits(self, numbers: Sequence[int]) -> list[Exhibit]:
        return [self._shown.exhibit(number) for number in numbers]

    @cached_property
    def _shown(self) -> PairData | GlyphData:
        """The pairs through nobody's eyes."""
        data = self.options.data
        if data.source == "glyphs":
            return self._glyphs({}, None)
        unseen = View(lambda image: torch.empty(0), lambda captions: torch.empty(0))  # noqa: ARG005
        return self._pairs(open_source(data), {"": unseen}, None)

    def _data(self, views: Mapping[str, ClipInputs], seed: int | None) -> IndexedData:
        """Training pairs for some models; `seed` None leaves out the augmentation."""
        data = self.options.data
        if data.source == "glyphs":
            return self._glyphs(views, seed)
        source = open_source(data)
        report_once(f"task.data: {source.describe()}", _level(source))
        # The target is augmented; a live reference with other preprocessing sees the plain image,
        # as it was trained to.
        shown = {
            prefix: View(
                inputs.train if seed is not None and not prefix else inputs.plain, inputs.tokenizer
            )
            for prefix, inputs in views.items()
        }
        return self._pairs(source, shown, seed)

    def _glyphs(self, views: Mapping[str, ClipInputs], seed: int | None) -> GlyphData:
        data = self.options.data
        return GlyphData(views, seed, data.caption_noise, data.kept, data.seed, data.vague_captions)

    def _pairs(
        self, source: ImageTextSource, views: Mapping[str, View], seed: int | None
    ) -> PairData:
        data = self.options.data
        return PairData(
            source,
            views,
            seed or 0,
            seed is not None,
            data.caption_noise,
            data.kept,
            data.seed,
            data.vague_captions,
        )

    def evaluate(self, model: Model, device: torch.device) -> Evaluation:
        """Recall of every retrieval set in both directions, and zero-shot accuracy; a hit or miss
        for each image or caption. The loss is that of the first set's pairs."""
        options = self.options
        retrieval, classes = self._held_out()
        texts = embed_galleries(model.module, model.inputs, retrieval, device)
        hits: dict[str, Tensor] = {}
        first: tuple[RetrievalSet, Embedded] | None = None
        shown = {}
        for label, held_out in retrieval.items():
            seen = embed_images(model.module, model.inputs, held_out, device, texts[label])
            found = seen.scores(options.recall_at)
            hits |= {f"{label}/{name}": value for name, value in found.items()}
            first = first or (held_out, seen)
            # Rank 0 draws alone. A share without an image would end in the count of all ranks, and
            # it would wait for the others.
            if distributed.rank() == 0 and len(seen.own[0]):
                shown[label] = held_out
        if classes is not None:
            hits |= zero_shot_scores(
                model.module,
                model.inputs,
                classes.batches(model.inputs),
                classes.classes,
                options.zero_shot.prompts(),
                device,
            )
        figures = {
            f"retrieved/{label}": retrieved_captions(
                model.module, model.inputs, held_out, device, texts[label]
            )
            for label, held_out in shown.items()
        }
        scores = {name: scores_of(value) for name, value in hits.items()}
        if first is None:
            return Evaluation(scores, figures=figures)
        return Evaluation(scores, figures=figures, loss=first[1].loss(), judged=judged(*first))

    def _held_out(self) -> tuple[dict[str, RetrievalSet], ClassFolder | None]:
        """Sets for retrieval by label, and the one for classification; opened once."""
        if self._opened is None:
            options, zero_shot = self.options, self.options.zero_shot
            sets = glyph_retrieval() if options.data.source == "glyphs" else {}
            for label, path in options.retrieval.items():
                source = open_held_out(path, options.data)
                report_once(f"task.retrieval.{label}: {source.describe()}", _level(source))
                sets[label] = found = source_retrieval(source, f"task.retrieval.{label}")
                if found.count != len(source):  # else the line above says it
                    counts = (
                        f"{found.count:,} images and {len(found.captions):,} different captions"
                    )
                    report_once(f"task.retrieval.{label}: {counts}", logging.INFO)
            classes = None
            if zero_shot.path is not None:
                folder, names = user_path(zero_shot.path), zero_shot.class_names()
                classes = ClassFolder(folder, names, synsets=zero_shot.synsets)
            self._opened = sets, classes
        return self._opened


def _level(source: ImageTextSource) -> int:
    """How loud to describe a source: what was left out of it deserves a warning."""
    return logging.WARNING if source.skipped else logging.INFO


def open_source(data: ClipData) -> ImageTextSource:
    """The pairs that a `data:` section names."""
    path = str(data.path)
    if data.source == "shards":
        return ShardSource(path, cache_dir("shards"))
    root = user_path(data.root) if data.root is not None else user_path(path).parent
    return TableSource(path, root, data.image_column, data.caption_column)


def open_held_out(path: str, like: ClipData) -> ImageTextSource:
    """A held-out set: a table by its suffix, laid out like the training table if there is one;
    shards otherwise."""
    kind = "table" if path.lower().endswith((".csv", ".tsv", ".tab")) else "shards"
    return open_source(replace(like, source=kind, path=path))
