"""The real emoji shards beside the checkout, through the command line; skipped where they are
not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from made_data import model_json, write_shard

from steering.cli import main
from steering.task import ModelSpec
from steering_tasks.clip.data.shards import ShardSource
from steering_tasks.clip.models import build_clip

HOME = Path(__file__).parents[2]
EMOJI = HOME.parent / "shared/data/image_text/emoji"
pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not (EMOJI / "index.tsv").is_file(), reason=f"no emoji shards in {EMOJI}"),
]


def concepts(tmp_path: Path, part: str, limit: int) -> tuple[Path, Path]:
    """Noto's pictures of one part of the concepts, as a shard, and as a table of unpacked files."""
    with (EMOJI / "index.tsv").open(encoding="utf-8", newline="") as stream:
        index = [row for row in csv.DictReader(stream, delimiter="\t") if row["vendor"] == "noto"]
    source = ShardSource(str(EMOJI / "noto-*.tar"), tmp_path / "cache")
    assert len(source) == len(index)
    chosen = [i for i, row in enumerate(index) if row["concept_split"] == part][:limit]
    files: dict[str, bytes] = {}
    table = tmp_path / part / f"{part}.csv"
    table.parent.mkdir()
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "caption"])
        for i in chosen:
            image, caption = source.pair(i)
            key = index[i]["key"]
            assert caption == index[i]["caption"]
            image.save(table.parent / f"{key}.png")
            files |= {
                f"{key}.png": (table.parent / f"{key}.png").read_bytes(),
                f"{key}.txt": caption.encode(),
            }
            writer.writerow([f"{key}.png", caption])
    return write_shard(tmp_path / f"{part}.tar", files), table


def record(output: Path, name: str) -> dict:
    return json.loads((output / f"{name}-smoke/drrho-seed0/record.json").read_text())


@pytest.mark.usefixtures("at_home")
def test_the_example_config_on_another_vendor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "configs/clip/shards.yaml",
        "smoke=true",
        f"output={tmp_path}",
        f"task.data.path={EMOJI}/twemoji-001.tar",
        f"task.retrieval.heldout={EMOJI}/noto-001.tar",
    ]
    for command in ("train", "cache", "evaluate"):
        assert main([command, *words]) == 0, capsys.readouterr().err
    cost = record(tmp_path, "shards")["cost"]
    assert (cost["skipped"], cost["trained"]) == (0, 192)


@pytest.mark.usefixtures("at_home")
def test_held_out_concepts(tmp_path: Path) -> None:
    # The same pictures as a shard and as unpacked files; the concepts held out are those the data
    # set's own table names.
    shard, table = concepts(tmp_path, "train", 200)
    held_shard, held_table = concepts(tmp_path, "test", 60)
    model = str(model_json(tmp_path / "m.json"))
    for config, train, held in (("shards", shard, held_shard), ("table", table, held_table)):
        words = [
            f"task.data.path={train}",
            f"task.retrieval.heldout={held}",
            f"output={tmp_path}",
            "smoke=true",
        ]
        words += [f"target.name={model}", f"reference.name={model}"]
        assert main(["train", f"configs/clip/{config}.yaml", *words]) == 0
    # The same pairs in another layout are the same data, and give the same run.
    by_layout = [record(tmp_path, name) for name in ("shards", "table")]
    assert by_layout[0]["metrics"] == by_layout[1]["metrics"]


def test_captions_fit_the_models_of_the_example() -> None:
    tokenizer = build_clip(
        ModelSpec(str(HOME / "configs/clip/models/pictures-target.json"))
    ).inputs.tokenizer
    with (EMOJI / "index.tsv").open(encoding="utf-8", newline="") as stream:
        captions = sorted({row["caption"] for row in csv.DictReader(stream, delimiter="\t")})
    tokens = tokenizer(captions)
    assert (tokens[:, -1] != 0).float().mean() < 0.005  # cut off
    assert len({tuple(row) for row in tokens.tolist()}) > 0.995 * len(captions)
