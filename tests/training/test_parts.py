"""Parts of a checkpoint: who checks which, and that all ranks answer alike."""

import pytest
import torch

from steering import distributed
from steering.training import checkpoint
from steering.training.checkpoint import load_newest, load_parts, save_checkpoint, save_part


@pytest.fixture
def as_rank(monkeypatch):
    def make(rank, count, agree=lambda ok: ok):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: count)
        monkeypatch.setattr(distributed, "agree", agree)

    return make


def write(folder, as_rank, step, count):
    for rank in range(count):
        as_rank(rank, count)
        save_part(folder, step, {"number": torch.tensor(10 * step + rank)})
    save_checkpoint(folder, step, {"parts": count})


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_part_is_read_for_its_checksum_by_one_rank(tmp_path, as_rank, monkeypatch, count):
    write(tmp_path, as_rank, 3, 4)
    hashed, digest = [], checkpoint.file_sha256
    monkeypatch.setattr(
        checkpoint, "file_sha256", lambda path: hashed.append(path.name) or digest(path)
    )
    for rank in range(count):
        as_rank(rank, count)
        step, state = load_newest(tmp_path, torch.device("cpu"))
        assert (step, state["parts"]) == (3, 4)
    parts = [name for name in hashed if "part" in name]
    assert sorted(parts) == [f"step-000000003.part-{part}-of-4.pt" for part in range(4)]
    assert [part["number"].item() for part in load_parts(tmp_path, 3, 4)] == [30, 31, 32, 33]


def test_what_one_rank_finds_damaged_no_rank_takes(tmp_path, as_rank):
    write(tmp_path, as_rank, 3, 2)
    write(tmp_path, as_rank, 4, 2)
    bad = tmp_path / "step-000000004.part-1-of-2.pt"
    bad.write_bytes(bad.read_bytes()[:-1])
    found = []
    for rank in range(2):
        as_rank(rank, 2, lambda ok: found.append(ok) or ok)
        load_newest(tmp_path, torch.device("cpu"))
    assert found == [
        True,
        False,
        True,
    ]  # rank 0 sees nothing wrong, rank 1 does, and goes on to the one before
    answers = iter([False, True])
    as_rank(0, 2, lambda ok: ok and next(answers))  # what rank 0 is told
    assert load_newest(tmp_path, torch.device("cpu"))[0] == 3
