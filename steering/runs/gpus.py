"""GPUs and what a training gets out of them: the assumptions behind the hours of a dry run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU's peak by its data sheet, dense, in units of 10¹² operations a second.

    Attributes:
        half: of bf16 and fp16 matrix products.
        single: of float32 without TF32.
    """

    name: str
    half: float
    single: float

    def seconds(self, flops: float, processes: int, precision: str, share: float) -> float:
        """Of so many operations on `processes` of them at a share of the peak."""
        peak = self.single if precision == "fp32" else self.half
        return flops / (1e12 * peak * share * processes)


GPUS = (
    Gpu("A100 80GB", 312, 19.5),
    Gpu("H100 SXM", 989, 67),
    Gpu("L40S", 362, 91.6),
    Gpu("RTX 4090", 165, 82.6),
)
"""For bf16 on the RTX 4090 the rate with float32 accumulation."""

MEASURED = 0.13
"""Share of the peak in the one long run of this kind whose time is published: 1.28·10⁹ pairs,
ViT-B/16 under ViT-B/32, 2 days on 8 H100 (arXiv 2505.06699). What the loss, the loader and the
waiting cost is in it."""
GOOD = 0.4
"""Share that a trainer reaches whose data never keep it waiting: an assumption."""
