"""Zero-shot evaluation: retrieval in both directions, and classification with prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from steering.errors import SteeringError
from tasks.clip.models import ClipInputs, image_features, text_features

CHUNK = 1024


@dataclass(frozen=True)
class RetrievalSet:
    """Images and the gallery of captions they are matched with.

    Attributes:
        captions: the gallery, m different strings.
        images: the model's inputs -> batches of (images (b, 3, h, w), label of each (b,)). A label is the number of the
            image's caption in the gallery, or a row of `answers` if there are any.
        answers: for images with several right captions: the numbers of those of each label, int64 (labels, c), -1 where a
            label has fewer; None: every image has one.
        count: images in all, also those that cannot be read; None where nobody counted.
    """

    captions: Sequence[str]
    images: Callable[[ClipInputs], Iterator[tuple[Tensor, Tensor]]]
    answers: Tensor | None = None
    count: int | None = None

    def right(self, labels: Tensor) -> Tensor:
        """The right captions of images with these labels (b,): int64 (b, c), -1 for none."""
        return labels[:, None] if self.answers is None else self.answers[labels]


@torch.no_grad()
def retrieve(
    module: nn.Module,
    inputs: ClipInputs,
    data: RetrievalSet,
    device: torch.device,
    ks: Sequence[int],
    text: Tensor | None = None,
) -> dict[str, float]:
    """Recall@k of image → caption over the whole gallery, and of caption → image over all images of the set.

    An image's right captions are no rivals of each other: any of them among the best k is a hit. Nor are the images of one
    caption. Ties of a right one with a wrong one count against the model.

    Args:
        text: features of the gallery, (m, d), where they are at hand.

    Returns:
        "image_to_text_R@k" and "text_to_image_R@k", shares in [0, 1].

    Raises:
        SteeringError: the set has no readable image, or features are not finite.
    """
    if text is None:
        text = embed_texts(module, inputs, data.captions, device)  # (m, d)
    parts = [(image_features(module, images.to(device)), data.right(labels)) for images, labels in data.images(inputs)]
    if not parts:
        raise SteeringError("evaluation: the set has no readable image")
    image = torch.cat([part for part, _ in parts])  # (n, d)
    captions_of = torch.cat([captions for _, captions in parts]).to(device)  # (n, c)
    _require_finite(text, image)
    ranks = {
        "image_to_text": image_ranks(image, text, captions_of),
        "text_to_image": text_ranks(image, text, captions_of),
    }
    return {f"{name}_R@{k}": (rank < k).float().mean().item() for name, rank in ranks.items() for k in ks}


def embed_galleries(
    module: nn.Module, inputs: ClipInputs, sets: Mapping[str, RetrievalSet], device: torch.device
) -> dict[str, Tensor]:
    """Features of every set's captions by label, (m, d) each; sets that share one gallery share the work."""
    found: dict[int, Tensor] = {}
    for data in sets.values():
        if id(data.captions) not in found:
            found[id(data.captions)] = embed_texts(module, inputs, data.captions, device)
    return {label: found[id(data.captions)] for label, data in sets.items()}


@torch.no_grad()
def embed_texts(module: nn.Module, inputs: ClipInputs, texts: Sequence[str], device: torch.device) -> Tensor:
    """Unit-norm features of m texts, (m, d)."""
    pieces = [list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
    return torch.cat([text_features(module, inputs.tokenizer(piece).to(device)) for piece in pieces])


def image_ranks(image: Tensor, text: Tensor, captions_of: Tensor) -> Tensor:
    """How many wrong captions each image likes at least as much as its best right one, int64 (n,).

    Args:
        image: (n, d).  text: (m, d).  captions_of: right captions of each image, int64 (n, c), -1 for none, or (n,).
    """
    ranks = []
    for rows, right in zip(image.split(CHUNK), _columns(captions_of).split(CHUNK), strict=True):
        scores = rows @ text.T  # (b, m)
        # A caption of -1 marks a column behind the gallery's, which is cut off again.
        own = scores.new_zeros(len(rows), len(text) + 1, dtype=torch.bool)
        own = own.scatter(1, right.where(right >= 0, len(text)), True)[:, :-1]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~own).sum(1))
    return torch.cat(ranks)


def text_ranks(image: Tensor, text: Tensor, captions_of: Tensor) -> Tensor:
    """For each caption that has an image: how many wrong images score at least as high as its best right one, int64.

    Args:
        image: (n, d).  text: (m, d).  captions_of: as in `image_ranks`.
    """
    captions_of = _columns(captions_of)
    queries = captions_of[captions_of >= 0].unique()
    ranks = []
    for query in queries.split(CHUNK):
        scores = text[query] @ image.T  # (q, n)
        right = torch.zeros_like(scores, dtype=torch.bool)
        for column in captions_of.T:
            right |= column[None, :] == query[:, None]
        best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~right).sum(1))
    return torch.cat(ranks)


def _columns(captions_of: Tensor) -> Tensor:
    return captions_of[:, None] if captions_of.ndim == 1 else captions_of


@torch.no_grad()
def zero_shot_accuracy(
    module: nn.Module,
    inputs: ClipInputs,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
) -> dict[str, float]:
    """Classify images by the nearest class prompt, averaged over templates as in arXiv 2103.00020, section 3.1.4.

    Args:
        batches: (images (b, 3, h, w), class numbers (b,)).
        templates: prompts with a "{}" each.

    Returns:
        "zero_shot_top1" and, with more than 5 classes, "zero_shot_top5"; ties count against the model.

    Raises:
        SteeringError: the set has no readable image, or features are not finite.
    """
    # replace, as a class name or a template may hold other braces.
    prompts = [partial(template.replace, "{}") for template in templates]
    head = open_clip.build_zero_shot_classifier(module, inputs.tokenizer, class_names, prompts, device=device).float()
    ranks = []
    for images, labels in batches:
        features = image_features(module, images.to(device))  # (b, d)
        _require_finite(features, head)
        scores = features @ head  # (b, classes)
        right = scores.gather(1, labels.to(device)[:, None])
        ranks.append((scores >= right).sum(1) - 1)
    if not ranks:
        raise SteeringError("evaluation: the zero-shot set has no readable image")
    rank = torch.cat(ranks)
    tops = [1, 5] if len(class_names) > 5 else [1]
    return {f"zero_shot_top{k}": (rank < k).float().mean().item() for k in tops}


def _require_finite(*features: Tensor) -> None:
    if not all(torch.isfinite(part).all() for part in features):
        raise SteeringError("evaluation: the model's features are not finite")


def gallery(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different captions in order of first appearance, and each caption's number among them, int64 (n,)."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    return list(numbers), np.array([numbers[caption] for caption in captions], dtype=np.int64)
