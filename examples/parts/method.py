"""A method in one file: the mean without the largest losses, which wrong labels often have.

steering train configs/classification/digits.yaml method=examples/parts/method.py:trimmed method.share=0.8
"""

import math
from dataclasses import dataclass

from steering.items import gathered, rows_of
from steering.methods import Method, Step, register


@dataclass
class TrimmedOptions:
    share: float = 0.9
    """Share of a batch's losses that count, in (0, 1]: the smallest ones."""


@register("trimmed", TrimmedOptions, units=("example", "sequence"))
class Trimmed(Method):
    """The mean of the smallest losses of a batch.

    Formula: mean of ℓ_i over the share of the batch with the smallest ℓ_i
    """

    def __init__(self, options):
        super().__init__()
        if not 0 < options.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {options.share}")
        self.share = options.share

    def forward(self, items):
        losses = gathered(rows_of(items)).target  # (n,), of all ranks
        smallest = losses.sort().values[: math.ceil(self.share * len(losses))]
        # A training metric is an entry here: "train/largest" in TensorBoard.
        return Step(smallest.mean(), {"largest": smallest[-1].detach()})
