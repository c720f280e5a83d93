"""Shifts that are fitted through the model: those under which the better answers are likeliest.

A mean difference says how the activations of better and worse answers differ, not what a shift does
to the next token. Here a shift of each layer is what makes the answers likely, all layers at once.
No weight of the model changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steering.activation.edits import Edit, Scope, recorded
from steering.activation.moves import Shift
from steering.activation.sampling import Speaker, Tokens, joined, policy, token_losses
from steering.data import mix


@dataclass(frozen=True)
class Likely:
    """Shifts by gradient steps on −log p(better answer), nats a token; with `beta` on
    −log σ(β (log-ratio of the better − log-ratio of the worse)), the ratios to the speaker as it is.

    Source of the second form: Cao et al. (2024), steering vectors by preference optimisation,
    arXiv 2406.00045, in one direction.

    Attributes:
        epochs: passes over the pairs.
        lr: of Adam, which falls to zero in a straight line; shifts begin at zero.
        ridge: times half the shifts' squared length in units of an activation's, added to the loss.
        beta: above 0: pairs count, not the better answers alone.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int = 3
    batch_size: int = 16
    lr: float = 0.05
    ridge: float = 0.0
    beta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0:
            raise ValueError("epochs, batch_size and lr: expected numbers above 0")
        if self.ridge < 0 or self.beta < 0:
            raise ValueError("ridge and beta: expected numbers of at least 0")

    def fit(
        self,
        speaker: Speaker,
        layers: Sequence[str],
        prompts: Sequence[Tokens],
        better: Sequence[Tokens],
        worse: Sequence[Tokens],
        scope: Scope = "decoded",
    ) -> list[Edit]:
        """One shift for each layer, beside the speaker's own edits.

        Raises:
            ValueError: no answers.
        """
        if not better:
            raise ValueError("better: expected at least one answer")
        sizes = _sizes(speaker, layers, prompts[0])
        shifts = [torch.zeros_like(one, requires_grad=True) for one in sizes.values()]
        edits = [
            Edit(layer, Shift(shift), 1.0, scope)
            for layer, shift in zip(layers, shifts, strict=True)
        ]
        steered = replace(speaker, edits=[*speaker.edits, *edits])
        solver = torch.optim.Adam(shifts, lr=self.lr)
        count = len(better)
        steps = self.epochs * -(-count // self.batch_size)
        decay = torch.optim.lr_scheduler.LambdaLR(solver, lambda step: 1 - step / steps)
        for epoch in range(self.epochs):
            order = np.argsort(mix(self.seed, epoch, np.arange(count)), kind="stable")
            for first in range(0, count, self.batch_size):
                rows = order[first : first + self.batch_size]
                sides = [[side[row] for row in rows] for side in (prompts, better, worse)]
                with torch.enable_grad():
                    loss = self._loss(speaker, steered, *sides)
                    for shift, size in zip(shifts, sizes.values(), strict=True):
                        loss = loss + self.ridge / 2 * (shift / size.norm()).square().sum()
                gradients = torch.autograd.grad(loss, shifts)  # no weight gets one
                for shift, gradient in zip(shifts, gradients, strict=True):
                    shift.grad = gradient
                solver.step()
                decay.step()
        moves = [Shift(shift.detach()) for shift in shifts]
        return [replace(edit, move=move) for edit, move in zip(edits, moves, strict=True)]

    def _loss(
        self,
        frozen: Speaker,
        steered: Speaker,
        prompts: Sequence[Tokens],
        better: Sequence[Tokens],
        worse: Sequence[Tokens],
    ) -> Tensor:
        likely = _losses(steered, prompts, better)
        if not self.beta:
            return likely.sum() / max(sum(map(len, better)), 1)
        with torch.no_grad():
            before = [_losses(frozen, prompts, side) for side in (better, worse)]
        unlikely = _losses(steered, prompts, worse)
        margin = (before[0] - likely) - (before[1] - unlikely)
        return -F.logsigmoid(self.beta * margin).mean()


def _sizes(speaker: Speaker, layers: Sequence[str], prompt: Tokens) -> dict[str, Tensor]:
    """A vector of each layer's width and an activation's root mean square size."""
    row = torch.tensor([[*prompt]], device=speaker.device)
    with torch.no_grad(), recorded(speaker.network, layers) as found:
        speaker.network(input_ids=row, use_cache=False)
    return {layer: found[layer][0].float().square().mean(0).sqrt() for layer in layers}


def _losses(speaker: Speaker, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Tensor:
    """−log p of each answer, nats, (b,), with gradient."""
    tokens, mask = joined(speaker, prompts, answers)
    with policy(speaker, prompts):
        said = speaker.network(input_ids=tokens, attention_mask=mask.long(), use_cache=False)
    speaker.tally.tokens += int(mask.sum())
    return token_losses(said.logits, tokens, mask, [len(one) for one in prompts]).sum(1)
