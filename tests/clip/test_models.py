"""Models through open_clip: what builds, what is refused and how, and what their features
promise."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from made_data import CAPTIONS, HOME, MODELS, drawing, model_json
from torch import Tensor

from steering.errors import SteeringError
from steering.task import Model, ModelSpec
from steering.weights import save_weights
from steering_tasks.clip import ClipOptions, ClipTask
from steering_tasks.clip.models import build_clip, image_features, text_features
from steering_tasks.clip.risk import ClipRisk

OURS = sorted(path.name for path in MODELS.glob("*.json"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return model_json(tmp_path / "tiny.json")


def weights(model: Model) -> list[Tensor]:
    return list(model.module.state_dict().values())


def inputs_of(model: Model, count: int = 4) -> tuple[Tensor, Tensor]:
    images = torch.stack([model.inputs.plain(drawing(i)) for i in range(count)])
    return images, model.inputs.tokenizer(CAPTIONS[:count])


def build(spec: ModelSpec) -> Model:
    """As the framework does, with the weights of a checkpoint."""
    return ClipTask(ClipOptions()).build(spec)


def error_of(spec: ModelSpec) -> str:
    with pytest.raises(SteeringError) as caught:
        build(spec)
    return str(caught.value)


@pytest.mark.parametrize("name", OURS)
def test_our_configs_build_and_train(name: str) -> None:
    model = build_clip(ModelSpec(str(MODELS / name)))
    images, tokens = inputs_of(model)
    assert model.module.training
    assert images.shape[2:] == model.inputs.size
    found = ClipRisk().outputs(model.module, {"image": images, "text": tokens})
    (found["image"] @ found["text"].T).diagonal().sum().backward()
    without = [n for n, p in model.module.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # a parameter without a gradient stalls DDP
    frozen = [n for n, p in model.module.named_parameters() if not p.requires_grad]
    assert frozen == ["logit_scale"]


def test_there_are_configs_to_build() -> None:
    assert {"glyph-reference.json", "glyph-target.json"} <= set(OURS)


def test_an_open_clip_name_builds_without_weights() -> None:
    model = build_clip(ModelSpec("ViT-S-32-alt"))
    assert model.inputs.size == (224, 224)
    images, tokens = inputs_of(model, 2)
    assert tokens.shape == (2, 77)
    features = image_features(model.module, images)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))


def test_a_timm_tower_with_a_siglip_bias_builds(tmp_path: Path) -> None:
    path = model_json(
        tmp_path / "m.json", timm_model_name="test_vit", image_size=160, custom_text=True
    )
    model = build_clip(ModelSpec(str(path), options={"init_logit_bias": -10}))
    assert not model.module.logit_bias.requires_grad
    assert image_features(model.module, inputs_of(model)[0]).shape == (4, 32)


def test_building_is_determined_by_the_seed(tiny: Path) -> None:
    def built(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return weights(build_clip(ModelSpec(str(tiny))))

    assert all(map(torch.equal, built(3), built(3)))
    assert not all(map(torch.equal, built(3), built(4)))


def test_features_have_unit_norm_in_float32_under_autocast(tiny: Path) -> None:
    model = build_clip(ModelSpec(str(tiny)))
    images, tokens = inputs_of(model)
    batch = {"image": images, "text": tokens}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.module.encode_image(images).dtype == torch.bfloat16  # it is on
        risk = ClipRisk().outputs(model.module, batch)
        found = [
            risk["image"],
            risk["text"],
            image_features(model.module, images),
            text_features(model.module, tokens),
        ]
    for features in found:
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        risk["image"], image_features(model.module, images), rtol=0, atol=0.02
    )


@pytest.mark.parametrize("tower", ["steering_convnet", "steering_convnet_small"])
@pytest.mark.parametrize("size", [32, 64])
def test_a_convnet_sees_each_example_by_itself(tmp_path: Path, tower: str, size: int) -> None:
    path = model_json(tmp_path / "m.json", timm_model_name=tower, image_size=size)
    module = build_clip(ModelSpec(str(path))).module.train()
    images = torch.randn(6, 3, size, size)
    together = image_features(module, images)
    alone = torch.cat([image_features(module, image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ViT-B32", "no CLIP model 'ViT-B32'; did you mean 'ViT-B-32'?"),
        ("qqqq", "neither an open_clip architecture such as 'ViT-B-32' nor a .json file"),
        ("nowhere:model", "no CLIP model 'nowhere:model'"),
        ("absent/model.json", "cannot read the model config absent/model.json: No such file"),
        ("local-dir:absent", "cannot build the CLIP model 'local-dir:absent' .* not found: absent"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(SteeringError, match=words):
        build_clip(ModelSpec(name))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "not an open_clip model config"),
        ('{"embed_dim": 4}', "it has no text_cfg, vision_cfg"),
        ('{"embed_dim": 4, "vision_cfg": {}, "text_cfg": 3}', "not an open_clip model config"),
        (b"\xff\xfe\x00", "not an open_clip model config"),
    ],
)
def test_malformed_json(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = error_of(ModelSpec(str(path)))
    assert message.startswith(f"{path} is not an open_clip model config: ")
    assert words in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 500}, "index out of range"),  # fewer words than the tokenizer has
        (
            {"image_size": 40},
            "Shape mismatch|divide",
        ),  # the tower halves it down to a multiple of 4
        ({"timm_model_name": "no_such_tower"}, "no_such_tower"),
        ({"tokenizer_kwargs": {"bpe_path": "absent.bpe.gz"}}, "absent.bpe.gz"),
        ({"width": "wide"}, "TypeError"),
        ({"no_such_option": 1}, "no_such_option"),
    ],
)
def test_a_config_that_makes_no_working_model(tmp_path: Path, changes: dict, words: str) -> None:
    path = model_json(tmp_path / "m.json", **changes)
    with pytest.raises(SteeringError, match=rf"cannot build the CLIP model '{path}' .*({words})"):
        build_clip(ModelSpec(str(path)))


def test_an_unknown_tag_lists_the_known_ones(tiny: Path) -> None:
    assert "tags of this model: openai, laion400m_e31" in error_of(
        ModelSpec("ViT-B-32", pretrained="openapi")
    )
    assert "'openai' is not a known tag or valid file path; tags of this model: none" in error_of(
        ModelSpec(str(tiny), pretrained="openai")
    )


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("ViT-B-32", pretrained="laion2b_s34b_b79k"),
        ModelSpec("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_an_unreachable_hub(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec.options["cache_dir"] = str(tmp_path)
    message = error_of(spec)
    assert message.startswith(f"cannot build the CLIP model {spec.name!r}")
    assert (
        "offline" in message.lower()
        or "connection" in message.lower()
        or "cannot find" in message.lower()
    )
    assert len(message) < 700


def test_a_hub_model_without_its_weights_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The config arrives, the weights do not: open_clip only warns, and would hand out random ones.
    def download(_: str, filename: str | None = None, **__: object) -> str:
        if filename is None:
            raise OSError("connection lost")
        return str(tiny.parent / filename)

    (tiny.parent / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": json.loads(tiny.read_text())})
    )
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", download)
    assert "weights" in error_of(ModelSpec("hf-hub:somebody/clip"))
    save_weights(tiny.parent / "m.safetensors", build_clip(ModelSpec(str(tiny))).module, {})
    build(
        ModelSpec("hf-hub:somebody/clip", checkpoint=str(tiny.parent / "m.safetensors"))
    )  # it brings others


def test_a_folder_in_the_hubs_layout(tiny: Path) -> None:
    original = build_clip(ModelSpec(str(tiny)))
    folder = tiny.parent / "folder"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": json.loads(tiny.read_text())})
    )
    save_weights(folder / "open_clip_model.safetensors", original.module, {})
    assert all(
        map(torch.equal, weights(build_clip(ModelSpec(f"local-dir:{folder}"))), weights(original))
    )
    assert "brings its own weights" in error_of(
        ModelSpec(f"local-dir:{folder}", pretrained="openai")
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_from_a_file(tiny: Path, suffix: str) -> None:
    original = build_clip(ModelSpec(str(tiny)))
    file = tiny.parent / f"w.{suffix}"
    if suffix == "pt":
        torch.save(
            {"state_dict": {f"module.{k}": v for k, v in original.module.state_dict().items()}},
            file,
        )
    else:
        save_weights(file, original.module, {})
    found = build_clip(ModelSpec(str(tiny), pretrained=str(file)))
    assert all(map(torch.equal, weights(found), weights(original)))
    if suffix == "safetensors":
        loaded = build(ModelSpec(str(tiny), checkpoint=str(file)))
        assert all(map(torch.equal, weights(loaded), weights(original)))


def test_weights_of_another_architecture(tiny: Path) -> None:
    file = tiny.parent / "w.safetensors"
    save_weights(file, build_clip(ModelSpec(str(tiny))).module, {})
    other = str(model_json(tiny.parent / "other.json", layers=2))
    message = error_of(ModelSpec(other, pretrained=str(file)))
    assert "Missing key" in message
    assert len(message) < 700  # torch lists every tensor
    assert "belongs to another architecture" in error_of(ModelSpec(other, checkpoint=str(file)))
    assert "no such file" in error_of(ModelSpec(other, checkpoint="absent.safetensors"))
    file.write_bytes(b"not weights")
    assert "cannot build" in error_of(ModelSpec(str(tiny), pretrained=str(file)))


def test_weights_are_never_code(tiny: Path) -> None:
    file = tiny.parent / "w.pt"
    torch.save({"state_dict": {"a": Path("/")}}, file)
    assert "weights_only" in error_of(ModelSpec(str(tiny), pretrained=str(file))).lower().replace(
        "weights only", "weights_only"
    )


def test_a_tower_file_that_does_not_load_is_an_error(tiny: Path) -> None:
    # open_clip logs this one and goes on with random weights.
    file = tiny.parent / "w.pt"
    file.write_bytes(b"not weights")
    message = error_of(ModelSpec(str(tiny), options={"pretrained_image_path": str(file)}))
    assert "Error loading image tower weights" in message


def test_a_warning_of_open_clip_is_passed_on(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_clip(ModelSpec(str(tiny), options={"pretrained_image_path": "absent.pt"}))
    assert [record.name for record in caplog.records] == ["steering"]
    assert "Invalid file path" in caplog.text


def test_unknown_options_are_refused(tiny: Path) -> None:
    assert "no_such_option" in error_of(ModelSpec(str(tiny), options={"no_such_option": 1}))
    assert "output_dict" in error_of(ModelSpec(str(tiny), options={"output_dict": False}))
    assert "BFloat16" in error_of(ModelSpec(str(tiny), options={"precision": "pure_bf16"}))


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    small, large = (
        model_json(tmp_path / "a/m.json"),
        model_json(tmp_path / "b/m.json", embed_dim=48),
    )
    widths = [
        build_clip(ModelSpec(str(path))).module.encode_image(torch.zeros(1, 3, 32, 32)).shape[1]
        for path in (small, large, small)
    ]
    assert widths == [32, 48, 32]
    model_json(small, embed_dim=64)  # nor does an edited file stand for what it was
    assert build_clip(ModelSpec(str(small))).module.text_projection.shape[1] == 64


def test_a_file_named_like_an_architecture_leaves_that_alone(tmp_path: Path) -> None:
    path = model_json(tmp_path / "ViT-S-32-alt.json")
    assert build_clip(ModelSpec(str(path))).inputs.size == (32, 32)
    assert build_clip(ModelSpec("ViT-S-32-alt")).inputs.size == (224, 224)


def test_the_tokenizers_file_lies_beside_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "models"
    home.mkdir()
    (home / "few.bpe.gz").write_bytes((MODELS / "glyphs.bpe.gz").read_bytes())
    model_json(home / "m.json", tokenizer_kwargs={"bpe_path": "few.bpe.gz"})
    expected = build_clip(ModelSpec(str(MODELS / "glyph-target.json"))).inputs.tokenizer(
        ["a red bar"]
    )[:, :5]
    for folder, name in (
        (tmp_path, "models/m.json"),
        (home, "m.json"),
        (HOME, str(home / "m.json")),
    ):
        monkeypatch.chdir(folder)
        assert torch.equal(
            build_clip(ModelSpec(name)).inputs.tokenizer(["a red bar"])[:, :5], expected
        )


def test_the_inputs_fingerprint_is_that_of_images_and_tokens(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        return build_clip(
            ModelSpec(str(model_json(tmp_path / "m.json", **changes)))
        ).inputs_fingerprint

    plain = digest()
    assert digest(embed_dim=48, width=64) == plain  # two models may share a batch
    # The probe text does not have the last pair of the merges; the digest knows it all the same.
    merges = gzip.decompress((MODELS / "glyphs.bpe.gz").read_bytes()).decode().splitlines()
    (tmp_path / "other.bpe.gz").write_bytes(
        gzip.compress("\n".join([*merges[:-1], "q x"]).encode())
    )
    others = [
        digest(image_size=64),
        digest(context_length=9),
        digest(tokenizer_kwargs={"bpe_path": "other.bpe.gz"}),
        build_clip(
            ModelSpec(str(model_json(tmp_path / "m.json")), options={"image_mean": [0, 0, 0]})
        ).inputs_fingerprint,
    ]
    assert len({plain, *others}) == 5


@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name"])
def test_hugging_face_parts_ask_for_transformers(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("open_clip.hf_model.transformers", None)
    path = model_json(tmp_path / "m.json")
    config = json.loads(path.read_text())
    config["text_cfg"][key] = "roberta-base"
    path.write_text(json.dumps(config))
    assert error_of(ModelSpec(str(path))).endswith(
        "need transformers: pip install transformers"
    )  # [hf] is accelerate


def test_a_build_is_silent_and_leaves_logging_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(
        root, "handlers", []
    )  # as in a process of its own, where open_clip's first line would add one
    before = [*root.filters], root.level
    build_clip(ModelSpec(str(tiny)))
    error_of(ModelSpec(str(tiny), pretrained="absent"))
    assert capfd.readouterr() == ("", "")
    assert root.handlers == []
    assert (root.filters, root.level) == before
