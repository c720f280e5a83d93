"""Where a command runs: device, threads, process group."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from steering import distributed
from steering.errors import SteeringError


@contextmanager
def session(device: str, threads: int | None) -> Iterator[torch.device]:
    """Set up this process and yield its device; under torchrun also join the process group, and
    leave it at the end.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; under torchrun a GPU's number is the local rank.
        threads: CPU threads of torch, or None to leave them.

    Raises:
        SteeringError: a GPU is asked for where there is none.
    """
    with _log_to_stderr():
        yield from _joined(device, threads)


def _joined(device: str, threads: int | None) -> Iterator[torch.device]:
    if threads is not None:
        torch.set_num_threads(threads)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # Before the group is made: NCCL binds each rank to the current device.
    chosen = choose_device(device, int(os.environ["LOCAL_RANK"]) if world > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        try:
            yield chosen
        finally:
            distributed.leave()
    else:
        yield chosen


@contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Show the log's lines, unless the surrounding program handles them; ranks but the first show
    warnings only."""
    logger = logging.getLogger("steering")
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("steering: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def choose_device(device: str, local_rank: int | None) -> torch.device:
    """The torch device for a config's `device`; `local_rank` is None outside torchrun."""
    count = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cpu" or (device == "auto" and not count):
        return torch.device("cpu")
    number = int(device.partition(":")[2] or 0) if local_rank is None else local_rank
    if number >= count:
        raise SteeringError(
            f"device: cuda:{number} was asked for, but {count} GPUs are visible; use device=cpu or device=auto"
        )
    return torch.device("cuda", number)
