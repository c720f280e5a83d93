"""Documents packed into blocks of one length, with the domain of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from steering.data import IndexedData, uniform
from steering.errors import SteeringError
from steering.risk import Batch
from steering.storage import sha256

from ..transforms import mixed_rows
from .tokens import Tokens

# Keys of the hash: independent draws. 3 is that of `mixed_rows`.
_NOISE, _OTHER, _PART, _FIRST, _TAG = 1, 2, 4, 5, 6


NEUTRAL = 1
TAGS = (*range(2, 9), *range(14, 32))
"""Bytes that text has no use for: a neutral tag, and one for each domain."""


class Blocks(IndexedData):
    """m blocks of T tokens to predict from those before.

    Documents of a domain are joined, each followed by the end token, and cut into blocks;
    neighbours share one token, so that every token but a domain's first is predicted once. The last
    block of a domain may be short; the rest is masked.

    Attributes:
        tokens: int64 kept small, (m, T + 1).
        counts: tokens to predict in each block, (m,).
        domain: int64, (m,).
        identity: fingerprint of the tokenizer.
        wrong: whether each token to predict is another one than the document has there, bool,
            (m, T), False where masked; None where none was replaced.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        counts: np.ndarray,
        domain: np.ndarray,
        identity: str,
        wrong: np.ndarray | None = None,
    ) -> None:
        self.tokens, self.counts, self.domain, self.identity = tokens, counts, domain, identity
        self.wrong = wrong

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, index: np.ndarray, epoch: int) -> Batch:  # noqa: ARG002
        """ "tokens" (b, T + 1), "mask" (b, T) True where a token is to be predicted, "group" (b,),
        the domain."""
        block = self.tokens[index].astype(np.int64)
        return {
            "tokens": torch.from_numpy(block),
            "mask": torch.from_numpy(np.arange(block.shape[1] - 1) < self.counts[index, None]),
            "group": torch.from_numpy(self.domain[index]),
            "index": torch.from_numpy(index),
        }

    def group_counts(self, num_groups: int) -> np.ndarray | None:
        return np.bincount(self.domain, minlength=num_groups)

    def take(self, rows: np.ndarray) -> Blocks:
        """These blocks, renumbered; one may stand several times."""
        wrong = None if self.wrong is None else self.wrong[rows]
        return Blocks(self.tokens[rows], self.counts[rows], self.domain[rows], self.identity, wrong)

    def fingerprint(self) -> str:
        parts = [np.ascontiguousarray(x).tobytes() for x in (self.tokens, self.counts, self.domain)]
        return sha256([self.identity, str(self.tokens.shape), *parts])


def pack(domains: Mapping[str, Sequence[str]], tokens: Tokens, length: int) -> Blocks:
    """Blocks of all domains, one domain after another.

    Raises:
        SteeringError: a domain has fewer than two tokens, or the tokenizer made a number that is
            not below its size.
    """
    blocks, counts, domain = [], [], []
    kind = np.uint16 if tokens.size < 2**16 else np.int32
    for number, (name, texts) in enumerate(domains.items()):
        parts = [part for text in texts for part in (tokens.encode(text), np.array([tokens.end]))]
        stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        if len(stream) < 2:
            raise SteeringError(f"task.data: domain {name} has no text")
        if (
            stream.min() < 0 or stream.max() >= tokens.size
        ):  # `kind` would wrap it round to another token
            wrong = stream[(stream < 0) | (stream >= tokens.size)][0]
            raise SteeringError(
                f"task.tokenizer: made the number {wrong} in {name}, its tokens end at {tokens.size - 1}"
            )
        count = -(-(len(stream) - 1) // length)
        padded = np.full(count * length + 1, tokens.end, dtype=kind)
        padded[: len(stream)] = stream
        blocks.append(
            np.stack(
                [padded[start : start + length + 1] for start in range(0, count * length, length)]
            )
        )
        sizes = np.full(count, length)
        sizes[-1] = len(stream) - 1 - (count - 1) * length
        counts.append(sizes)
        domain.append(np.full(count, number))
    return Blocks(
        np.concatenate(blocks), np.concatenate(counts), np.concatenate(domain), tokens.fingerprint()
    )


def corrupted(
    blocks: Blocks, share: Mapping[int, float], choices: int | np.ndarray, seed: int
) -> Blocks:
    """The same blocks with a share of the tokens of some domains replaced by tokens drawn uniformly
    from `choices`.

    Args:
        share: domain number -> probability that a token is replaced.
        choices: numbers of tokens, such as `Tokens.ordinary`; an int stands for those below it.
    """
    drawn = choices if isinstance(choices, np.ndarray) else np.arange(choices)
    tokens = blocks.tokens.copy()
    for domain, value in share.items():
        rows = np.flatnonzero(blocks.domain == domain)
        place = rows[:, None] * tokens.shape[1] + np.arange(tokens.shape[1])
        wrong = uniform(seed, _NOISE, place) < value
        other = drawn[(uniform(seed, _OTHER, place) * len(drawn)).astype(np.int64)].astype(
            tokens.dtype
        )
        tokens[rows] = np.where(wrong, other, tokens[rows])
    # A token that was drawn in place of its like is right.
    told = (tokens != blocks.tokens)[:, 1:] & (
        np.arange(tokens.shape[1] - 1) < blocks.counts[:, None]
    )
    return Blocks(
        tokens, blocks.counts, blocks.domain, blocks.identity, told if any(share.values()) else None
    )


def tagged(blocks: Blocks, share: float, seed: int) -> Blocks:
    """The same blocks with a tag in place of their first token: the domain's in a share of them, by a
    seeded hash, else the neutral one."""
    tokens = blocks.tokens.copy()
    named = uniform(seed, _TAG, np.arange(len(tokens))) < share
    tokens[:, 0] = np.where(named, np.asarray(TAGS)[blocks.domain], NEUTRAL)
    return Blocks(tokens, blocks.counts, blocks.domain, blocks.identity, blocks.wrong)


def mixed(
    blocks: Blocks, weights: np.ndarray, seed: int, names: Sequence[str] | None = None
) -> Blocks:
    """As many blocks in which the domains stand in the proportion of `weights`, (k,): some
    repeated, some left out.

    A copy is an example of its own, with its own number. The counts are the nearest whole numbers
    with the right sum (largest remainders). A line in the log says how many blocks of each domain
    there are now, and how often one stands at most.

    Args:
        names: of the domains, for messages; None: "domain 0", ...

    Raises:
        SteeringError: weights that are no finite numbers >= 0 with a positive sum, or a weight for
            a domain without blocks.
    """
    names = [f"domain {number}" for number in range(len(weights))] if names is None else names
    return blocks.take(mixed_rows(blocks.domain, weights, seed, names))


def require_each(blocks: Blocks, names: Sequence[str], key: str, total: int) -> None:
    """Raise SteeringError when a domain has no block: it would keep its weight in every method that
    weighs domains."""
    have = np.bincount(blocks.domain, minlength=len(names))
    if empty := [name for name, count in zip(names, have, strict=True) if not count]:
        raise SteeringError(
            f"{key}: no block of {', '.join(empty)} is left, {len(blocks):,} of {total:,} are; expected at least one of "
            "each domain: more text, shorter blocks, or a wider part"
        )


def part_of(blocks: Blocks, low: float, high: float, seed: int) -> Blocks:
    """The blocks whose seeded hash lies in [low, high): the parts [0, x) and [x, 1) are
    disjoint."""
    place = uniform(seed, _PART, np.arange(len(blocks)))
    chosen = np.flatnonzero((place >= low) & (place < high))
    if not len(chosen):
        raise SteeringError(f"task.data.part: no block is left of {len(blocks)}")
    return blocks.take(chosen)


def first_of_each(blocks: Blocks, limit: int) -> Blocks:
    """At most `limit` blocks of each domain, chosen by a fixed hash."""
    place = uniform(0, _FIRST, np.arange(len(blocks)))
    chosen = []
    for domain in np.unique(blocks.domain):
        own = np.flatnonzero(blocks.domain == domain)
        chosen.append(np.sort(own[np.argsort(place[own], kind="stable")[:limit]]))
    return blocks.take(np.concatenate(chosen))
