"""Models that do not suit the loop: found with one batch before the first step where possible, else
said in plain words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from steering import distributed
from steering.data import IndexedData
from steering.errors import SteeringError
from steering.reading import report_once
from steering.risk import Batch, ReferenceRisk
from steering.schema import TrainConfig
from steering.training.plan import Plan
from steering.training.step import random_state, set_random_state

SHOWN = 3  # names in the message


def first_part(
    data: IndexedData, plan: Plan, train: TrainConfig, device: torch.device
) -> dict[str, Tensor]:
    """The first micro-batch that this rank trains on, on the device."""
    ranks = distributed.world_size()
    index = plan.indices(0, distributed.rank(), ranks)[
        : train.batch_size // (ranks * train.accumulation)
    ]
    return {key: value.to(device) for key, value in data.batch(index, 0).items()}


def freeze_unused(
    module: nn.Module,
    risk: ReferenceRisk,
    batch: Batch,
    autocast: Callable[[], AbstractContextManager],
) -> list[str]:
    """Freeze the parameters that the risk's outputs do not depend on, such as CoCa's text decoder,
    and say which.

    DDP waits for the gradient of every parameter that is not frozen, and fails in the second step
    if one has none. One batch is tried out, on every rank at once; what any rank uses stays as it
    is. Gradients, buffers and random numbers are left as they were. In one process there is nothing
    to do: the optimizer passes over a parameter without gradient.

    Args:
        batch: of this rank, on the module's device.
        autocast: makes the context of the forward pass.

    Returns:
        Names of the frozen parameters.
    """
    # One process has no reducer that waits for a gradient.
    if not distributed.active():
        return []
    named = [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]
    device = batch["index"].device
    # Batch norm and dropout would otherwise begin the run one step later.
    state, buffers = random_state(device), [(buffer, buffer.clone()) for buffer in module.buffers()]
    with autocast():
        outputs = [value for value in risk.outputs(module, batch).values() if value.requires_grad]
    # A model without any output to differentiate is told as such later; here nothing is frozen.
    used = [True] * len(named)
    if outputs and named:
        # Any number that depends on every output will do. `grad`, not `backward`, so that nothing
        # is added to the parameters' `.grad`.
        total = torch.stack([value.float().sum() for value in outputs]).sum()
        found = torch.autograd.grad(total, [parameter for _, parameter in named], allow_unused=True)
        used = [gradient is not None for gradient in found]
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    set_random_state(device, state)
    anywhere = torch.tensor(used, dtype=torch.uint8, device=device)
    # A parameter that one rank alone uses (a rare branch) must stay trained on all.
    dist.all_reduce(anywhere, dist.ReduceOp.MAX)
    frozen = []
    for (name, parameter), kept in zip(named, anywhere.tolist(), strict=True):
        if not kept:
            parameter.requires_grad_(False)
            frozen.append(name)
    if frozen:
        names = ", ".join(frozen[:SHOWN]) + (", ..." if len(frozen) > SHOWN else "")
        report_once(
            f"target: {len(frozen)} parameters get no gradient and are frozen: {names}",
            logging.WARNING,
        )
    return frozen


@contextmanager
def in_plain_words(train: TrainConfig) -> Iterator[None]:
    """Around a pass through the target: what torch says of a model that does not suit the loop, as
    one line.

    Raises:
        SteeringError: batch normalisation of one example; or, under DDP, a parameter without
            gradient that `freeze_unused` did not see, as its first batch used it.
    """
    try:
        yield
    except ValueError as error:
        if "Expected more than 1 value per channel" not in str(error):
            raise
        raise SteeringError(
            f"train.batch_size: {train.batch_size} over {distributed.world_size()} processes times train.accumulation "
            f"{train.accumulation} is a single example, and the target's batch normalisation needs 2 or more at a time"
        ) from error
    except RuntimeError as error:
        if "finished reduction in the prior iteration" not in str(error):
            raise
        raise SteeringError(
            "training: some parameters of the target got no gradient in the last step, as in a layer that is passed over now "
            "and then; with several processes each needs one in every step: freeze them, or train in one process"
        ) from error
