"""`steering.reference_losses`: one pass of a frozen model, its checks, its file, and several ranks."""

import json
import multiprocessing
import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import steering
from steering import distributed
from steering.errors import SteeringError
from steering.reference_pass import record

N = 23
Named = namedtuple("Named", "x y")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = noise(N, 4), torch.arange(N) % 3


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def expected() -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(make().eval()(X), Y, reduction="none")


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
    return F.cross_entropy(model(x), y, reduction="none")


def items(order: list[int] | None = None) -> list[dict[str, Any]]:
    return [{"x": X[i], "y": Y[i], "index": i} for i in order or range(N)]


class Counting:
    """A loss function that counts the examples it was asked for, and can be killed."""

    def __init__(self, dies_after: int = 10**9) -> None:
        self.examples, self.left = 0, dies_after

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        losses = loss_of(model, batch)
        self.examples += len(losses)
        return losses


def same(found: Tensor) -> None:
    torch.testing.assert_close(found, expected())
    assert found.dtype == torch.float32
    assert not found.requires_grad


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(TensorDataset(X, Y), batch_size=5),
        DataLoader(items(), batch_size=5, shuffle=True),
        DataLoader(items([*reversed(range(N))]), batch_size=5),
    ],
    ids=["in order", "shuffled, with numbers", "another order, with numbers"],
)
def test_the_losses_stand_at_the_numbers_of_their_examples(loader: DataLoader) -> None:
    same(steering.reference_losses(make(), loader, loss_of))


def test_any_batches_will_do() -> None:
    parts = torch.arange(N).split(5)
    named = [Named(X[part], Y[part]) for part in parts]
    same(steering.reference_losses(make(), named, loss_of, num_examples=N))
    shuffled = DataLoader(
        TensorDataset(X, Y, torch.arange(N)),
        batch_size=4,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )
    found = steering.reference_losses(make(), shuffled, loss_of, index_of=lambda batch: batch[2])
    same(found)


def test_the_model_comes_back_as_it_was() -> None:
    model = make().train()
    model[0].eval()  # somebody has frozen a part

    def look(model: nn.Module, batch: Any) -> Tensor:
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        return loss_of(model, batch)

    steering.reference_losses(model, DataLoader(items(), batch_size=9), look)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    with pytest.raises(KeyboardInterrupt):
        steering.reference_losses(model, DataLoader(items(), batch_size=9), Counting(0))
    assert [module.training for module in model.modules()] == [True, False, True, True]
    assert torch.is_grad_enabled()


def test_half_precision_is_kept_as_float32() -> None:
    model = make().bfloat16()
    batches = [(X[part].bfloat16(), Y[part]) for part in torch.arange(N).split(5)]
    found = steering.reference_losses(model, batches, loss_of, num_examples=N)
    assert found.dtype == torch.float32


# ---- the file


def test_a_file_is_read_the_second_time(tmp_path: Path) -> None:
    path, loader = tmp_path / "new" / "reference.safetensors", DataLoader(items(), batch_size=5)
    first, second = Counting(), Counting()
    found = steering.reference_losses(make(), loader, first, file=path)
    again = steering.reference_losses(make(), loader, second, file=str(path))
    same(found)
    assert torch.equal(found, again)
    assert (first.examples, second.examples) == (N, 0)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_killed_pass_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "FLUSH_SECONDS", -1.0)  # after each batch
    path, loader = tmp_path / "reference.safetensors", DataLoader(items(), batch_size=5)
    with pytest.raises(KeyboardInterrupt):
        steering.reference_losses(make(), loader, Counting(3), file=path)
    assert not path.exists()  # a file is whole, or is not there
    rest = Counting()
    other_order = DataLoader(items(), batch_size=4, shuffle=False)  # batches of another size
    same(steering.reference_losses(make(), other_order, rest, file=path))
    assert rest.examples == 8 + 3  # examples 15 .. 22: those of the batches that hold any of them
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_file_belongs_to_weights_and_a_number_of_examples(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    steering.reference_losses(make(), DataLoader(items(), batch_size=5), loss_of, file=path)
    other = make()
    other[0].weight.data[0, 0] += 1
    with pytest.raises(SteeringError, match=r"reference.safetensors: holds losses of something e"):
        steering.reference_losses(other, DataLoader(items(), batch_size=5), loss_of, file=path)
    with pytest.raises(SteeringError, match=r"weights \w{12}, now \w{12}.*delete it, or give"):
        steering.reference_losses(other, DataLoader(items(), batch_size=5), loss_of, file=path)
    fewer = DataLoader(items([*range(9)]), batch_size=5)
    with pytest.raises(SteeringError, match=rf"{N} examples, now 9\)"):
        steering.reference_losses(make(), fewer, loss_of, file=path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path, loader = tmp_path / "reference.safetensors", DataLoader(items(), batch_size=5)
    steering.reference_losses(make(), loader, loss_of, file=path)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SteeringError, match="is damaged; delete it"):
        steering.reference_losses(make(), loader, loss_of, file=path)
    for content in (b"", b"anything", bytes(whole[:50])):
        path.write_bytes(content)
        with pytest.raises(SteeringError, match=r"not a file of reference losses .*; delete it"):
            steering.reference_losses(make(), loader, loss_of, file=path)
    for metadata in (None, {"steering": "[]"}, {"steering": json.dumps({"weights": "a"})}):
        save_file({"losses": torch.zeros(N)}, path, metadata=metadata)
        with pytest.raises(SteeringError, match="not a file of reference losses"):
            steering.reference_losses(make(), loader, loss_of, file=path)


def test_a_file_that_cannot_be_written_is_refused_before_the_pass(tmp_path: Path) -> None:
    counting, loader = Counting(), DataLoader(items(), batch_size=5)
    (tmp_path / "file").write_text("")
    for path, message in [
        (tmp_path, "is a folder, expected a file such as"),
        (tmp_path / "file" / "reference.safetensors", "cannot be written: .*File exists"),
    ]:
        with pytest.raises(SteeringError, match=message):
            steering.reference_losses(make(), loader, counting, file=path)
    assert counting.examples == 0


def test_the_file_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    found = steering.reference_losses(make(), DataLoader(items()), loss_of, file=path)
    assert torch.equal(load_file(path)["losses"], found)


# ---- what is wrong


SHUFFLED = BatchSampler(RandomSampler(range(N)), 5, drop_last=False)


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(items())


def replaced(number: int, index: int) -> list[dict[str, Any]]:
    changed = items()
    changed[number]["index"] = index
    return changed


def no_finite(model: nn.Module, batch: Any) -> Tensor:
    return loss_of(model, batch).masked_fill(batch["index"] == 7, float("nan"))


@pytest.mark.parametrize(
    ("loader", "more", "message"),
    [
        (DataLoader(replaced(3, 4), batch_size=5), {}, "example 4 is there twice"),
        (DataLoader(replaced(3, N), batch_size=5), {}, rf"number {N}, expected 0 .. {N - 1}, as"),
        (DataLoader(replaced(3, -1), batch_size=5), {}, "example number -1, expected"),
        (DataLoader(items([0, 2, 4, 5])), {"num_examples": 6}, "2 of 6 examples never came: 1, 3"),
        (DataLoader(items([0])), {"num_examples": 9}, "8 of 9 .* never came: 1, 2, 3, 4, 5, ..."),
        (DataLoader(TensorDataset(X, Y), shuffle=True), {}, "the loader may shuffle.*index_of="),
        (DataLoader(TensorDataset(X, Y), batch_sampler=SHUFFLED), {}, "the loader may shuffle"),
        (DataLoader(TensorDataset(X, Y), batch_sampler=[[1, 0], [2, 3]]), {}, "may shuffle"),
        (DataLoader(Stream(), batch_size=5), {}, "does not tell how many.*num_examples="),
        (items(), {}, "does not tell how many"),
        (DataLoader(items()), {"num_examples": 0}, "num_examples must be at least 1, got 0"),
        (
            DataLoader(items(), batch_size=5),
            {"index_of": lambda batch: batch["x"]},
            r"must be integers, \(b,\), got torch.float32, \(5, 4\)",
        ),
    ],
)
def test_what_is_wrong_is_named(loader: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SteeringError, match=message):
        steering.reference_losses(make(), loader, loss_of, **more)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (no_finite, "the loss of example 7 is nan, expected a finite number"),
        (
            lambda model, batch: loss_of(model, batch).mean(),
            r"\(5,\) .*got \(\); use reduction='no",
        ),
        (lambda *_: 1.0, r"one loss an example, \(5,\) for this batch, got float"),
    ],
)
def test_a_loss_function_that_does_not_fit(loss_fn: Any, message: str) -> None:
    with pytest.raises(SteeringError, match=message):
        steering.reference_losses(make(), DataLoader(items(), batch_size=5), loss_fn)


def test_a_stream_with_a_number_of_examples_will_do() -> None:
    loader = DataLoader(Stream(), batch_size=5)
    same(steering.reference_losses(make(), loader, loss_of, num_examples=N))


# ---- several ranks


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    counting, data = Counting(), items()
    shared = steering.reference_losses(
        make(), DataLoader(data, batch_size=5), counting, file=folder / "shared.safetensors"
    )
    parts = DataLoader(data, batch_size=5, sampler=DistributedSampler(data, shuffle=True))
    parted = steering.reference_losses(make(), parts, counting)
    told = ""
    try:  # rank 0 alone meets the seventh example
        steering.reference_losses(make(), DataLoader(data, batch_size=12), no_finite)
    except SteeringError as error:
        told = str(error)
    orders = []
    for generator in (None, torch.Generator().manual_seed(rank)):
        torch.manual_seed(rank)
        shuffled = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
        try:
            steering.reference_losses(make(), shuffled, loss_of)
        except SteeringError as error:
            orders.append(str(error))
    alike = DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3))
    one_order = steering.reference_losses(make(), alike, loss_of)
    found = (shared, parted, counting.examples, told, orders, one_order)
    torch.save(found, folder / f"{rank}.pt")
    distributed.barrier()
    distributed.leave()


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=process, args=(rank, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=90)
    assert [worker.exitcode for worker in workers] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for shared, parted, _, _, orders, one_order in found:
        same(shared)
        same(parted)
        same(one_order)
        assert "the loader shuffles, in each process in an order of its own" in orders[0]
        assert "the processes' loaders have different orders" in orders[1]
    assert [one[2] for one in found] == [13 + 12, 10 + 12]
    assert "the loss of example 7 is nan" in found[0][3]
    assert "another process has failed" in found[1][3]
    assert not [*tmp_path.glob("*.part*")]
