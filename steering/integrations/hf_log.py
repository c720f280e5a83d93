"""What a steer tells of its batches, gathered between two entries of the trainer's log."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from steering import distributed

PREFIX = "steer/"


class Meter:
    """Sums of scalars and of what they are weighed by; nothing waits for a device until `read`."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def add(self, values: Mapping[str, Tensor], weight: int | Tensor = 1) -> None:
        """Take in scalars, () each; one that has no weight may be anything."""
        for name, value in values.items():
            part = torch.as_tensor(weight, dtype=torch.float32, device=value.device)
            told = torch.where(part > 0, value.detach().float() * part, 0.0)
            before = self._sums.get(name, (torch.zeros_like(told), torch.zeros_like(part)))
            self._sums[name] = before[0] + told, before[1] + part

    def read(self) -> dict[str, float]:
        """Weighted means over the calls since the last reading and over the ranks, of which all
        must ask."""
        own = {name: (float(total), float(weight)) for name, (total, weight) in self._sums.items()}
        self._sums = {}
        sums: dict[str, list[float]] = {}
        # Objects, not tensors: a rank whose labels were all silent has fewer names than the others.
        for found in distributed.gather_objects(own):
            for name, (total, weight) in found.items():
                pair = sums.setdefault(name, [0.0, 0.0])
                pair[0] += total
                pair[1] += weight
        return {
            PREFIX + name: sums[name][0] / sums[name][1] for name in sorted(sums) if sums[name][1]
        }
