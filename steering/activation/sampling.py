"""Answers of a causal language model of `transformers`, and what it says of given ones; with or
without edits.

Random numbers are a hash of (seed, sample, step). So an answer does not depend on the batch that it
was drawn in, and a study that was killed draws the same again.

Shapes: b rows, p tokens of the longest prompt of a batch, V size of the vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steering.activation.edits import CACHES, Edit, recorded, steered
from steering.data import uniform

Tokens = Sequence[int]


@dataclass
class Tally:
    """What the calls of a network took, over all that was counted here.

    Attributes:
        tokens: positions that went through the network, without padding and what is behind an
            answer's end.
        samples: answers that were drawn.
    """

    tokens: int = 0
    samples: int = 0


@dataclass(frozen=True)
class Speaker:
    """A causal language model with its edits: a policy.

    Attributes:
        network: takes `input_ids`, `attention_mask`, `position_ids`, `cache` (or
            `past_key_values`) and `use_cache` as models of `transformers` do, and gives `logits`.
        end: the token that ends an answer.
        edits, keep_norm: see `steering.activation.edits.steered`.
        batch_size: rows of a call.
        tally: what all calls took.
    """

    network: nn.Module
    end: int
    edits: Sequence[Edit] = ()
    keep_norm: bool = False
    batch_size: int = 128
    tally: Tally = field(default_factory=Tally, compare=False)

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device


@torch.no_grad()
def sample(
    speaker: Speaker,
    prompts: Sequence[Tokens],
    numbers: Sequence[int] | np.ndarray,
    length: int,
    temperature: float = 1.0,
    seed: int = 0,
    cached: bool = True,
) -> list[list[int]]:
    """One answer to each prompt, without the end token.

    Args:
        prompts: tokens, at least one each.
        numbers: of each sample; with the seed and the step it is all that chance depends on.
        length: most tokens of an answer.
        temperature: divides the logits; 0: the likeliest token.
        cached: keep keys and values; without, every step runs the whole row again.

    Raises:
        ValueError: an empty prompt, or a temperature below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}")
    if any(not len(prompt) for prompt in prompts):
        raise ValueError("prompts: each needs at least one token")
    answers: list[list[int]] = []
    for rows in _batches(len(prompts), speaker.batch_size):
        own = [prompts[row] for row in rows]
        chance = np.asarray(numbers)[rows]
        with policy(speaker, own):
            answers += _decode(speaker, own, chance, length, temperature, seed, cached)
    speaker.tally.samples += len(prompts)
    return answers


@torch.no_grad()
def answer_losses(speaker: Speaker, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """−log p(answer | prompt) of each, nats, summed over its tokens, float64, (n,); 0 for an empty
    answer."""
    found = []
    for rows in _batches(len(prompts), speaker.batch_size):
        own = [prompts[row] for row in rows]
        tokens, mask = joined(speaker, own, [answers[row] for row in rows])
        with policy(speaker, own):
            logits = speaker.network(
                input_ids=tokens, attention_mask=mask.long(), use_cache=False
            ).logits
        speaker.tally.tokens += int(mask.sum())
        found.append(token_losses(logits, tokens, mask, [len(one) for one in own]).double().sum(1))
    return torch.cat(found).cpu() if found else torch.zeros(0, dtype=torch.float64)


def token_losses(logits: Tensor, tokens: Tensor, mask: Tensor, prompt: Sequence[int]) -> Tensor:
    """Cross entropy of every token of the answers, 0 elsewhere, (b, T − 1); rows padded on the
    right."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(wide[:, :-1].movedim(-1, 1), tokens[:, 1:], reduction="none")
    lengths = torch.tensor(prompt, device=tokens.device)[:, None]
    answer = torch.arange(1, tokens.shape[1], device=tokens.device)[None] >= lengths
    return loss.masked_fill(~(answer & mask[:, 1:]), 0.0)


def joined(
    speaker: Speaker, prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> tuple[Tensor, Tensor]:
    """Tokens and mask of prompts and answers, padded on the right, (b, T)."""
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, whole))
    tokens = torch.tensor([row + [speaker.end] * (width - len(row)) for row in whole])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in whole])
    return tokens.to(speaker.device), mask.to(speaker.device)


@torch.no_grad()
def answer_activations(
    speaker: Speaker, layers: Sequence[str], prompts: Sequence[Tokens], answers: Sequence[Tokens]
) -> dict[str, list[Tensor]]:
    """Activations of each layer at the positions of each answer's tokens: layer -> for each answer
    (its length, d), on the CPU. The prompt's positions, which both answers of a pair share, are left
    out."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for rows in _batches(len(prompts), speaker.batch_size):
        own = [prompts[row] for row in rows]
        tokens, mask = joined(speaker, own, [answers[row] for row in rows])
        with policy(speaker, own), recorded(speaker.network, layers) as outputs:
            speaker.network(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
        speaker.tally.tokens += int(mask.sum())
        for layer in layers:
            for number, row in enumerate(rows):
                start = len(own[number])
                part = outputs[layer][number, start : start + len(answers[row])]
                found[layer].append(part.float().cpu())
    return found


def policy(speaker: Speaker, prompts: Sequence[Tokens]) -> Any:
    if not speaker.edits:
        return nullcontext()
    lengths = [len(prompt) for prompt in prompts]
    return steered(speaker.network, speaker.edits, lengths, speaker.keep_norm)


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _decode(
    speaker: Speaker,
    prompts: Sequence[Tokens],
    numbers: np.ndarray,
    length: int,
    temperature: float,
    seed: int,
    cached: bool,
) -> list[list[int]]:
    """One batch; prompts are padded on the left, so that all rows decode at the same column."""
    width = max(map(len, prompts))
    rows = [[speaker.end] * (width - len(prompt)) + [*prompt] for prompt in prompts]
    tokens = torch.tensor(rows, device=speaker.device)
    counts = torch.tensor([len(prompt) for prompt in prompts], device=speaker.device)
    mask = torch.arange(width, device=speaker.device)[None] >= width - counts[:, None]
    cache, fresh = None, width
    done = torch.zeros(len(rows), dtype=torch.bool, device=speaker.device)
    for step in range(length):
        logits, cache = _last_logits(speaker, tokens, mask, cache, fresh, cached)
        speaker.tally.tokens += int(mask[~done, -fresh:].sum())
        chosen = _drawn(logits, temperature, uniform(seed, step, numbers))
        done |= chosen == speaker.end
        chosen = chosen.masked_fill(done, speaker.end)
        if bool(done.all()):
            break
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        fresh = 1 if cached else tokens.shape[1]
    return [_until(row, speaker.end) for row in tokens[:, width:].tolist()]


def _last_logits(
    speaker: Speaker, tokens: Tensor, mask: Tensor, cache: Any, fresh: int, cached: bool
) -> tuple[Tensor, Any]:
    """Logits after the last token, (b, V), from the `fresh` tokens that the cache lacks."""
    position = (mask.long().cumsum(1) - 1).clamp_min(0)
    name = _cache_keyword(speaker.network)
    said = speaker.network(
        input_ids=tokens[:, -fresh:],
        attention_mask=mask.long(),
        position_ids=position[:, -fresh:],
        use_cache=cached,
        **{name: cache},
    )
    return said.logits[:, -1].double(), said[name] if cached else None


def _cache_keyword(network: nn.Module) -> str:
    """How this version of `transformers` calls the cache."""
    known = inspect.signature(network.forward).parameters
    return next((name for name in CACHES if name in known), CACHES[-1])


def _drawn(logits: Tensor, temperature: float, chance: np.ndarray) -> Tensor:
    """A token of each row by inverting the distribution function at a uniform number, (b,)."""
    if temperature == 0:
        return logits.argmax(-1)
    upto = (logits / temperature).softmax(-1).cumsum(-1)
    place = torch.from_numpy(chance).to(upto) * upto[:, -1]  # rounding leaves the sum near 1
    return torch.searchsorted(upto, place[:, None], right=True)[:, 0].clamp_max(logits.shape[1] - 1)


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
