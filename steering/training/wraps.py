"""How the target stands over several processes: as it is, or in DDP.

All that knows it stands here, which is the seam for FSDP2 (`fully_shard`). It will need: `wrapped` to
shard the module before the optimiser is built, whose states must be of the shards; `reduced_only` to
call `set_requires_gradient_sync`; and `whole_state` and `load_whole_state` to gather and scatter
(`torch.distributed.checkpoint.state_dict`, for the optimiser too). Every rank calls these four
together, and evaluation runs on all ranks, so that a gathering never waits for rank 0 alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from steering import distributed


def wrapped(module: nn.Module, device: torch.device) -> nn.Module:
    """The module that computes gradients: in DDP if there are several ranks."""
    if not distributed.active():
        return module
    return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)


def reduced_only(module: nn.Module, last: bool) -> AbstractContextManager:
    """DDP reduces gradients in the last micro-batch alone: its forward and backward pass stand
    inside this context."""
    if isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The state dict of the module that was given to `wrapped`, whole on every rank."""
    return module.state_dict()


def load_whole_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Take over what `whole_state` gave."""
    module.load_state_dict(state)
