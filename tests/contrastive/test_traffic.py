"""Bytes that a rank receives in one step of the contrastive risk, counted in real gloo processes,
against the formula."""

import json
import multiprocessing
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from adversaries import stochastic

from steering import distributed
from steering.contrastive import Pairs
from steering.contrastive.risk import anchor_risks

B, D, REFERENCE = 24, 10, 6


class Case(NamedTuple):
    guided: torch.dtype | None = None
    split: bool = False
    own: bool = False
    frozen: str | None = None


CASES = [
    Case(),
    Case(torch.float32),
    Case(torch.float16),
    Case(torch.float32, split=True),
    Case(own=True),
    Case(split=True, own=True),
    Case(frozen="image"),
    Case(frozen="text"),
]


def process(rank: int, count: int, folder: Path) -> None:
    """All cases, one after the other, in one group: starting the processes costs more than they do."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=count)
    received = {"features": 0, "numbers": 0}

    def note(width: int, size: int) -> None:
        received["features" if width in (D, REFERENCE) else "numbers"] += size

    gather, scatter, swap = dist.all_gather, dist.reduce_scatter_tensor, dist.all_to_all_single

    def counted_gather(parts, x):
        note(x.shape[-1] if x.ndim == 2 else 0, (count - 1) * x.nbytes)
        return gather(parts, x)

    def counted_scatter(own, x, async_op):
        note(own.shape[-1], (count - 1) * own.nbytes)
        return scatter(own, x, async_op=async_op)

    def counted_swap(received, x):
        note(0, x.nbytes - x.nbytes // count)
        return swap(received, x)

    distributed.dist.all_gather, distributed.dist.reduce_scatter_tensor = (
        counted_gather,
        counted_scatter,
    )
    distributed.dist.all_to_all_single = counted_swap
    found = []
    for case in CASES:
        received.update(features=0, numbers=0)
        step(rank, count, case)
        found.append(dict(received))
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.leave()


def step(rank: int, count: int, case: Case) -> None:
    guided, split, own, frozen = case
    b = B // count
    generator = torch.Generator().manual_seed(rank)
    image, text = (
        F.normalize(torch.randn(b, D, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    )
    if frozen is not None:
        {"image": image, "text": text}[frozen].requires_grad_(False)
    guide = []
    if guided is not None:
        guide = [
            F.normalize(torch.randn(b, REFERENCE, generator=generator), dim=-1).to(guided)
            for _ in range(2)
        ]
    radius = 0.2 if own else None
    risk = stochastic(2 * B, tau=0.1, gamma=0.5, radius=radius, individual_tau=own, split=split)
    pairs = Pairs(image, text, torch.arange(rank * b, (rank + 1) * b), *guide)
    anchor_risks(risk, pairs)[0].mean().backward()


@pytest.fixture(scope="module", params=[2, 4])
def received(request, tmp_path_factory):
    """Number of ranks, and what each of them received in each case."""
    count, folder = request.param, tmp_path_factory.mktemp("traffic")
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=process, args=(rank, count, folder)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=90)
    assert [worker.exitcode for worker in workers] == [0] * count
    return count, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_received_by_a_rank(case, received):
    count, by_rank = received
    guided, split, own, frozen = case
    b = B // count
    for found in by_rank:
        told = found[CASES.index(case)]
        # Texts gathered, their gradient reduce-scattered; with a reference its texts gathered too,
        # in the format they have.
        features = (4 if frozen == "text" else 8) * (count - 1) * b * D
        features += 0 if guided is None else guided.itemsize * (count - 1) * b * REFERENCE
        assert told["features"] == features
        # Sums of its own columns (b from each), duals and signs (2b), rows and new estimates (2b
        # each, 8 and 4 bytes); if each rank holds its part of the estimates alone, rows once more,
        # and the old estimates handed to who asked.
        numbers = 4 * b + 2 * 4 * b + 2 * (8 + 4) * b + (2 * (8 + 4) * b if split else 0)
        # temperatures of texts; means of columns; four new numbers a row, and four old ones if they
        # are split
        if own:
            numbers += 4 * b + 4 * b + 2 * (8 + 16) * b + (2 * (8 + 16) * b if split else 0)
        assert told["numbers"] == (count - 1) * numbers
