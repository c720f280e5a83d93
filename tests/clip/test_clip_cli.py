"""CLIP through the command line: whole runs of seconds on shards, tables and glyphs; and bad input,
each one clear line."""

from __future__ import annotations

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_data import CAPTIONS, HOME, drawing, members, model_json, png, write_shard

from steering.cli import main


def run_yaml(folder: Path, **changes: Any) -> str:
    """A run on shards in the folder, made if missing, with tiny models; changes are of top-level
    sections."""
    for name, numbers in (("train.tar", range(96)), ("held.tar", range(96, 144))):
        if not (folder / name).exists():
            write_shard(folder / name, members(*numbers))
    model, small = (
        model_json(folder / "model.json"),
        model_json(folder / "small.json", embed_dim=16),
    )
    config = {
        "name": "study",
        "output": str(folder / "runs"),
        "device": "cpu",
        "task": {
            "name": "clip",
            "data": {"source": "shards", "path": str(folder / "train.tar")},
            "retrieval": {"held": str(folder / "held.tar")},
            "recall_at": [1, 5],
        },
        "target": str(model),
        "reference": {
            "name": str(small),
            "cache": "auto",
            "train": {"train.samples": 32, "task.data.fraction": 0.5},
        },
        "method": "drrho",
        "train": {"samples": 64, "batch_size": 16, "log_every": 1},
        "compare": {
            "methods": {"clip": {"name": "erm"}, "drrho-clip": {"name": "drrho", "strength": 0.5}}
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config | changes))
    return str(path)


def complaint(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """The one line on stderr of a command that fails."""
    capsys.readouterr()
    assert main(words) == code
    err = capsys.readouterr().err
    lines = [
        line for line in err.splitlines() if " steps, " not in line
    ]  # but for the progress of what went before
    assert len(lines) == 1, err
    assert lines[0].startswith("steering: error: ")
    assert len(lines[0]) < 600
    return lines[0]


def record(path: Path) -> dict[str, Any]:
    return json.loads((path / "record.json").read_text())


def test_a_study_on_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, study = run_yaml(tmp_path), tmp_path / "runs/study"
    assert main(["cache", config]) == 0
    assert "96 examples cached in" in capsys.readouterr().out
    assert main(["compare", config]) == 0
    out, err = capsys.readouterr()
    assert "held" in out
    assert "Traceback" not in err
    rows = {row["method"]: row for row in json.loads((study / "compare.json").read_text())}
    assert [*rows] == ["reference", "clip", "drrho-clip"]
    for row in rows.values():
        assert [*row["metrics"]] == sorted(row["metrics"])
        assert {name.split("/")[0] for name in row["metrics"]} == {"held"}
        assert all(0 <= value <= 1 for value in row["metrics"].values())
    assert rows["reference"]["samples"] == 32
    assert rows["clip"]["samples"] == rows["drrho-clip"]["samples"] == 64
    assert (study / "compare.png").stat().st_size > 1000
    assert (
        main(["evaluate", config, f"target.checkpoint={study}/clip-seed0/model.safetensors"]) == 0
    )
    assert "reference" in capsys.readouterr().out


def test_training_finds_the_captions(tmp_path: Path) -> None:
    # 32 different captions; chance is 1 in 32.
    config = run_yaml(tmp_path)
    assert (
        main(
            [
                "train",
                config,
                "method=erm",
                "train.samples=2560",
                "train.batch_size=64",
                "optimizer.lr=3e-3",
            ]
        )
        == 0
    )
    assert record(tmp_path / "runs/study/erm-seed0")["metrics"]["held/image_to_text_R@1"] > 0.2


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    for name, numbers in (("train.tsv", range(64)), ("held.csv", range(64, 96))):
        with (tmp_path / name).open("w", newline="") as stream:
            table = csv.writer(stream, "excel-tab" if name.endswith("tsv") else "excel")
            table.writerow(["caption", "image"])
            for i in numbers:
                (tmp_path / f"{i}.png").write_bytes(png(drawing(i)))
                table.writerow([CAPTIONS[i % 32], f"{i}.png"])
    data = {"name": "clip", "data": {"source": "table", "path": str(tmp_path / "train.tsv")}}
    data |= {"retrieval": {"mine": str(tmp_path / "held.csv")}}
    reference = {
        "name": str(model_json(tmp_path / "other.json", image_size=64)),
        "cache": None,
    }  # live, with its own view
    assert (
        main(["train", run_yaml(tmp_path, task=data, reference=reference), "train.workers=1"]) == 0
    )
    metrics = record(tmp_path / "runs/study/drrho-seed0")["metrics"]
    assert metrics["mine/text_to_image_R@1"] <= metrics["mine/text_to_image_R@10"] <= 1


@pytest.mark.usefixtures("at_home")
def test_glyphs_smoke(tmp_path: Path) -> None:
    words = [
        "configs/clip/glyphs.yaml",
        "smoke=true",
        f"output={tmp_path}",
        "train.eval_every=0",
        "device=cpu",
    ]
    words.append("task.data.fraction=0.05")  # of which the reference's features are kept
    assert main(["train", *words]) == 0
    found = record(tmp_path / "glyphs-smoke/drrho-seed0")
    assert found["cost"]["trained"] == 1024
    assert found["cost"]["forward_flops"] > 10**6
    assert {name.split("/")[0] for name in found["metrics"]} == {
        "heldout_images",
        "heldout_characters",
        "heldout_fonts",
    }


@pytest.mark.usefixtures("at_home")
@pytest.mark.parametrize("name", ["shards", "table"])
def test_our_example_configs_without_their_data(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = complaint(
        capsys, "train", f"configs/clip/{name}.yaml", "smoke=true", f"output={tmp_path}"
    )
    assert "data/heldout" in message
    held = str(write_shard(tmp_path / "held.tar", members(0, 1)))
    words = [
        "train",
        f"configs/clip/{name}.yaml",
        "smoke=true",
        f"output={tmp_path}",
        f"task.retrieval.heldout={held}",
    ]
    assert "data/train" in complaint(capsys, *words)


@pytest.mark.usefixtures("at_home")
def test_our_example_config_for_shards(tmp_path: Path) -> None:
    train = [
        write_shard(tmp_path / f"train-{k}.tar", members(*range(k * 48, k * 48 + 48)))
        for k in range(2)
    ]
    held = write_shard(tmp_path / "test-0.tar", members(*range(96, 128)))
    words = [
        f"task.data.path={train[0].parent}/train-*.tar",
        f"task.retrieval.heldout={held}",
        f"output={tmp_path}",
    ]
    assert main(["train", "configs/clip/shards.yaml", "smoke=true", *words]) == 0
    assert record(tmp_path / "shards-smoke/drrho-seed0")["cost"]["trained"] == 192


def test_a_skipped_sample_and_an_undecodable_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    files = members(*range(64)) | {"00007.png": b"no image", "00009.txt": b" \n"}
    del files["00008.txt"]
    write_shard(tmp_path / "train.tar", files)
    assert (
        main(["train", run_yaml(tmp_path), "train.samples=128"]) == 0
    )  # two epochs of 62 pairs, one replaced in each
    assert record(tmp_path / "runs/study/drrho-seed0")["cost"]["skipped"] == 2
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    [described] = [line for line in said if line.startswith("task.data: ")]
    assert described == "task.data: 62 pairs in 1 tar shards (train.tar); skipped: 2 no caption"
    [replaced] = [line for line in said if "drrho-seed0" in line]
    assert "2 unreadable examples were replaced by others" in replaced
    assert any("00007: cannot decode the image" in line for line in said)
    assert "Traceback" not in capsys.readouterr().err


BAD_SHARDS = {
    "missing": (None, "train.tar: no such file"),
    "empty": (b"", "train.tar: not a plain, uncompressed tar file: empty file"),
    "not a tar": (b"not a tar" * 1000, "train.tar: not a plain, uncompressed tar file"),
    "without samples": (
        {"notes.md": b"nothing"},
        "train.tar: no samples; expected members like KEY.jpg",
    ),
    "without captions": ({"0.png": b"x"}, "no sample has both an image"),
    "undecodable": (
        {f"{i}.{s}": b"x" for i in range(40) for s in ("png", "txt")},
        "are all unreadable",
    ),
}


@pytest.mark.parametrize(
    ("kind", "workers"), [*((kind, 0) for kind in [*BAD_SHARDS, "truncated"]), ("undecodable", 1)]
)
def test_bad_shards(
    tmp_path: Path, kind: str, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_yaml(tmp_path)
    content, words = BAD_SHARDS.get(kind, (b"", "train.tar: the tar is cut short"))
    train = tmp_path / "train.tar"
    data = train.read_bytes()
    train.unlink()
    if isinstance(content, dict):
        write_shard(train, content)
    elif content is not None:
        train.write_bytes(data[: len(data) // 2] if kind == "truncated" else content)
    assert words in complaint(capsys, "train", config, "method=erm", f"train.workers={workers}")


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("train.smaples=3", 2, "unknown key 'train.smaples'; did you mean 'train.samples'?"),
        ("task.data.pth=x", 2, "unknown key 'task.data.pth'; did you mean 'task.data.path'?"),
        ("task.recall_at=[]", 2, "recall_at: expected one or more numbers >= 1"),
        ("task.recall_at=[0]", 2, "recall_at: expected one or more numbers >= 1"),
        ("task.data.caption_noise=1.5", 2, "caption_noise: expected a number in [0, 1], got 1.5"),
        ("task.data.fraction=1e-9", 1, "fraction: 1e-09 of 96 examples is none"),
        (
            "train.batch_size=256",
            2,
            "train.samples: 64 is less than one batch, train.batch_size 256",
        ),
        ("optimizer.lr=1e30", 1, "not finite"),
        ("target.checkpoint=absent.safetensors", 1, "checkpoint: no such file: absent.safetensors"),
        ("target.name=absent.json", 1, "cannot read the model config absent.json: No such file"),
        ("target.name=ViT-B-33", 1, "did you mean 'ViT-B-32'?"),
        ("target.pretrained=openai", 1, "not a known tag"),
        ("task.retrieval.held=absent.tar", 1, "absent.tar: no such file"),
        ("task.zero_shot.path=absent", 1, "task.zero_shot.path: "),
    ],
)
def test_bad_values(
    tmp_path: Path, override: str, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_yaml(tmp_path)
    assert words in complaint(capsys, "train", config, "method=erm", override, code=code)
    assert not list(tmp_path.rglob("record.json"))


def test_a_batch_larger_than_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["method=erm", "train.batch_size=128", "train.samples=256"]
    message = complaint(capsys, "train", run_yaml(tmp_path), *words)
    assert "train.batch_size: 128 is more than the 96 training examples" in message


@pytest.mark.parametrize("text", ["not json", "[]", "{}"])
def test_a_model_file_that_is_not_one(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_yaml(tmp_path)
    (tmp_path / "model.json").write_text(text)
    assert "model.json is not an open_clip model config" in complaint(capsys, "train", config)


def test_outputs_of_other_data_lie_beside(tmp_path: Path) -> None:
    config, folder = run_yaml(tmp_path), f"reference.cache={tmp_path / 'kept'}"
    assert main(["cache", config, folder]) == 0
    write_shard(tmp_path / "train.tar", members(*range(1, 97)))
    assert main(["train", config, folder, f"output={tmp_path / 'others'}"]) == 0
    stored = [
        json.loads(path.read_text())["fingerprint"]
        for path in (tmp_path / "kept").glob("*/outputs.json")
    ]
    assert len(stored) == 2  # beside each other
    assert len({one["data"] for one in stored}) == 2


def test_evaluation_of_a_run_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no finished run of this config in" in complaint(capsys, "evaluate", run_yaml(tmp_path))


def test_another_process_says_the_same(tmp_path: Path) -> None:
    files = members(*range(64))
    del files["00008.txt"]
    write_shard(tmp_path / "train.tar", files)
    config = run_yaml(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    words = [sys.executable, "-W", "error::UserWarning", "-m", "steering", "train", config]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=HOME, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if " steps, " not in line]
    assert lines == [
        "steering: task.retrieval.held: 48 pairs in 1 tar shards (held.tar); skipped: nothing",
        "steering: task.data: 63 pairs in 1 tar shards (train.tar); skipped: 1 no caption",
    ]
    assert "held" in done.stdout
