"""A finished target is an open_clip model: `steering export`, then open_clip alone."""

from __future__ import annotations

import math
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from made_data import CAPTIONS, drawing, members, model_json, write_shard

from steering.cli import main
from steering.finished import load_run
from steering.task import ModelSpec
from steering_tasks.clip import ClipOptions, ClipTask


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DRRho-CLIP run of two steps on made shards, τ fixed at 0.05."""
    folder = tmp_path_factory.mktemp("export")
    write_shard(folder / "train.tar", members(*range(32)))
    model = str(model_json(folder / "model.json"))
    config = {
        "name": "study",
        "output": str(folder),
        "device": "cpu",
        "task": {"name": "clip", "data": {"source": "shards", "path": str(folder / "train.tar")}},
        "target": model,
        "method": {"name": "dro", "tau": 0.05},
        "train": {"samples": 32, "batch_size": 16},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(folder / "run.yaml")]) == 0
    return folder / "study/dro-seed0"


def open_clip_name(path: Path) -> str:
    """open_clip's name of a model config, in its own way: by the stem of a file."""
    open_clip.add_model_config(path)
    return path.stem


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_open_clip_loads_the_file_and_sees_what_we_see(run: Path, suffix: str) -> None:
    file = run.parent / f"target.{suffix}"
    assert main(["export", str(run), str(file)]) == 0
    config = run.parent.parent / "model.json"
    name = open_clip_name(config)
    theirs, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(file))
    spec = ModelSpec(str(config), checkpoint=str(run / "model.safetensors"))
    ours = ClipTask(ClipOptions()).build(spec)
    image = torch.stack([transform(drawing(number)) for number in range(4)])
    tokens = open_clip.get_tokenizer(name)(CAPTIONS[:4])
    fresh = open_clip.create_model_and_transforms(name)[0].eval()
    with torch.no_grad():
        for one in ("encode_image", "encode_text"):
            given = image if one == "encode_image" else tokens
            found = getattr(theirs.eval(), one)(given)
            torch.testing.assert_close(
                found, getattr(ours.module.eval(), one)(given), rtol=0, atol=0
            )
            assert (found - getattr(fresh, one)(given)).abs().max() > 1e-3
    assert theirs.logit_scale.item() == pytest.approx(math.log(1 / 0.05))


def test_the_file_is_a_bare_state_dict(run: Path) -> None:
    file = run.parent / "bare.pt"
    assert main(["export", str(run), str(file)]) == 0
    found = torch.load(file, weights_only=True)
    weights = load_run(run).weights
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_what_cannot_be_exported_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, code, told in [
        ([str(run), "target.onnx"], 2, "expected a name that ends in one of .safetensors"),
        ([str(run), str(tmp_path / "none/target.pt")], 1, "there is no folder"),
        ([str(tmp_path), "target.pt"], 1, "no finished run there"),
        ([str(run.parent), "target.pt"], 1, "is no run but holds some: dro-seed0"),
    ]:
        assert main(["export", *words]) == code
        assert told in capsys.readouterr().err
    assert not Path("target.pt").exists()
