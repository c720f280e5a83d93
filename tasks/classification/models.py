"""Image classifiers by name: small ones of our own for small pictures, torchvision's and timm's for
all others."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from steering.errors import ConfigError, SteeringError
from steering.extras import require
from steering.reading import user_path
from steering.task import Model, ModelSpec
from steering.weights import load_weights

from .data import ImageInputs
from .text_models import text_classifier

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AUXILIARY = ("googlenet", "inception_v3")
"""Of torchvision: their further heads, in train mode alone, make their output no tensor; they are
left out unless asked for."""


class Cnn(nn.Module):
    """Three stages of two 3×3 convolutions, halved in between; no batch norm, so examples do not
    interact.

    Args:
        channels: of the image.
        width: of the first stage; 2 and 4 times that in the others.
    """

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for stage, after in enumerate((width, 2 * width, 4 * width)):
            for step in range(2):
                stride = 2 if stage and not step else 1
                layers += [
                    nn.Conv2d(before, after, 3, stride, 1, bias=False),
                    nn.GroupNorm(4, after),
                    nn.ReLU(),
                ]
                before = after
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * before, classes)
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(image))


class Mlp(nn.Module):
    """Two hidden layers on the pixels; `width` 0 is a linear classifier."""

    def __init__(self, classes: int, pixels: int, width: int) -> None:
        super().__init__()
        layers = (
            [nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
            if width
            else []
        )
        self.layers = nn.Sequential(nn.Flatten(), *layers, nn.Linear(width or pixels, classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def build_classifier(
    spec: ModelSpec, shape: tuple[int, int, int], classes: int, kind: str = "image"
) -> Model:
    """The network of a spec for images of a shape (h, w, c), or for texts (`text_classifier`).

    Names of models for images: "cnn" (option `width`, 32), "mlp" (option `width`, 64), "linear"; "torchvision:resnet18";
    "timm:resnet18". Further options: `size`, to which images are resized (needed where they differ;
    torchvision's and timm's have a default); all others go to the library. `pretrained` is
    "DEFAULT" or another weight tag of torchvision, "true" or a tag of timm, or a file with a state
    dict (safetensors, or torch.save's).

    Raises:
        SteeringError: no such model or weights.
    """
    library, colon, name = spec.name.partition(":")
    options = dict(spec.options)
    size = options.pop("size", None)
    if kind == "text" or not colon:
        module, inputs = (
            text_classifier(spec.name, dict(spec.options), classes)
            if kind == "text"
            else _own(spec.name, options, size, shape, classes)
        )
        if spec.pretrained is not None:
            load_weights(user_path(spec.pretrained), module)
    elif library == "torchvision":
        module, inputs = _torchvision(name, spec.pretrained, options, size or 224, classes)
    elif library == "timm":
        module, inputs = _timm(name, spec.pretrained, options, size, classes)
    else:
        raise ConfigError(
            f"target.name: no library {library!r}; expected torchvision:NAME or timm:NAME"
        )
    return Model(module, inputs, inputs.fingerprint())


def _own(
    name: str, options: dict[str, Any], size: int | None, shape: tuple[int, int, int], classes: int
) -> tuple[nn.Module, ImageInputs]:
    height, width, channels = shape if size is None else (size, size, shape[2])
    inputs = ImageInputs(size, channels, (0.5,) * channels, (0.5,) * channels)
    known = {"cnn": ("width", 32), "mlp": ("width", 64), "linear": (None, 0)}
    if name not in known:
        raise ConfigError(
            f"target.name: no model {name!r}; known: {', '.join(known)}, torchvision:NAME, timm:NAME"
        )
    option, default = known[name]
    if unknown := {*options} - {option}:
        raise ConfigError(
            f"target.options: {name} takes {option or 'none'}, got {', '.join(sorted(unknown))}"
        )
    value = int(options.get("width", default))
    if name == "cnn" and (value < 4 or value % 4):
        raise ConfigError(f"target.options.width: expected a multiple of 4, got {value}")
    if name == "mlp" and value < 1:
        raise ConfigError(f"target.options.width: expected at least 1, got {value}")
    if name == "cnn":
        return Cnn(classes, channels, value), inputs
    return Mlp(classes, height * width * channels, value), inputs


def _torchvision(
    name: str, pretrained: str | None, options: dict[str, Any], size: int, classes: int
) -> tuple[nn.Module, ImageInputs]:
    models = require("vision", "torchvision.models", f"target.name: torchvision:{name}")
    file = _weights_file(pretrained)
    if name in AUXILIARY:
        options = {"aux_logits": False, **options}
    try:
        module = models.get_model(name, weights=None, num_classes=classes, **options)
        if pretrained is not None and file is None:
            state = models.get_model_weights(name)[pretrained].get_state_dict(check_hash=True)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise SteeringError(
            f"target: torchvision cannot make {name!r} ({pretrained}): {error}"
        ) from error
    if pretrained is not None:
        if file is not None:
            state = _state_dict(file)
        if name in AUXILIARY and not options["aux_logits"]:  # published weights have them
            state = {
                key: value for key, value in state.items() if not key.lower().startswith("aux")
            }
        _load_matching(module, state, f"torchvision:{name}")
    return module, ImageInputs(size, 3, *IMAGENET)


def _timm(
    name: str, pretrained: str | None, options: dict[str, Any], size: int | None, classes: int
) -> tuple[nn.Module, ImageInputs]:
    timm = require("vision", "timm", f"target.name: timm:{name}")
    file = _weights_file(pretrained)
    tag = None if pretrained is None or file is not None else _timm_tag(timm, name, pretrained)
    try:
        module = timm.create_model(
            name if not tag else f"{name}.{tag}",
            pretrained=tag is not None,
            num_classes=classes,
            **options,
        )
    except (RuntimeError, TypeError, OSError, ValueError) as error:
        raise SteeringError(f"target: timm cannot make {name!r}: {error}") from error
    if file is not None:
        _load_matching(module, _state_dict(file), f"timm:{name}")
    config = timm.data.resolve_model_data_config(module)
    # What a network is built for counts, not what its published weights were.
    usual, side = config["input_size"][:2]
    channels = int(options.get("in_chans", usual))
    side = size or options.get("img_size", side)
    side = side if isinstance(side, int) else side[0]
    mean, std = (
        tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels
        for values in (config["mean"], config["std"])
    )
    return module, ImageInputs(side, channels, mean, std)


def _timm_tag(timm: ModuleType, name: str, pretrained: str) -> str:
    """The tag of timm's weights, empty for the usual ones; SteeringError where it has no such."""
    if pretrained.lower() == "true":
        return ""
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{name}.*")]
    if pretrained not in tags:
        raise SteeringError(
            f"target.pretrained: {pretrained!r} is no file, and timm has no such weights of {name}; "
            f"expected true, a file with a state dict, or one of {', '.join(tags) or 'none'}"
        )
    return pretrained


def _state_dict(file: Path) -> dict[str, Tensor]:
    """Tensors by name from a file of safetensors, or one that `torch.save` has written of a state
    dict, alone or as the "state_dict" of a checkpoint.

    Raises:
        SteeringError: the file is none of these.
    """
    try:
        found = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, weights_only=True, map_location="cpu")
        )
    except Exception as error:  # torch names no class for what it cannot read
        raise SteeringError(
            f"target.pretrained: cannot read weights from {file}: {str(error).splitlines()[0]}"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(one, Tensor) for one in found.values()):
        raise SteeringError(f"target.pretrained: {file} holds no state dict")
    return found


def _weights_file(pretrained: str | None) -> Path | None:
    """The file that `pretrained` names, or None if it names none: a tag of the library."""
    path = None if pretrained is None else user_path(pretrained)
    return path if path is not None and path.is_file() else None


def _load_matching(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state dict; a head for another number of classes stays as initialised, anything else
    is an error."""
    own = module.state_dict()
    other = {key for key, value in state.items() if key in own and own[key].shape != value.shape}
    missing, unexpected = module.load_state_dict(
        {k: v for k, v in state.items() if k not in other}, strict=False
    )
    heads = {key.rpartition(".")[0] for key in other}
    if unexpected or len(heads) > 1 or {*missing} - other:
        raise SteeringError(
            f"target.pretrained: not the weights of {what}: {[*unexpected, *missing][:3]}"
        )
