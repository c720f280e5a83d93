"""From the examples that a step draws to those that it trains on: a stage of the batch stream.

The step that follows knows nothing of it: it gets a smaller batch, in which the reference's outputs
stand as stored ones do.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from steering import distributed
from steering.errors import SteeringError
from steering.methods.selection import Selector
from steering.reference.frozen import STORED, Reference, StoredReference
from steering.risk import Batch, Outputs, ReferenceRisk, outputs_with
from steering.schema import TrainConfig
from steering.training.step import Autocast, join, split


def examples_drawn(
    train: TrainConfig, selector: Selector | None, n: int, ranks: int | None = None
) -> int:
    """Examples that a step draws over all ranks: the batch size, or more with a selector.

    Args:
        n: training examples.
        ranks: None: those of this run.

    Raises:
        SteeringError: more than the n examples that there are.
    """
    if selector is None:
        return train.batch_size
    # Every rank and every micro-batch gets as many: round the parts, not the whole.
    parts = (distributed.world_size() if ranks is None else ranks) * train.accumulation
    drawn = round(train.batch_size / selector.share / parts) * parts
    if drawn > n and drawn > train.batch_size:
        raise SteeringError(
            f"method: share {selector.share} selects a batch of {train.batch_size} from {drawn} "
            f"examples, but there are only {n} training examples"
        )
    return drawn


class Selection:
    """Cuts each batch down to the examples that the selector chooses.

    Args:
        module: the target, as it is: no gradient is computed, so it need not be wrapped in DDP.
        count: examples that train, of this rank's.
        micro_batches: in which they are trained on. Scoring takes parts no larger than those, and so
            no more memory.
    """

    def __init__(
        self,
        module: nn.Module,
        selector: Selector,
        risk: ReferenceRisk,
        reference: Reference | None,
        count: int,
        micro_batches: int = 1,
        autocast: Autocast = nullcontext,
    ) -> None:
        self.module, self.selector, self.risk, self.reference = module, selector, risk, reference
        self.count, self.micro_batches, self.autocast = count, micro_batches, autocast
        self.outputs = outputs_with(risk, selector.needs.logits)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The chosen rows of every tensor with one row per example; the reference's outputs on them
        are added."""
        drawn = len(batch["index"])
        # As many examples in a part as in a micro-batch that trains, or fewer: no more memory.
        parts = split(batch, -(-drawn * self.micro_batches // self.count))
        outputs = self._target_outputs(parts)
        reference = self._reference_outputs(parts)
        # The loss items of all that is drawn: a contrastive one is made of the whole batch.
        items = self.risk.losses(outputs, reference, batch)
        rows = self.selector.choose(items, self.count)
        # From here on they are data of the batch, as a stored reference's are.
        scored = {f"{STORED}{key}": value for key, value in (reference or {}).items()}
        return {
            key: value[rows] if value.ndim and len(value) == drawn else value
            for key, value in {**batch, **scored}.items()
        }

    def _target_outputs(self, parts: list[dict[str, Tensor]]) -> Outputs:
        training = self.module.training
        # Scores are those of the model that would be used now: no dropout, no batch statistics.
        self.module.eval()
        with self.autocast():
            outputs = join([self.outputs(self.module, part) for part in parts])
        self.module.train(training)
        return outputs

    def _reference_outputs(self, parts: list[dict[str, Tensor]]) -> Outputs | None:
        if self.reference is None:
            return None
        with self.autocast():
            return join([self.reference.outputs(part) for part in parts])


def who_asks(
    reference: Reference | None, selector: Selector | None
) -> tuple[Reference | None, Reference | None]:
    """The reference of the selection, asked of all that is drawn, and that of the step, asked of
    what is left.

    What the one has computed the other finds in the batch: no example is run through the reference
    twice.
    """
    if reference is None or selector is None:
        return None, reference
    if not selector.needs.reference:
        return None, reference
    return reference, StoredReference()
