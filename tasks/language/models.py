"""Causal language models of `transformers`: from scratch by a config, or with weights by path or
hub name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.extras import require
from steering.reading import user_path
from steering.task import Model, ModelSpec

from .tokens import Tokens, folder_or_hub, reason

# What `transformers` raises for configs and weights that it cannot read or that do not fit.
_UNBUILDABLE = (
    *(
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ),
)


class Causal(nn.Module):
    """A causal model that answers with its logits alone: (b, T) tokens in, (b, T, V) out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def causal_network(module: nn.Module) -> nn.Module:
    """The model of `transformers` within a `Causal`, which takes a cache and masks."""
    return module.get_submodule("model")


def build_causal(spec: ModelSpec, tokens: Tokens, length: int) -> Model:
    """The network of a spec.

    `name` is a JSON file with a `transformers` config ("model_type" and its keys; `vocab_size` and
    the special tokens are set from the tokenizer), or a folder or hub name whose config is used.
    `options` change keys of the config. `pretrained` is what `from_pretrained` takes, or "name" for
    the model's own. A path may begin with `~`.

    Raises:
        SteeringError: no such model or weights, a vocabulary smaller than the tokenizer's, or a
            context shorter than a block.
    """
    library = require("language", "transformers", "a language model")
    path, source = user_path(spec.name), spec.name
    try:
        if spec.pretrained is not None:
            source = spec.name if spec.pretrained == "name" else spec.pretrained
            model = library.AutoModelForCausalLM.from_pretrained(
                folder_or_hub(source), **spec.options
            )
        else:
            config = _config(path, tokens, spec.options) if path.suffix.lower() == ".json" else None
            if config is None:
                config = library.AutoConfig.from_pretrained(
                    folder_or_hub(spec.name), **spec.options
                )
            model = library.AutoModelForCausalLM.from_config(config)
    except _UNBUILDABLE as error:
        raise SteeringError(
            f"target: cannot build the language model {source!r}: {reason(source, error)}"
        ) from error
    size = model.config.vocab_size
    if size < tokens.size:
        raise SteeringError(
            f"target: {spec.name!r} knows {size} tokens, the tokenizer makes {tokens.size}"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and limit < length:
        raise SteeringError(
            f"task.length: {length} tokens are more than the {limit} positions of {spec.name!r}"
        )
    module = Causal(model.float())
    return Model(module, tokens, tokens.fingerprint())


def _config(path: Path, tokens: Tokens, options: dict[str, Any]) -> Any:
    library = require("language", "transformers", "a language model")
    if (
        path.is_dir() and (path / "config.json").is_file()
    ):  # a model's folder whose name ends like a file's
        return None
    if not path.is_file():
        wrong = (
            f"a folder, expected a JSON file: {path}" if path.is_dir() else f"no such file: {path}"
        )
        raise SteeringError(f"target.name: {wrong}")
    values = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(values, dict) or "model_type" not in values:
        raise SteeringError(f"target.name: {path} has no 'model_type', such as gpt2 or llama")
    special = {"vocab_size": tokens.size, "bos_token_id": tokens.end, "eos_token_id": tokens.end}
    values = {**special, **values, **options}
    return library.AutoConfig.for_model(values.pop("model_type"), **values)
