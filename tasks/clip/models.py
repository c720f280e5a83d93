"""CLIP models through open_clip: by name, or by a JSON config of one's own."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import re
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.extras import MissingExtraError, require
from steering.reading import user_path
from steering.storage import sha256
from steering.task import Model, ModelSpec

_SCHEMAS = ("hf-hub:", "local-dir:")
_PROBE = "a photo of a LATIN SMALL LETTER E WITH ACUTE, 1234"
_DISTRIBUTIONS = {
    "google": "protobuf",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
}  # where module and package differ
_LOG = logging.getLogger("steering")


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


def _library() -> Any:
    """open_clip, with our own towers registered; imported when a model is built, as it takes
    seconds and a report needs none."""
    library = require("clip", "open_clip", "a CLIP model")
    from . import towers  # noqa: F401 (registers them with timm)

    return library


def build_clip(spec: ModelSpec) -> Model:
    """Make the model of a spec, with its pretrained weights if it names some.

    Args:
        spec: `name` is an open_clip architecture ("ViT-B-32"), "hf-hub:..." or "local-dir:...", or
            a JSON file in open_clip's format; `pretrained` an open_clip tag ("openai") or a file of
            weights; `options` go to open_clip's factory.

    Raises:
        SteeringError: unknown name, unreadable JSON, weights that cannot be had, or a model that
            does not take its inputs.
    """
    spec = _at_home(spec)
    name = _register(spec)
    # A model from the hub that comes without its weights would train from noise without a word.
    needs_weights = name.startswith("hf-hub:") and spec.checkpoint is None
    return _built(spec, name, torch.device("cpu"), {"require_pretrained": needs_weights})


def sketch_clip(spec: ModelSpec) -> Model:
    """The same network without weights, on the "meta" device: shapes without numbers."""
    spec = replace(_at_home(spec), pretrained=None, checkpoint=None)
    return _built(spec, _register(spec), torch.device("meta"), {"load_weights": False})


def _built(spec: ModelSpec, name: str, device: torch.device, further: dict[str, Any]) -> Model:
    """The model of open_clip's `name`; `further` go to its factory, below the spec's own options."""
    options = {"device": device, **further, **spec.options}
    try:
        with _overheard() as heard:
            with device:
                module, train, plain = _library().create_model_and_transforms(
                    name, pretrained=spec.pretrained, output_dict=True, **options
                )
            tokenizer = _library().get_tokenizer(name)
            tokens = tokenizer([_PROBE])  # (1, context)
            preprocessing = _library().get_model_preprocess_cfg(module)
            size = _pair(preprocessing["size"])
            _try_out(module, torch.zeros(1, 3, *size, device=device), tokens.to(device))
    except MissingExtraError:
        raise
    except (
        Exception
    ) as error:  # open_clip raises anything from AssertionError to the hub's own types
        raise SteeringError(_failure(spec, name, f"{type(error).__name__}: {error}")) from error
    if failed := [record.getMessage() for record in heard if record.levelno >= logging.ERROR]:
        raise SteeringError(_failure(spec, name, failed[0]))
    for record in heard:
        _LOG.warning("%s: %s", spec.name, record.getMessage())
    # The temperature belongs to the method; a parameter that no loss uses would also stall DDP.
    module.logit_scale.requires_grad_(False)
    if getattr(module, "logit_bias", None) is not None:
        module.logit_bias.requires_grad_(False)
    inputs = ClipInputs(train, plain, tokenizer, size, preprocessing["mean"], preprocessing["std"])
    digest = sha256(
        [
            json.dumps(preprocessing, sort_keys=True, default=str),
            *_tokenizer_parts(tokenizer, tokens),
        ]
    )
    return Model(module, inputs, digest)


def _at_home(spec: ModelSpec) -> ModelSpec:
    """The spec with a ~ at the start of each path replaced; names of models and tags have none."""

    def path(text: Any) -> Any:
        schema = next((schema for schema in _SCHEMAS if str(text).startswith(schema)), "")
        rest = text[len(schema) :] if isinstance(text, str) else ""
        return schema + str(user_path(rest)) if rest.startswith("~") else text

    options = {key: path(value) for key, value in spec.options.items()}
    return replace(
        spec,
        name=path(spec.name),
        pretrained=path(spec.pretrained),
        options=options,
    )


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


@torch.no_grad()
def _try_out(module: nn.Module, image: Tensor, tokens: Tensor) -> None:
    """One pair through the model: a vocabulary or an image size that does not fit shows now, not in
    the first step."""
    training = module.training
    module.eval()(image, tokens)
    module.train(training)


def _tokenizer_parts(tokenizer: Any, tokens: Tensor) -> list[bytes | str]:
    """What tells two tokenizers apart: how they spell a text, and open_clip's own by its merges
    too."""
    parts: list[bytes | str] = [str(tuple(tokens.shape)), tokens.numpy().tobytes()]
    if isinstance(tokenizer, _library().SimpleTokenizer):
        parts += [" ".join(pair) for pair in tokenizer.bpe_ranks]
    return parts


def _failure(spec: ModelSpec, name: str, why: str) -> str:
    """The message for a model that cannot be built, with what might help."""
    hint = ""
    if "transformers" in why and importlib.util.find_spec("transformers") is None:
        hint = "; Hugging Face towers and tokenizers need transformers: pip install transformers"
    elif missing := re.search(r"No module named '(\w+)", why):
        hint = f"; it needs {missing[1]}: pip install {_DISTRIBUTIONS.get(missing[1], missing[1])}"
    elif "not a known tag" in why:
        hint = f"; tags of this model: {', '.join(_library().list_pretrained_tags_by_model(name)) or 'none'}"
    why = textwrap.shorten(
        why, 400, placeholder=" ..."
    )  # of a wrong checkpoint torch lists every tensor
    return (
        f"cannot build the CLIP model {spec.name!r} (pretrained={spec.pretrained!r}): {why}{hint}"
    )


def _register(spec: ModelSpec) -> str:
    """open_clip's name for the model of a spec; a JSON file is registered with it first."""
    if spec.name.startswith(_SCHEMAS):
        if spec.pretrained is not None:
            raise SteeringError(
                f"pretrained: {spec.name} brings its own weights; leave out pretrained={spec.pretrained!r}"
            )
        return spec.name
    if not spec.name.endswith(".json"):
        known = _library().list_models()
        if spec.name.replace("/", "-") not in known:
            near = difflib.get_close_matches(spec.name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else "neither an open_clip architecture such as 'ViT-B-32' nor a .json file"
            )
            raise SteeringError(f"no CLIP model {spec.name!r}; {hint}")
        return spec.name
    path = user_path(spec.name)
    text = _json_config(path)
    # open_clip knows a config by its file's stem; one with the content's digest cannot stand for
    # another file or model.
    name = f"{path.stem}-{sha256([text])[:12]}"
    if name not in _library().list_models():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / f"{name}.json"
            copy.write_text(text, encoding="utf-8")
            _library().add_model_config(copy)
    return name


def _json_config(path: Path) -> str:
    """A model config in open_clip's format; the tokenizer's `bpe_path` in it is made absolute, from
    beside the file."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - config.keys()
        tokenizer = config["text_cfg"].get("tokenizer_kwargs", {}) if not missing else {}
        if "bpe_path" in tokenizer:
            tokenizer["bpe_path"] = str(path.parent.absolute() / user_path(tokenizer["bpe_path"]))
    except OSError as error:
        raise SteeringError(f"cannot read the model config {path}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise SteeringError(
            f"{path} is not an open_clip model config: {type(error).__name__}: {error}"
        ) from error
    if missing:
        raise SteeringError(
            f"{path} is not an open_clip model config: it has no {', '.join(sorted(missing))}"
        )
    return json.dumps(config)


@contextmanager
def _overheard() -> Iterator[list[logging.LogRecord]]:
    """Keep what open_clip tells the root logger during a build off the console; yields its warnings
    and errors.

    That fresh weights are random, it need not tell.
    """
    root, heard, handler = logging.getLogger(), [], logging.NullHandler()

    def listen(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and "initialized" not in record.getMessage():
            heard.append(record)
        return False

    root.addHandler(handler)  # to a root logger with none, logging.info() would add one that stays
    root.addFilter(listen)
    try:
        yield heard
    finally:
        root.removeFilter(listen)
        root.removeHandler(handler)


def image_features(module: nn.Module, images: Tensor) -> Tensor:
    """Unit-norm float32 features of images, (b, 3, h, w) -> (b, d)."""
    return unit_norm(module.encode_image(images))  # type: ignore[operator]


def text_features(module: nn.Module, tokens: Tensor) -> Tensor:
    """Unit-norm float32 features of tokens, (b, context) -> (b, d)."""
    return unit_norm(module.encode_text(tokens))  # type: ignore[operator]


def unit_norm(features: Tensor) -> Tensor:
    """Scale each row to length 1, in float32 whatever the autocast, (b, d)."""
    if features.is_meta:  # a dry run's: torch knows no autocast there
        return nn.functional.normalize(features.float(), dim=-1)
    with torch.autocast(features.device.type, enabled=False):
        return nn.functional.normalize(features.float(), dim=-1)
