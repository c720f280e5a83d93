"""Models and batches that do not suit the training loop: parameters without gradient, a batch of
one."""

from __future__ import annotations

import logging
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from safetensors.torch import load_file
from torch import Tensor, nn

from steering import distributed
from steering.cli import main
from steering.errors import SteeringError
from steering.training.loop import run


class WithSpare(nn.Module):
    """A target with a head that its risk does not use, and a buffer that every forward pass in
    train mode moves."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(toys.WIDTH, momentum=None, affine=False, dtype=torch.float64)
        self.used = nn.Linear(toys.WIDTH, toys.WIDTH, dtype=torch.float64)
        self.spare = nn.Linear(toys.WIDTH, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.norm(x)
        self.spare(x)  # in the graph, as CoCa's captions are, but not in the loss
        return self.used(x)


def spare_job(folder: Path, accumulation: int = 1):
    job = toys.make_job(
        folder,
        kind="units",
        method="erm",
        guided=False,
        dtype="float64",
        samples=64,
        accumulation=accumulation,
    )
    torch.manual_seed(0)
    object.__setattr__(job.target, "module", WithSpare())
    return job


def _work(rank: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=50)
    )
    said = []
    logging.getLogger("steering").addHandler(handler := logging.Handler())
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    for accumulation in (1, 2):
        run(spare_job(folder / f"two-{accumulation}", accumulation))
    (folder / f"said.{rank}").write_text("\n".join(said))
    distributed.barrier()
    distributed.leave()


def test_two_processes_train_what_one_does_with_a_parameter_that_nothing_uses(
    tmp_path: Path,
) -> None:
    context = mp.start_processes(
        _work, (tmp_path,), nprocs=2, join=False, start_method="forkserver"
    )
    end = time.monotonic() + 90
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "two processes wait for each other"
    finally:
        for process in context.processes:
            process.kill()
    for accumulation in (1, 2):
        run(spare_job(tmp_path / "one", accumulation))
        one, two = (
            load_file(tmp_path / name / "model.safetensors")
            for name in ("one", f"two-{accumulation}")
        )
        for key in ("used.weight", "used.bias", "spare.weight", "spare.bias"):
            torch.testing.assert_close(two[key], one[key], rtol=1e-6, atol=1e-9)
        # The trial leaves no trace: as many passes were counted as there were (two for each
        # micro-batch in parts).
        assert (
            two["norm.num_batches_tracked"]
            == one["norm.num_batches_tracked"]
            == 4 * (1 if accumulation == 1 else 4)
        )
        (tmp_path / "one").rename(tmp_path / f"one-{accumulation}")
    assert (
        "2 parameters get no gradient and are frozen: spare.weight, spare.bias"
        in (tmp_path / "said.0").read_text()
    )


def test_a_batch_of_one_pair_is_a_mistake_in_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from steering.config import ConfigError, load_config
    from steering.runs.ask import Ask
    from steering.runs.store import Store
    from steering.runs.workshop import Workshop

    path = toys.write_config(tmp_path)
    for command in ("train", "compare"):
        assert main([command, str(path), "train.batch_size=1"]) == 2
        assert capsys.readouterr().err.startswith("steering: error: train.batch_size: ")
    assert not (tmp_path / "runs").exists()
    workshop = Workshop(Store(tmp_path / "runs"), torch.device("cpu"))
    with pytest.raises(ConfigError, match="expected at least 2, got 1"):
        workshop.fitting(Ask(load_config(path, ["train.batch_size=1"]), "pairs"))
    workshop.fitting(Ask(load_config(path, ["train.batch_size=1", "task.kind=units"]), "units"))


@pytest.mark.parametrize("method", ["erm", "dro", "drrho", "nested", "jest"])
def test_a_batch_of_two_pairs_trains(tmp_path: Path, method: str) -> None:
    path = toys.write_config(tmp_path)
    words = ["train.batch_size=2", "train.accumulation=2", "train.samples=4", f"method={method}"]
    scale = (
        ["method.reference_scale=20"] if method == "jest" else []
    )  # the toy model does not tell its own
    assert main(["train", str(path), *words, *scale, "reference.cache=null"]) == 0


def test_batch_normalisation_of_one_example_is_told_in_one_line(tmp_path: Path) -> None:
    job = spare_job(tmp_path, accumulation=16)
    job.target.module.norm.momentum = 0.1
    with pytest.raises(
        SteeringError, match=r"train.batch_size: 16 over 1 processes times train.accumulation 16"
    ):
        run(job)
