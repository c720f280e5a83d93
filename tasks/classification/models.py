"""Image classifiers by name: small ones of our own for small pictures, torchvision's and timm's for
all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steering.errors import ConfigError, SteeringError
from steering.extras import require
from steering.reading import user_path
from steering.task import Model, ModelSpec
from steering.weights import load_weights

from .data import ImageInputs

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def build_classifier(spec: ModelSpec, shape: tuple[int, int, int], classes: int) -> Model:
    """The network of a spec for images of a shape (h, w, c).

    Names: "cnn" (option `width`, 32), "mlp" (option `width`, 64), "linear"; "torchvision:resnet18";
    "timm:resnet18". Further options: `size`, to which images are resized (needed where they differ;
    torchvision's and timm's have a default); all others go to the library. `pretrained` is
    "DEFAULT" or another weight tag of torchvision, "true" for timm, or a file with a state dict.

    Raises:
        SteeringError: no such model or weights.
    """
    library, colon, name = spec.name.partition(":")
    options = dict(spec.options)
    size = options.pop("size", None)
    if not colon:
        module, inputs = _own(spec.name, options, size, shape, classes)
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
            state = torch.load(file, weights_only=True, map_location="cpu")
        _load_matching(module, state, f"torchvision:{name}")
    return module, ImageInputs(size, 3, *IMAGENET)


def _timm(
    name: str, pretrained: str | None, options: dict[str, Any], size: int | None, classes: int
) -> tuple[nn.Module, ImageInputs]:
    timm = require("vision", "timm", f"target.name: timm:{name}")
    file = _weights_file(pretrained)
    try:
        module = timm.create_model(
            name,
            pretrained=pretrained is not None and file is None,
            num_classes=classes,
            **options,
        )
    except (RuntimeError, TypeError, OSError, ValueError) as error:
        raise SteeringError(f"target: timm cannot make {name!r}: {error}") from error
    if file is not None:
        _load_matching(
            module, torch.load(file, weights_only=True, map_location="cpu"), f"timm:{name}"
        )
    config = timm.data.resolve_model_data_config(module)
    channels = config["input_size"][0]
    return module, ImageInputs(
        size or config["input_size"][1], channels, tuple(config["mean"]), tuple(config["std"])
    )


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
