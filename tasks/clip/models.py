"""CLIP models through open_clip: by name, or by a JSON config of one's own."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.storage import sha256
from steering.task import Model, ModelSpec
from steering.training.checkpoint import load_weights
from tasks.clip import towers  # noqa: F401 (registers them with timm)


@dataclass(frozen=True)
class ClipInputs:
    """How a CLIP model wants its inputs.

    Attributes:
        train: image -> (3, h, w), with open_clip's training augmentation.
        plain: image -> (3, h, w), without.
        tokenizer: captions -> int64 (b, context).
        size: (h, w).
        mean, std: of the normalisation, on pixels in [0, 1].
    """

    train: Callable[[Image.Image], Tensor]
    plain: Callable[[Image.Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def build_clip(spec: ModelSpec) -> Model:
    """Make the model of a spec and load its weights.

    Args:
        spec: `name` is an open_clip architecture ("ViT-B-32"), "hf-hub:..." or "local-dir:...", or a JSON file in open_clip's
            format; `pretrained` an open_clip tag ("openai") or a file of weights; `options` go to open_clip's factory.

    Raises:
        SteeringError: unknown name, unreadable JSON, or weights that cannot be had.
    """
    name, tokenizer_options = _register(spec.name)
    with _quiet():
        try:
            module, train, plain = open_clip.create_model_and_transforms(
                name, pretrained=spec.pretrained, output_dict=True, **spec.options
            )
            tokenizer = open_clip.get_tokenizer(name, **tokenizer_options)
        except Exception as error:  # open_clip raises anything from RuntimeError to the hub's own types
            raise SteeringError(
                f"cannot build the CLIP model {spec.name!r} (pretrained={spec.pretrained!r}): {type(error).__name__}: {error}"
            ) from error
    if spec.checkpoint is not None:
        load_weights(Path(spec.checkpoint), module)
    # The temperature belongs to the method; a parameter that no loss uses would also stall DDP.
    module.logit_scale.requires_grad_(False)
    if getattr(module, "logit_bias", None) is not None:
        module.logit_bias.requires_grad_(False)
    preprocessing = open_clip.get_model_preprocess_cfg(module)
    inputs = ClipInputs(
        train, plain, tokenizer, _pair(preprocessing["size"]), preprocessing["mean"], preprocessing["std"]
    )
    probe = tokenizer(["a photo of a LATIN SMALL LETTER E WITH ACUTE, 1234"]).numpy().tobytes()
    return Model(module, inputs, sha256([json.dumps(preprocessing, sort_keys=True, default=str), probe]))


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _register(name: str) -> tuple[str, dict[str, Any]]:
    """open_clip's name for a model, and options for its tokenizer that a JSON file gives relative to itself."""
    if not name.endswith(".json"):
        known = open_clip.list_models()
        if ":" not in name and name not in known and name.replace("/", "-") not in known:
            raise SteeringError(
                f"no CLIP model {name!r}: neither an open_clip architecture (e.g. ViT-B-32) nor a .json file"
            )
        return name, {}
    path = Path(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        options = dict(config["text_cfg"].get("tokenizer_kwargs") or {})
    except FileNotFoundError:
        raise SteeringError(f"no such model config: {path}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SteeringError(f"{path} is not an open_clip model config: {type(error).__name__}: {error}") from error
    if "bpe_path" in options:
        options["bpe_path"] = str(path.parent / options["bpe_path"])
    open_clip.add_model_config(path)
    return path.stem, options


@contextmanager
def _quiet() -> Any:
    """open_clip reports each step of a build, and that fresh weights are random, to the root logger; errors still pass."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        root.setLevel(level)


def image_features(module: nn.Module, images: Tensor) -> Tensor:
    """Unit-norm float32 features of images, (b, 3, h, w) -> (b, d)."""
    return unit_norm(module.encode_image(images))  # type: ignore[operator]


def text_features(module: nn.Module, tokens: Tensor) -> Tensor:
    """Unit-norm float32 features of tokens, (b, context) -> (b, d)."""
    return unit_norm(module.encode_text(tokens))  # type: ignore[operator]


def unit_norm(features: Tensor) -> Tensor:
    """Scale each row to length 1, in float32 whatever the autocast, (b, d)."""
    with torch.autocast(features.device.type, enabled=False):
        return nn.functional.normalize(features.float(), dim=-1)
