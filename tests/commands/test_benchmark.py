"""`steering benchmark contrastive`: every variant runs, and the numbers are what their names
say."""

import json

import pytest
import torch

from steering.cli import main
from steering.commands import benchmark


def test_the_command_prints_and_writes_a_row_for_each_variant(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_in_fresh_process", lambda *arguments: 1.5 * arguments[1])
    file, figure = tmp_path / "rows.json", tmp_path / "figure.png"
    words = ["benchmark", "contrastive", "--sizes", "8", "16", "--width", "4", "--rounds", "1"]
    assert main([*words, "--json", str(file), "--figure", str(figure)]) == 0
    rows = json.loads(file.read_text())
    assert [(row["B"], row["variant"]) for row in rows] == [
        (size, name) for size in (8, 16) for name in benchmark.VARIANTS
    ]
    assert [row["over the floor"] for row in rows if row["variant"] == "floor"] == [1.0, 1.0]
    assert [row["over plain CLIP"] for row in rows if row["variant"] == "plain CLIP"] == [1.0, 1.0]
    assert {row["extra MB"] for row in rows} == {12, 24}
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(rows)
    assert figure.stat().st_size > 10_000


def test_memory_is_that_of_the_step():
    # The dense path holds several B × B float32 matrices; 1024² of them are 4 MB each.
    dense = benchmark._in_fresh_process("dense", 1024, 8, torch.device("cpu"))
    lean = benchmark._in_fresh_process("recomputing", 1024, 8, torch.device("cpu"))
    assert dense > 5 * 4.2
    assert lean < dense / 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speed"], "invalid choice"),
        (["contrastive", "--sizes", "1"], "--sizes: expected at least 2, got 1"),
        (["contrastive", "--rounds", "0"], "--rounds: expected at least 1"),
        (["contrastive", "--threads", "0"], "--threads: expected at least 1"),
        (["contrastive", "--device", "tpu"], "--device: expected cpu or cuda, got 'tpu'"),
        (["contrastive", "--json", "nowhere/rows.json"], "--json: there is no folder nowhere"),
        (["contrastive", "--figure", "nowhere/rows.png"], "--figure: there is no folder nowhere"),
    ],
)
def test_wrong_usage_is_exit_code_two(words, message, capsys):
    assert main(["benchmark", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_told_at_once(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["benchmark", "contrastive", "--device", "cuda"]) == 2
    assert "torch finds no NVIDIA GPU here" in capsys.readouterr().err
