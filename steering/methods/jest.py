"""JEST (arXiv 2406.17711): choose the pairs of a contrastive batch jointly, chunk by chunk, by how
learnable they are together.

S_ij = s_ref·cos_ref(i, j) − cos(i, j)/τ is how much better the reference scores pair (i, j) than
the learner. A chunk is drawn ∝ exp of

    S_ii + ½ Σ_directions [ log mean_{j chosen} exp(cos(i, j)/τ) − log mean_{j chosen}
    exp(s_ref·cos_ref(i, j)) ]

the excess InfoNCE loss that a pair would have beside those that are chosen already; the first
chunk by S_ii alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from steering.dro.defaults import default_tau
from steering.dro.online.temperature import Temperature
from steering.errors import SteeringError
from steering.items import LossItems, pairs_of
from steering.methods.distillation import reference_scale, require_scale
from steering.methods.erm import Erm, ErmOptions
from steering.methods.ranges import Ranges, evenly
from steering.methods.registry import Method, register
from steering.methods.selection import (
    SELECTORS,
    Selector,
    SelectorOptions,
    largest,
    require_temperature,
    sampled,
    selecting,
)


@SELECTORS.register("jest")
@dataclass(frozen=True)
class JestOptions(SelectorOptions):
    units: ClassVar[tuple[str, ...]] = ("pair",)
    share: float = 0.2
    """Share of the drawn pairs to train on, in (0, 1]: a step draws batch_size/share."""
    chunks: int = 16
    """Parts in which the batch is chosen; each knows the ones before."""
    temperature: float = 1.0
    """T in nats: pairs are drawn ∝ exp(score/T)."""
    top: bool = False
    """Take the largest scores instead of drawing."""
    reference_scale: float | None = None
    """Logit scale of the reference, 1/τ; null: its own (100 for OpenAI's models)."""
    tau: float = default_tau("pair")
    """Initial temperature of InfoNCE, learned; as the `select` of another method the fixed
    temperature at which the target's pairs are scored."""
    tau_min: float = 0.01
    """Smallest temperature."""
    search: ClassVar[Ranges] = {"share": evenly(0.2, 0.9)}

    def selector(self) -> Selector:
        return Jest(self, self.fixed_temperature())

    def fixed_temperature(self) -> Temperature:
        """The temperature of the target's scores where none is learned."""
        return Temperature(self.tau, False, self.tau_min, maximum=1.0)


class Jest(Selector):
    """Joint selection of the pairs of a batch.

    Source: arXiv 2406.17711, softmax variant as run in arXiv 2505.06699; that the first chunk is
    drawn ∝ exp(S_ii) is our choice, where sources differ.

    Args:
        learner: temperature of the target's logits. The method `jest` gives the one that it learns.
    """

    def __init__(self, options: JestOptions, learner: Temperature) -> None:
        super().__init__(options.share)
        require_temperature(options.temperature)
        if options.chunks < 1:
            raise ValueError(f"chunks must be at least 1, got {options.chunks}")
        require_scale(options.reference_scale)
        self.options, self.learner = options, learner

    @torch.no_grad()
    def choose(self, items: LossItems, count: int) -> Tensor:
        pairs = pairs_of(items)
        reference = pairs.reference()
        if reference is None:
            raise SteeringError("method (jest): needs a reference")
        learner = pairs.image @ pairs.text.T / self.learner()
        scale = reference_scale(pairs, self.options.reference_scale, "jest")
        judge = (reference[0] @ reference[1].T) * scale
        return joint_selection(
            learner, judge, count, self.options.chunks, self.options.temperature, self.options.top
        )


def joint_selection(
    learner: Tensor,
    reference: Tensor,
    count: int,
    chunks: int,
    temperature: float = 1.0,
    top: bool = False,
) -> Tensor:
    """Positions of `count` different pairs of n, chunk after chunk, (count,).

    Args:
        learner, reference: logits of all pairs that were drawn, (n, n); row = image, column = text.
        chunks: parts of `count`, as equal as can be.
        temperature, top: see `JestOptions`.
    """
    # Each pair's own score, S_ii of the module's formula, (n,).
    own = (reference - learner).diagonal()
    chosen = own.new_zeros(0, dtype=torch.int64)
    for number in range(min(chunks, count)):
        size = count // min(chunks, count) + (number < count % min(chunks, count))
        scores = own.clone()
        if len(chosen):
            # Sums in place of the formula's means: log |chosen| is in both, and cancels.
            for sign, logits in ((1, learner), (-1, reference)):
                scores += (
                    sign * 0.5 * (logits[:, chosen].logsumexp(1) + logits[chosen].logsumexp(0))
                )
            scores[chosen] = -torch.inf
        scores /= temperature
        chosen = torch.cat([chosen, largest(scores, size) if top else sampled(scores, size)])
    return chosen


@register("jest", JestOptions, units=("pair",))
def build(options: JestOptions) -> Method:
    """JEST: the pairs of a batch chosen jointly by learnability, then InfoNCE.

    Formula: InfoNCE over a `share` of the drawn pairs, chosen chunk by chunk ∝ exp(excess InfoNCE
    beside those chosen/T)

    Source: arXiv 2406.17711
    """
    method = Erm(ErmOptions(options.tau, options.tau_min), unit="pair")
    # The selector holds the very temperature that training learns, and reads it as it moves.
    learner = method.temperature or options.fixed_temperature()
    return selecting(method, Jest(options, learner), options.needs())
