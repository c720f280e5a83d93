"""What members say of the true labels, and what their mixtures say: a pass of one member at a time.

n examples of t items each (t tokens, or 1), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.items import Units, rows_of
from steering.risk import Batch, ReferenceRisk, outputs_with
from steering.runs.record import Scores

MIXABLE = ("example", "token")


@dataclass(frozen=True)
class Predicted:
    """Probabilities that one model, or a mixture, gives, float64, on the CPU.

    Attributes:
        true: of the true labels, (n, t); what is not counted may be anything.
        counts: bool, (n, t), which items count.
        classes: of all classes, (n, C), for losses of examples whose task gives logits; else None.
    """

    true: Tensor
    counts: Tensor
    classes: Tensor | None = None

    def items(self) -> Tensor:
        """The probabilities of the items that count, (T,)."""
        return self.true[self.counts]

    def nll(self) -> Scores:
        """−log p of each example, the mean over its items, which it counts for, nats."""
        number = self.counts.sum(1)
        sums = (-self.true.log()).masked_fill(~self.counts, 0.0).sum(1)
        return Scores((sums / number.clamp_min(1)).numpy(), number.double().numpy())

    def hits(self) -> Scores | None:
        """1 where the true class is the most likely one, 1/k where it is one of k that share the
        first place: what a guess among these hits. None without classes."""
        if self.classes is None:
            return None
        # The true class is among them, up to the rounding of a logarithm and back.
        least = self.classes.amax(1, keepdim=True) * (1 - 1e-5)
        shares = (self.true[:, :1] >= least).double() / (self.classes >= least).sum(1, keepdim=True)
        return Scores(shares[:, 0].numpy(), np.ones(len(shares)))


class Mixed:
    """Σ_m w_m·p_m of several mixtures at once, from members that come one after another.

    Memory is that of the items, whatever the number of members.

    Args:
        weights: name → weights of the members in the order in which they come, (M,).
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights, self.seen = weights, 0
        self._sums: dict[str, Predicted] = {}

    def add(self, member: Predicted) -> None:
        """Take the next member in."""
        for name, weights in self.weights.items():
            weight = float(weights[self.seen])
            if weight > 0:
                self._sums[name] = _plus(self._sums.get(name), member, weight)
        self.seen += 1

    def found(self, name: str) -> Predicted:
        """The mixture of that name."""
        return self._sums[name]


def _plus(sums: Predicted | None, member: Predicted, weight: float) -> Predicted:
    classes = None if member.classes is None else weight * member.classes
    if sums is None:
        return Predicted(weight * member.true, member.counts, classes)
    if sums.classes is not None and classes is not None:
        classes = sums.classes + classes
    return Predicted(sums.true + weight * member.true, member.counts, classes)


@torch.no_grad()
def predicted(
    module: nn.Module,
    risk: ReferenceRisk,
    data: IndexedData,
    device: torch.device,
    batch_size: int = 64,
) -> Predicted:
    """What a model in eval mode says of data; every rank runs its share and gets all.

    The probability of a true label is the one that the logits give the batch's "label"; without
    these it is exp(−loss), which takes a cross entropy.

    Raises:
        SteeringError: the losses are of pairs or sequences, or of another kind that the task was
            told to use, which are no log probabilities.
    """
    if risk.unit not in MIXABLE:
        raise SteeringError(
            f"population: a loss of a {risk.unit} is no logarithm of a probability; expected a task "
            f"whose losses are of one of {', '.join(MIXABLE)}"
        )
    module.to(device).eval()
    mine = distributed.share(len(data))
    parts = [
        _of_batch(
            module,
            risk,
            data.batch(np.arange(start, min(start + batch_size, mine.stop)), 0),
            device,
        )
        for start in range(mine.start, mine.stop, batch_size)
    ]
    if not parts:
        raise SteeringError(f"population: {len(data)} examples are fewer than the processes")
    return Predicted(
        _joined([one.true for one in parts]),
        _joined([one.counts for one in parts]),
        None
        if parts[0].classes is None
        else _joined([p.classes for p in parts if p.classes is not None]),
    )


def _joined(parts: list[Tensor]) -> Tensor:
    return distributed.gather_uneven(torch.cat(parts)).cpu()


def _of_batch(
    module: nn.Module, risk: ReferenceRisk, batch: Batch, device: torch.device
) -> Predicted:
    moved = {key: value.to(device) for key, value in batch.items()}
    size, by_example = len(moved["index"]), risk.unit == "example"
    outputs = outputs_with(risk, logits=by_example)(module, moved)
    units: Units = rows_of(risk.losses(outputs, None, moved))
    losses = units.target.detach().double().reshape(size, -1)
    counts = torch.ones_like(losses, dtype=torch.bool)
    if units.mask is not None:
        counts = units.mask.reshape(size, -1)
    logits = units.logits if by_example else None
    classes = None if logits is None else logits.double().softmax(-1).reshape(size, -1)
    if classes is not None and "label" in moved:
        # Whatever the loss is made of them.
        return Predicted(classes.gather(1, moved["label"].reshape(size, 1)), counts, classes)
    if risk.identity:
        raise SteeringError(
            f"population: a loss of {risk.identity} is no logarithm of a probability; expected "
            'cross entropy, or a task that gives logits and batches with a "label"'
        )
    return Predicted((-losses).exp(), counts, classes)
