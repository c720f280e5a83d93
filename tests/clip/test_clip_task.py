"""The CLIP task as the framework sees it: options, views of the data, the risk, what is said and
checked before a run."""

from __future__ import annotations

import csv
import logging
import threading
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from made_data import CAPTIONS, MODELS, drawing, members, model_json, png, write_shard
from test_ranks import Threads

from steering import distributed
from steering.config import ConfigError, load_config
from steering.errors import SteeringError
from steering.items import Pairs
from steering.task import Evaluation, Model, ModelSpec, find_task
from steering_tasks.clip import ClipOptions, ClipRisk, ClipTask, evaluation
from steering_tasks.clip.data.shards import ShardSource
from steering_tasks.clip.data.table import TableSource
from steering_tasks.clip.task import ClipData, ZeroShot, open_held_out, open_source
from steering_tasks.glyphs import load_glyphs

CPU = torch.device("cpu")


def write_table(path: Path, numbers: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        table = csv.writer(stream, "excel-tab" if path.suffix.lower() == ".tsv" else "excel")
        table.writerow(["image", "caption"])
        for i in numbers:
            (path.parent / f"{i}.png").write_bytes(png(drawing(i)))
            table.writerow([f"{i}.png", CAPTIONS[i % 32]])
    return path


@pytest.fixture
def shard(tmp_path: Path) -> str:
    return str(write_shard(tmp_path / "train.tar", members(*range(64))))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return build(tmp_path)


def build(folder: Path, name: str = "m", **changes: object) -> Model:
    return ClipTask(ClipOptions()).build(
        ModelSpec(str(model_json(folder / f"{name}.json", **changes)))
    )


def task(path: str, source: str = "shards", **options: object) -> ClipTask:
    return ClipTask(ClipOptions(data=ClipData(source=source, path=path), **options))


def test_it_is_found_by_name() -> None:
    assert find_task("clip") is ClipTask
    assert isinstance(ClipTask(ClipOptions()).risk, ClipRisk)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "task.data.source=shard",
            "task.data: source: expected one of glyphs, shards, table, got 'shard'",
        ),
        ("task.data.source=shards", "task.data: path: needed for source 'shards'"),
        ("task.data.path=a.tar", "task.data: path: the embedded glyphs have none, got 'a.tar'"),
        (
            "task.data.caption_noise=1.5",
            "task.data: caption_noise: expected a number in [0, 1], got 1.5",
        ),
        ("task.data.caption_noise=.nan", "task.data: caption_noise: expected"),
        ("task.data.fraction=0", "task.data: fraction: expected a number in (0, 1], got 0"),
        (
            "task.data.part=[0.3,0.2]",
            "task.data: part: expected [low, high] with 0 <= low < high <= 1",
        ),
        ("task.recall_at=[]", "task: recall_at: expected one or more numbers >= 1, got []"),
        ("task.recall_at=[1, 0]", "task: recall_at: expected one or more numbers >= 1, got [1, 0]"),
        ("task.recall_at=[a]", "task.recall_at: expected list[int]"),
        ("task.zero_shot.templates=[]", "task.zero_shot: templates: expected at least one"),
        (
            "task.zero_shot.templates=[a photo]",
            "task.zero_shot: templates: 'a photo' has no {} for the class name",
        ),
        (
            "task.zero_shot.templates=opnai",
            "task.zero_shot: templates: expected a list of texts, or openai or simple; got 'opnai' (str)",
        ),
        (
            "task.zero_shot.classes=cifar",
            "task.zero_shot: classes: expected a list of texts, or imagenet; got 'cifar' (str)",
        ),
        ("task.zero_shot.classes=[yes, no]", "task.zero_shot: classes: expected texts, got True"),
        ("task.data.captoin_noise=0.1", "did you mean 'task.data.caption_noise'?"),
    ],
)
def test_options_out_of_range_are_config_errors(at_home: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(at_home / "configs/clip/glyphs.yaml", [override])
    assert words in str(caught.value)
    assert "command line" in str(caught.value)


@pytest.mark.parametrize("name", ["glyphs", "shards", "table"])
@pytest.mark.parametrize("smoke", [False, True])
def test_our_configs_are_valid_and_name_models_that_are_there(
    at_home: Path, name: str, smoke: bool
) -> None:
    config = load_config(f"configs/clip/{name}.yaml", [f"smoke={str(smoke).lower()}"])
    assert config.reference is not None
    assert (at_home / config.target.name).is_file()
    assert (at_home / config.reference.name).is_file()
    assert config.task.data.source == name
    nested = (
        ["nested"] if name == "glyphs" else []
    )  # its prior is tuned to the glyphs' caption noise
    assert [*config.compare.methods] == ["clip", "fastclip", "drrho-clip", *nested]
    assert load_config(f"configs/clip/{name}.yaml").smoke_overrides
    assert config.train.samples <= 1024 or not smoke


def test_sources(shard: str, tmp_path: Path) -> None:
    assert isinstance(open_source(ClipData("shards", shard)), ShardSource)
    table = write_table(tmp_path / "pictures/t.tsv", range(3))
    assert isinstance(open_source(ClipData("table", str(table))), TableSource)
    moved = table.rename(tmp_path / "t.tsv")
    assert len(open_source(ClipData("table", str(moved), root=str(tmp_path / "pictures")))) == 3
    with pytest.raises(SteeringError, match="none of its rows can be used"):
        open_source(ClipData("table", str(moved)))


def test_held_out_sets_by_suffix(shard: str, tmp_path: Path) -> None:
    like = ClipData()
    assert isinstance(open_held_out(shard, like), ShardSource)
    for name in ("a/t.tsv", "b/t.csv", "c/t.TSV"):
        assert isinstance(
            open_held_out(str(write_table(tmp_path / name, range(2))), like), TableSource
        )
    like = ClipData(
        "table", "unused.tsv", root=str(tmp_path / "a"), image_column="file", caption_column="words"
    )
    (tmp_path / "other.csv").write_text("words,file\na red bar,1.png\n")
    assert open_held_out(str(tmp_path / "other.csv"), like).caption(0) == "a red bar"


def test_a_batch_serves_two_models_with_other_inputs(
    shard: str, model: Model, tmp_path: Path
) -> None:
    data = task(shard).train_data(model, build(tmp_path, "big", image_size=64, context_length=6), 0)
    batch = data.batch(np.arange(4), 0)
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "index": (4,),
        "skipped": (),
        "image": (4, 3, 32, 32),
        "text": (4, 8),
        "reference_image": (4, 3, 64, 64),
        "reference_text": (4, 6),
    }
    again = data.batch(np.arange(4), 1)
    assert not torch.equal(again["image"], batch["image"])  # the target is augmented
    assert torch.equal(again["reference_image"], batch["reference_image"])  # the reference is not


def test_a_reference_with_the_same_inputs_shares_the_batch(
    shard: str, model: Model, tmp_path: Path
) -> None:
    data = task(shard).train_data(model, build(tmp_path, "narrow", embed_dim=16), 0)
    assert "reference_image" not in data.batch(np.arange(4), 0)


def test_plain_data_has_the_numbers_and_the_content_of_the_training_data(
    shard: str, model: Model
) -> None:
    train, plain = task(shard).train_data(model, None, 7), task(shard).plain_data(model)
    assert len(train) == len(plain) == 64
    assert train.fingerprint() == plain.fingerprint()
    batch = plain.batch(np.arange(4), 0)
    torch.testing.assert_close(
        batch["image"], torch.stack([model.inputs.plain(drawing(i)) for i in range(4)])
    )
    assert torch.equal(batch["text"], model.inputs.tokenizer(CAPTIONS[:4]))
    assert torch.equal(plain.batch(np.arange(4), 3)["image"], batch["image"])


def test_the_runs_seed_does_not_move_the_data(shard: str, model: Model) -> None:
    # One reference cache serves the runs of all seeds.
    noisy = ClipTask(
        ClipOptions(data=ClipData("shards", shard, caption_noise=0.5, fraction=0.5, seed=3))
    )
    digests = {noisy.train_data(model, None, seed).fingerprint() for seed in (0, 7)}
    assert digests == {noisy.plain_data(model).fingerprint()}
    other = ClipTask(
        ClipOptions(data=ClipData("shards", shard, caption_noise=0.5, fraction=0.5, seed=4))
    )
    assert other.plain_data(model).fingerprint() not in digests


def test_the_risk_pairs_target_and_reference_features(
    shard: str, model: Model, tmp_path: Path
) -> None:
    batch = task(shard).plain_data(model).batch(np.array([3, 1, 2]), 0)
    risk, other = ClipRisk(), build(tmp_path, "narrow", embed_dim=16)
    target, reference = risk.outputs(model.module, batch), risk.outputs(other.module, batch)
    pairs = risk.losses(target, reference, batch)
    assert isinstance(pairs, Pairs)
    assert (pairs.image, pairs.reference_text) == (target["image"], reference["text"])
    assert pairs.index.tolist() == [3, 1, 2]
    assert risk.losses(target, None, batch).reference_image is None


def test_what_is_left_out_is_said_once(
    tmp_path: Path, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    files = members(*range(8))
    del files["00003.txt"], files["00004.png"]
    train = str(write_shard(tmp_path / "train.tar", files))
    test = str(write_shard(tmp_path / "test.tar", members(*range(4))))
    with caplog.at_level(logging.INFO, "steering"):
        for _ in range(2):  # a study makes the task anew for each run
            mine = task(train, retrieval={"mine": test})
            mine.train_data(model, None, 0)
            mine.plain_data(model)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "task.retrieval.mine: 4 pairs in 1 tar shards (test.tar); skipped: nothing"),
        (
            "WARNING",
            "task.data: 6 pairs in 1 tar shards (train.tar); skipped: 1 no caption, 1 no image",
        ),
    ]


def test_other_ranks_say_nothing(
    shard: str, model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steering.distributed.rank", lambda: 1)
    with caplog.at_level(logging.INFO, "steering"):
        task(shard).plain_data(model)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retrieval": {"mine": "absent.tar"}}, "absent.tar: no such file"),
        ({"retrieval": {"mine": "absent.tsv"}}, "absent.tsv: no such file"),
        ({"zero_shot": ZeroShot(path="absent")}, "task.zero_shot.path"),
    ],
)
def test_a_wrong_evaluation_set_stops_the_run_before_it_starts(
    shard: str, model: Model, options: dict, words: str
) -> None:
    with pytest.raises(SteeringError, match=words):
        task(shard, **options).train_data(model, None, 0)


def test_evaluation_and_figures(shard: str, tmp_path: Path) -> None:
    model = build(tmp_path)
    model.module.eval()
    table = write_table(tmp_path / "held/t.tsv", range(32))
    for i in range(8):
        (tmp_path / f"classes/{i}").mkdir(parents=True)
        (tmp_path / f"classes/{i}/x.png").write_bytes(png(drawing(i)))
    zero_shot = ZeroShot(
        path=str(tmp_path / "classes"), classes=CAPTIONS[:8], templates=["{}", "this is {}."]
    )
    mine = task(
        shard, retrieval={"a": shard, "b": str(table)}, recall_at=[1, 32], zero_shot=zero_shot
    )
    state = torch.random.get_rng_state()
    evaluation = mine.evaluate(model, CPU)
    found = evaluation.values()
    assert torch.equal(torch.random.get_rng_state(), state)
    names = [
        f"{a}_to_{b}_R@{k}" for a, b in (("image", "text"), ("text", "image")) for k in (1, 32)
    ]
    assert [*found] == [
        *(f"{label}/{name}" for label in "ab" for name in names),
        "zero_shot_top1",
        "zero_shot_top5",
    ]
    assert all(0 <= value <= 1 for value in found.values())
    assert found["b/text_to_image_R@32"] == 1
    assert [*evaluation.figures] == ["retrieved/a", "retrieved/b"]
    assert mine.evaluate(model, CPU).values() == found
    assert len(evaluation.scores["b/image_to_text_R@1"].values) == 32
    assert evaluation.meanings(mine.metrics)["zero_shot_top1"].of == ("zero_shot_top1",)


def folders(root: Path, *names: str) -> str:
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "x.png").write_bytes(png(drawing(i)))
    return str(root)


def test_imagenets_names_and_prompts_are_open_clips(
    shard: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ZeroShot(classes="imagenet", templates="openai")
    assert found.class_names() == list(open_clip.IMAGENET_CLASSNAMES)
    assert len(found.prompts()) == 80
    assert found.prompts()[:2] == ["a bad photo of a {}.", "a photo of many {}."]
    assert "itap of a {}." in ZeroShot(templates="simple").prompts()
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", ["tench", "goldfish"])
    folder = folders(tmp_path / "val", "n01443537", "n01440764")
    asked: list[object] = []
    build = open_clip.build_zero_shot_classifier

    def noted(module: object, tokenizer: object, names: object, prompts: list, **more: object):
        asked.append([names, [prompt("cat") for prompt in prompts]])
        return build(module, tokenizer, names, prompts, **more)

    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", noted)
    zero_shot = ZeroShot(folder, "imagenet", "simple")
    assert [*task(shard, zero_shot=zero_shot).evaluate(model, CPU).values()] == ["zero_shot_top1"]
    prompts = [prompt("cat") for prompt in open_clip.SIMPLE_IMAGENET_TEMPLATES]
    assert asked == [[["tench", "goldfish"], prompts]]


def test_imagenets_names_want_imagenets_folders(
    shard: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folders(tmp_path / "few", "n01443537", "n01440764")
    with pytest.raises(SteeringError, match=r"task.zero_shot.classes: 1000 names for 2 folders in"):
        task(shard, zero_shot=ZeroShot(folder, "imagenet")).train_data(model, None, 0)
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", ["tench", "goldfish"])
    folder = folders(tmp_path / "numbered", "1", "10")
    with pytest.raises(SteeringError, match=r"imagenet names sub-folders such as n01440764, but"):
        task(shard, zero_shot=ZeroShot(folder, "imagenet")).train_data(model, None, 0)


def test_a_rank_without_a_readable_image_draws_nothing_and_waits_for_nobody(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "a/t.csv", range(8))
    for i in range(4):  # the share of rank 0, which draws
        (table.parent / f"{i}.png").write_bytes(f"no image {i}".encode())
    ranks = Threads(2)
    ranks.barrier = threading.Barrier(2, timeout=10)
    ranks.install(monkeypatch)
    monkeypatch.setattr(distributed, "gather_uneven", lambda x: torch.cat(ranks.exchange(x)))
    monkeypatch.setattr(
        distributed, "total_count", lambda n: int(sum(ranks.exchange(torch.tensor(n))))
    )

    def job(_: int) -> Evaluation:
        mine = task(str(table), "table", retrieval={"a": str(table)}, recall_at=[1])
        return mine.evaluate(model, CPU)

    model.module.eval()
    first, second = ranks.run(job)
    assert first.figures == second.figures == {}
    assert len(first.scores["a/image_to_text_R@1"].values) == 4
    assert first.loss == second.loss


def test_glyphs_bring_their_own_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs = ClipTask(ClipOptions())
    model = glyphs.build(ModelSpec(str(MODELS / "glyph-reference.json")))
    model.module.eval()
    found = glyphs.evaluate(model, CPU).values()
    assert {name.split("/")[0] for name in found} == {
        "heldout_images",
        "heldout_characters",
        "heldout_fonts",
    }
    assert max(found.values()) < 0.05  # it knows nothing yet
    calls = []
    monkeypatch.setattr(
        evaluation,
        "embed_texts",
        lambda *_: calls.append(0) or torch.randn(len(load_glyphs().names), 64),
    )
    assert len(glyphs.evaluate(model, CPU).figures) == 3
    assert len(calls) == 1  # the three sets have one gallery
