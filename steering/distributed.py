"""The few collectives that the framework needs. Every function is the identity in a single
process."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def active() -> bool:
    """True inside an initialised process group of more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def gather(x: Tensor) -> Tensor:
    """Concatenate (b, ...) over the ranks into (K·b, ...), rank 0 first; every rank must bring the
    same shape.

    The gradient flows back to the rank that owns a row, summed over the ranks. So when each rank's
    loss is its share of a mean (or each rank holds the same global loss), averaging parameter
    gradients over the ranks, as DDP does, gives the gradient of a single process on the whole
    batch.
    """
    if not active():
        return x
    x = x.contiguous()
    if x.requires_grad and torch.is_grad_enabled():
        whole = torch.cat(all_gather_with_gradient(x))
        # Torch's backward for gloo receives into buffers strided like the gradient, and scrambles a
        # transposed one.
        whole.register_hook(lambda gradient: gradient.contiguous())
        return whole
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def share(n: int) -> range:
    """This rank's contiguous share of n things; the shares of all ranks, in order, are 0 .. n−1."""
    size, own = world_size(), rank()
    return range(own * n // size, (own + 1) * n // size)


@torch.no_grad()
def gather_uneven(x: Tensor) -> Tensor:
    """Concatenate (n_r, ...) over the ranks, which may bring different numbers of rows, rank 0
    first; without gradient."""
    if not active():
        return x
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor(len(x), device=x.device))
    longest = max(int(count) for count in counts)
    padded = x.new_zeros(longest, *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Average the gradients of a small module over the ranks: what DDP does for the target, for a
    method's temperature."""
    if not active():
        return
    for parameter in module.parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def mean(x: Tensor) -> Tensor:
    """Mean of a scalar over the ranks, without gradient."""
    if not active():
        return x.detach()
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def total(numbers: list[float]) -> list[float]:
    """Sums over the ranks of a few plain numbers, for what is asked once a run."""
    if not active():
        return numbers
    every: list[list[float]] = [numbers] * world_size()
    dist.all_gather_object(every, numbers)
    return [sum(column) for column in zip(*every, strict=True)]


def agree(ok: bool) -> bool:
    """Whether it holds on every rank; on every rank the same answer."""
    if not active():
        return ok
    answers: list[bool] = [ok] * world_size()
    dist.all_gather_object(answers, ok)
    return all(answers)


def total_count(count: int) -> int:
    """A number of this rank's things, summed over the ranks."""
    if not active():
        return count
    counts: list[int] = [count] * world_size()
    dist.all_gather_object(counts, count)
    return sum(counts)


def gather_objects(value: Any) -> list[Any]:
    """What every rank holds, rank 0 first; plain objects, for what is asked rarely."""
    if not active():
        return [value]
    every: list[Any] = [value] * world_size()
    dist.all_gather_object(every, value)
    return every


def barrier() -> None:
    if active():
        dist.barrier()


def leave() -> None:
    """End the process group, and with it gloo's threads, if nothing but forgotten cycles holds it
    any more (DDP does).

    A gloo thread that outlives the group can let go of a tensor while the interpreter shuts down,
    and that aborts the process (SIGABRT, "terminate called without an active exception";
    pytorch/pytorch#179291).
    """
    gc.collect()
    dist.destroy_process_group()


@torch.no_grad()
def swap(x: Tensor) -> Tensor:
    """Send the j-th of K equal parts of (K·b, ...) to rank j, and get as many rows, the i-th part
    from rank i: an all-to-all."""
    if not active():
        return x
    x = x.contiguous()
    received = torch.empty_like(x)
    dist.all_to_all_single(received, x)
    return received


@torch.no_grad()
def sum_to_owner(x: Tensor) -> Tensor:
    """Sum (K·b, ...) over the ranks and give each its own b rows: a reduce-scatter, the transpose
    of `gather`."""
    return send_to_owner(x).wait()


@dataclass(frozen=True)
class Arriving:
    """Rows on their way from the other ranks; what is sent is held for as long."""

    own: Tensor
    sent: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        """The rows, (b, ...). On a GPU it is the stream that waits, not the process."""
        if self.work is not None:
            self.work.wait()
        return self.own


@torch.no_grad()
def send_to_owner(x: Tensor) -> Arriving:
    """`sum_to_owner` in the background, while this rank computes something else."""
    if not active():
        return Arriving(x, x, None)
    x = x.contiguous()
    own = x.new_empty(len(x) // world_size(), *x.shape[1:])
    return Arriving(own, x, dist.reduce_scatter_tensor(own, x, async_op=True))
