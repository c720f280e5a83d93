"""One model from many by averaging their weights (stochastic weight averaging, model soups)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.risk import Batch, ReferenceRisk


class WeightAverage:
    """Mean of state dicts that come one after another; memory of two models, however many come.

    Counters and other whole numbers are those of the last model.

    Source: arXiv 1803.05407 and arXiv 2203.05482.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Tensor] = {}

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Take a model in. Raises SteeringError where it is of another architecture."""
        if self.count and self._shapes(state) != self._shapes(self._mean):
            raise SteeringError("weight average: the models are of different architectures")
        self.count += 1
        for name, value in state.items():
            if not value.is_floating_point() or self.count == 1:
                self._mean[name] = value.detach().to("cpu", _wide(value), copy=True)
                continue
            # In float64: thousands of snapshots may come.
            self._mean[name] += (value.detach().to("cpu", torch.float64) - self._mean[name]) / (
                self.count
            )

    def load_into(self, module: nn.Module) -> None:
        """Give a module the average as its weights. Raises SteeringError where there is none."""
        if not self.count:
            raise SteeringError("weight average: no model was added")
        module.load_state_dict(self._mean)

    @staticmethod
    def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        return {name: value.shape for name, value in state.items()}


def _wide(value: Tensor) -> torch.dtype:
    return torch.float64 if value.is_floating_point() else value.dtype


@torch.no_grad()
def renew_batch_norm(module: nn.Module, risk: ReferenceRisk, batches: Iterable[Batch]) -> bool:
    """Compute the statistics of batch normalisation anew: those of averaged weights are not the
    average of statistics.

    Everything else is in eval mode, where the whole module is left.

    Returns:
        Whether there was any batch normalisation; without it no batch is read.
    """
    module.eval()
    norms = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    norms = [one for one in norms if one.track_running_stats]
    if not norms:
        return False
    momenta = [one.momentum for one in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches, not a moving one
        norm.train()
    for batch in batches:
        risk.outputs(module, batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return True
