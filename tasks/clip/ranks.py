"""At which place the right captions of an image, and the right images of a caption, come."""

from __future__ import annotations

import torch
from torch import Tensor

from steering import distributed

CHUNK = 1024
"""Queries at a time."""


def image_ranks(image: Tensor, text: Tensor, captions_of: Tensor) -> Tensor:
    """How many wrong captions each image likes at least as much as its best right one, int64 (n,).

    Args:
        image: (n, d).  text: (m, d).  captions_of: right captions of each image, int64 (n, c), -1
            for none, or (n,).
    """
    ranks = []
    for rows, right in zip(image.split(CHUNK), _columns(captions_of).split(CHUNK), strict=True):
        scores = rows @ text.T  # (b, m)
        # A caption of -1 marks a column behind the gallery's, which is cut off again.
        own = scores.new_zeros(len(rows), len(text) + 1, dtype=torch.bool)
        own = own.scatter(1, right.where(right >= 0, len(text)), True)[:, :-1]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks.append(((scores >= best) & ~own).sum(1))
    return torch.cat(ranks) if ranks else captions_of.new_zeros(0)


def text_ranks(image: Tensor, text: Tensor, captions_of: Tensor, shared: bool = False) -> Tensor:
    """For each caption that has an image: how many wrong images score at least as high as its best
    right one, int64.

    Args:
        image: (n, d).  text: (m, d).  captions_of: as in `image_ranks`.
        shared: only of this rank's share of the captions.
    """
    captions_of = _columns(captions_of)
    queries = captions_of[captions_of >= 0].unique()
    if shared:
        mine = distributed.share(len(queries))
        queries = queries[mine.start : mine.stop]
    ranks = [queries.new_zeros(0)]
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
