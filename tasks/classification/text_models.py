"""A classifier of texts: the mean of learnt vectors of their n-grams of bytes, and a linear layer on
it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steering.errors import ConfigError

from .data import ImageInputs

_FACTOR, _MIX = 257, 0x2545F4914F6CDD1D  # of a rolling hash; int64 wraps around


class Ngrams(nn.Module):
    """Every run of 1 to n bytes has a vector, found by a hash; a text is the mean of its vectors.

    Source: arXiv 1607.01759, sections 2 and 2.2 (with a normalisation in front of the last layer).

    Args:
        n: bytes of the longest n-gram.
        width: of the vectors.
        buckets: vectors that there are; n-grams of one bucket share theirs.
    """

    def __init__(self, classes: int, n: int, width: int, buckets: int) -> None:
        super().__init__()
        self.n, self.buckets = n, buckets
        self.embed = nn.EmbeddingBag(buckets + 1, width, mode="mean", padding_idx=0)
        nn.init.uniform_(self.embed.weight, -1 / width, 1 / width)
        self.embed.weight.data[0] = 0
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(self.numbers(image))))

    def numbers(self, image: Tensor) -> Tensor:
        """Bucket of each n-gram, 1 and more, 0 where the text has ended: int64, (b, about
        n·length)."""
        text = image.flatten(1).round().long()  # (b, length)
        found, size = [], text.shape[1]
        hashed = torch.zeros_like(text)
        for length in range(1, min(self.n, size) + 1):
            last = text[:, length - 1 :]
            hashed = hashed[:, : last.shape[1]] * _FACTOR + last + 1
            bucket = ((hashed * _MIX) >> 33) % self.buckets + 1
            found.append(torch.where(last > 0, bucket, 0))
        return torch.cat(found, 1)


def text_classifier(
    name: str, options: dict[str, Any], classes: int
) -> tuple[nn.Module, ImageInputs]:
    """ "ngrams" (options `n`, 3, `width`, 32, `buckets`, 16384), and what it wants to see: bytes.

    Raises:
        ConfigError: another name or option, or one out of range.
    """
    if name != "ngrams":
        raise ConfigError(f"target.name: texts want the model ngrams, got {name!r}")
    known = {"n": 3, "width": 32, "buckets": 16384}
    if unknown := {*options} - {*known}:
        raise ConfigError(
            f"target.options: ngrams takes {', '.join(known)}, got {', '.join(sorted(unknown))}"
        )
    values = {key: int(options.get(key, default)) for key, default in known.items()}
    for key, value in values.items():
        if value < 1:
            raise ConfigError(f"target.options.{key}: expected at least 1, got {value}")
    return Ngrams(classes, **values), ImageInputs(None, 1, (0.0,), (1 / 255,))
