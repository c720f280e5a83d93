"""Zero-shot evaluation: retrieval in both directions, and classification with prompt templates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from steering import distributed
from steering.errors import NotFiniteError, SteeringError

from .models import ClipInputs, image_features, text_features
from .ranks import CHUNK, image_ranks, text_ranks


@dataclass(frozen=True)
class RetrievalSet:
    """Images and the gallery of captions they are matched with.

    Attributes:
        captions: the gallery, m different strings.
        images: the model's inputs -> this rank's share of the images, in batches of (images (b, 3,
            h, w), label of each (b,), number of each in the set (b,)). A label is the number of the
            image's caption in the gallery, or a row of `answers` if there are any.
        answers: for images with several right captions: the numbers of those of each label, int64
            (labels, c), -1 where a label has fewer; None: every image has one.
        count: images in all, also those that cannot be read; None where nobody counted.
        picture: the image of a number as a PNG, for a person; None where there is none.
    """

    captions: Sequence[str]
    images: Callable[[ClipInputs], Iterator[tuple[Tensor, Tensor, Tensor]]]
    answers: Tensor | None = None
    count: int | None = None
    picture: Callable[[int], bytes] | None = None

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
    """Recall@k of image → caption over the whole gallery, and of caption → image over all images of
    the set.

    An image's right captions are no rivals of each other: any of them among the best k is a hit.
    Nor are the images of one caption. Ties of a right one with a wrong one count against the model.

    Args:
        text: features of the gallery, (m, d), where they are at hand.

    Returns:
        "image_to_text_R@k" and "text_to_image_R@k", shares in [0, 1].

    Raises:
        SteeringError: the set has no readable image, or features are not finite.
    """
    scores = retrieval_scores(module, inputs, data, device, ks, text)
    return _shares(scores)


@torch.no_grad()
def retrieval_scores(
    module: nn.Module,
    inputs: ClipInputs,
    data: RetrievalSet,
    device: torch.device,
    ks: Sequence[int],
    text: Tensor | None = None,
) -> dict[str, Tensor]:
    """The hits that `retrieve` averages: bool, (images,) and (captions that have an image,), the
    same on every rank.

    Every rank embeds its share of the images and ranks its share of the queries.
    """
    if text is None:
        text = embed_texts(module, inputs, data.captions, device)  # (m, d)
    return embed_images(module, inputs, data, device, text).scores(ks)


@dataclass(frozen=True)
class Embedded:
    """A retrieval set as a model sees it, on every rank.

    Attributes:
        text: features of the gallery, (m, d), unit norm.
        image: of the images that can be read, (n, d), unit norm.
        captions_of: right captions of each, int64 (n, c), -1 for none.
        number: of each in the set, int64 (n,).
        own: image and captions_of of this rank's share.
    """

    text: Tensor
    image: Tensor
    captions_of: Tensor
    number: Tensor
    own: tuple[Tensor, Tensor]

    def scores(self, ks: Sequence[int]) -> dict[str, Tensor]:
        """As `retrieval_scores`; every rank ranks its share of the queries."""
        image, captions_of = self.own
        ranks = {
            "image_to_text": distributed.gather_uneven(image_ranks(image, self.text, captions_of)),
            "text_to_image": distributed.gather_uneven(
                text_ranks(self.image, self.text, self.captions_of, shared=True)
            ),
        }
        return {f"{name}_R@{k}": rank < k for name, rank in ranks.items() for k in ks}

    def loss(self) -> float | None:
        """Mean loss of its pairs, as of a training batch; None for a single pair."""
        found = self.pair_losses()
        return None if found is None else found[1].mean().item()

    def pair_losses(self) -> tuple[Tensor, Tensor] | None:
        """Its p pairs, each an image with one of its right captions: place of the image, (p,), and
        loss, float64, (p,): the mean of cos(i, j) − cos(i, i) over the other pairs j and both
        directions. None for a single pair."""
        place, column = (self.captions_of >= 0).nonzero(as_tuple=True)
        if len(place) < 2:
            return None
        image = self.image[place].double()  # (p, d)
        text = self.text[self.captions_of[place, column]].double()
        own = (image * text).sum(-1)
        # Σ_j cos(i, j) is a product with a sum, and less its own pair there are p − 1 of them.
        both = image @ text.sum(0) + text @ image.sum(0)
        return place, (both / 2 - own) / (len(place) - 1) - own

    def image_losses(self) -> Tensor | None:
        """The mean loss of each image's pairs, float64, (n,)."""
        found = self.pair_losses()
        if found is None:
            return None
        place, loss = found
        counts = torch.bincount(place, minlength=len(self.image))
        return torch.bincount(place, loss, len(self.image)) / counts


@torch.no_grad()
def embed_images(
    module: nn.Module, inputs: ClipInputs, data: RetrievalSet, device: torch.device, text: Tensor
) -> Embedded:
    """Every rank embeds its share of the images.

    Args:
        text: features of the gallery, (m, d).

    Raises:
        SteeringError: the set has no readable image, or features are not finite.
    """
    images, rights = [text.new_zeros(0, text.shape[1])], []
    numbers = [torch.zeros(0, dtype=torch.int64)]
    for batch, labels, places in data.images(inputs):
        images.append(image_features(module, batch.to(device)))
        rights.append(data.right(labels))
        numbers.append(places)
    own = torch.cat(images)  # (n', d), this rank's
    columns = 1 if data.answers is None else data.answers.shape[1]
    captions_of_own = torch.cat(rights) if rights else torch.zeros(0, columns, dtype=torch.int64)
    captions_of_own = captions_of_own.to(device)
    image, captions_of = (
        distributed.gather_uneven(own),
        distributed.gather_uneven(captions_of_own),
    )  # (n, d), (n, c)
    if not len(image):
        raise SteeringError("evaluation: the set has no readable image")
    _require_finite(text, image)
    number = distributed.gather_uneven(torch.cat(numbers).to(device))
    return Embedded(text, image, captions_of, number, (own, captions_of_own))


def embed_galleries(
    module: nn.Module, inputs: ClipInputs, sets: Mapping[str, RetrievalSet], device: torch.device
) -> dict[str, Tensor]:
    """Features of every set's captions by label, (m, d) each; sets that share one gallery share the
    work."""
    found: dict[int, Tensor] = {}
    for data in sets.values():
        if id(data.captions) not in found:
            found[id(data.captions)] = embed_texts(module, inputs, data.captions, device)
    return {label: found[id(data.captions)] for label, data in sets.items()}


@torch.no_grad()
def embed_texts(
    module: nn.Module, inputs: ClipInputs, texts: Sequence[str], device: torch.device
) -> Tensor:
    """Unit-norm features of m texts, (m, d); every rank embeds its share of them, in pieces, and
    gets all."""
    pieces = [list(texts[start : start + CHUNK]) for start in range(0, len(texts), CHUNK)]
    mine = distributed.share(len(pieces))
    found = [text_features(module, inputs.tokenizer(pieces[number]).to(device)) for number in mine]
    if not found:  # fewer pieces than ranks: the width of the features must still be known
        found = [text_features(module, inputs.tokenizer(pieces[0][:1]).to(device))[:0]]
    return distributed.gather_uneven(torch.cat(found))


@torch.no_grad()
def zero_shot_accuracy(
    module: nn.Module,
    inputs: ClipInputs,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    class_names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
) -> dict[str, float]:
    """Accuracy of the nearest class prompt, averaged over templates as in arXiv 2103.00020, section
    3.1.4.

    Args:
        batches: this rank's share of the images: (images (b, 3, h, w), class numbers (b,), numbers
            of the images (b,)).
        templates: prompts with a "{}" each.

    Returns:
        "zero_shot_top1" and, with more than 5 classes, "zero_shot_top5"; ties count against the
        model.

    Raises:
        SteeringError: the set has no readable image, or features are not finite.
    """
    scores = zero_shot_scores(module, inputs, batches, class_names, templates, device)
    return _shares(scores)


@torch.no_grad()
def zero_shot_scores(
    module: nn.Module,
    inputs: ClipInputs,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    class_names: Sequence[str],
    templates: Sequence[str],
    device: torch.device,
) -> dict[str, Tensor]:
    """The hits that `zero_shot_accuracy` averages: bool, (images,), the same on every rank."""
    import open_clip  # here, as it takes seconds, and not every evaluation needs it

    # replace, as a class name or a template may hold other braces.
    prompts = [partial(template.replace, "{}") for template in templates]
    head = open_clip.build_zero_shot_classifier(
        module, inputs.tokenizer, class_names, prompts, device=device
    ).float()
    ranks = [torch.zeros(0, dtype=torch.int64, device=device)]
    for images, labels, _ in batches:
        features = image_features(module, images.to(device))  # (b, d)
        _require_finite(features, head)
        scores = features @ head  # (b, classes)
        right = scores.gather(1, labels.to(device)[:, None])
        ranks.append((scores >= right).sum(1) - 1)
    rank = distributed.gather_uneven(torch.cat(ranks))
    if not len(rank):
        raise SteeringError("evaluation: the zero-shot set has no readable image")
    tops = [1, 5] if len(class_names) > 5 else [1]
    return {f"zero_shot_top{k}": rank < k for k in tops}


def _shares(hits: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: hit.double().mean().item() for name, hit in hits.items()}


def _require_finite(*features: Tensor) -> None:
    if not all(torch.isfinite(part).all() for part in features):
        raise NotFiniteError("evaluation: the model's features are not finite")


def gallery(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different captions in order of first appearance, and each caption's number among them,
    int64 (n,)."""
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    return list(numbers), np.array([numbers[caption] for caption in captions], dtype=np.int64)
