"""One loss an example from a Hugging Face model's outputs: the model's own loss, before it takes
the mean.

Which loss that is, the model's config tells; the model's own mean of the first batch,
`outputs.loss`, has to confirm it. So class weights, an auxiliary loss or labels of another
convention are found in the first step, not after the run.

Legend: b examples in a batch, T tokens, C classes (or words). A *term* is a summand of the model's
mean: a token of a sequence, an example of a classifier.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.integrations import hf_packed

ExampleLosses = Callable[..., Tensor]
IGNORED = -100
SHIFTED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
UNSHIFTED = ("ForMaskedLM", "ForTokenClassification", "WithLMHeadModel")
ELSEWHERE = "give losses=, a function of (outputs, inputs) that returns one loss an example"


class Terms(NamedTuple):
    """Losses of the terms, (b, k), float32, zero where one does not count; which count, bool, (b,
    k)."""

    losses: Tensor
    counted: Tensor


class PerExample(NamedTuple):
    """Losses, (b,), float32, zero where an example has no term that counts; which examples have
    one, bool, (b,)."""

    losses: Tensor
    counted: Tensor | None


def example_losses(
    logits: Tensor, labels: Tensor, *, shift: bool = False, label_smoothing: float = 0.0
) -> Tensor:
    """Loss of each example, (b,), nats (a squared error has the labels' unit squared), float32.

    Args:
        logits: (b, C); (b, T, C) for tokens.
        labels: integers, (b,) or (b, T): cross entropy, an example's is the mean over its tokens;
            −100 does not count. Floats, (b, C): binary cross entropy, mean over the C labels.
            Floats and one output an example, (b,) or (b, 1): squared error.
        shift: whether token t predicts label t + 1, as in a causal language model.
        label_smoothing: share of the target that is spread evenly over the classes; cross entropy
            only.

    Raises:
        SteeringError: shapes that fit none of these.
    """
    name = kinds(None, logits, labels)[0]
    if logits.ndim == 3:
        name = "shifted" if shift else "tokens"
    return _means(_terms(name, logits, labels, label_smoothing)).losses


# ---- the losses
# -------------------------------------------------------------------------------------------------------


def _classes(logits: Tensor, labels: Tensor, smoothing: float) -> Terms:
    labels = labels.reshape(-1).long()
    losses = F.cross_entropy(
        logits.float(), labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )
    return Terms(losses[:, None], (labels != IGNORED)[:, None])


def _tokens(logits: Tensor, labels: Tensor, smoothing: float) -> Terms:
    labels = labels.long()
    scores = logits.float().transpose(1, 2)
    losses = F.cross_entropy(
        scores, labels, reduction="none", ignore_index=IGNORED, label_smoothing=smoothing
    )
    return Terms(losses, labels != IGNORED)


def _shifted(logits: Tensor, labels: Tensor, smoothing: float) -> Terms:
    return _tokens(logits[:, :-1], labels[:, 1:], smoothing)


def _several_labels(logits: Tensor, labels: Tensor, smoothing: float) -> Terms:  # noqa: ARG001
    losses = F.binary_cross_entropy_with_logits(
        logits.float(), labels.float(), reduction="none"
    ).mean(-1, keepdim=True)
    return Terms(losses, torch.ones_like(losses, dtype=torch.bool))


def _regression(logits: Tensor, labels: Tensor, smoothing: float) -> Terms:  # noqa: ARG001
    outputs = logits.float().reshape(len(logits), -1)
    losses = (outputs - labels.float().reshape(outputs.shape)).square().mean(-1, keepdim=True)
    return Terms(losses, torch.ones_like(losses, dtype=torch.bool))


KINDS: dict[str, Callable[[Tensor, Tensor, float], Terms]] = {
    "classes": _classes,
    "tokens": _tokens,
    "shifted": _shifted,
    "several labels": _several_labels,
    "regression": _regression,
}
SMOOTH = ("classes", "tokens", "shifted")  # those that label smoothing is made for


def _terms(name: str, logits: Tensor, labels: Tensor, smoothing: float) -> Terms:
    if smoothing and name not in SMOOTH:
        raise SteeringError(
            f"label_smoothing_factor: has no meaning for the loss of this model ({name}), expected 0"
        )
    return KINDS[name](logits, labels, smoothing)


def _means(terms: Terms) -> PerExample:
    counts = terms.counted.sum(-1)
    return PerExample(terms.losses.sum(-1) / counts.clamp_min(1), counts > 0)


# ---- which of them
# ----------------------------------------------------------------------------------------------------


def bare(model: nn.Module) -> nn.Module:
    """The model inside DDP, torch.compile and PEFT."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or _wrapped(model), nn.Module):
        model = inner
    get_base_model = getattr(model, "get_base_model", None)
    return model if get_base_model is None else get_base_model()


def _wrapped(model: nn.Module) -> nn.Module | None:
    return (
        model.module
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel)
        else None
    )


def kinds(model: nn.Module | None, logits: Tensor, labels: Tensor) -> list[str]:
    """Names of the losses that it may be, the likeliest first.

    Raises:
        SteeringError: no loss of ours has such shapes.
    """
    model = None if model is None else bare(model)
    config, name = getattr(model, "config", None), type(model).__name__
    problem = getattr(config, "problem_type", None)
    real, rows = labels.is_floating_point(), len(logits) == len(labels)
    if logits.ndim == 3 and labels.ndim == 2 and not real and logits.shape[:2] == labels.shape:
        if getattr(config, "is_encoder_decoder", False) or name.endswith(UNSHIFTED):
            return ["tokens", "shifted"]
        return ["shifted", "tokens"]
    if (
        logits.ndim <= 2
        and rows
        and logits.numel() == labels.numel()
        and (real or problem == "regression")
    ):
        single = logits.ndim == 1 or logits.shape[1] == 1
        known = {"regression": "regression", "multi_label_classification": "several labels"}.get(
            problem or ""
        )
        return [known] if known else ["regression"] if single else ["several labels", "regression"]
    if (
        logits.ndim == 2
        and logits.shape == labels.shape
        and problem == "multi_label_classification"
    ):
        return ["several labels"]
    if logits.ndim == 2 and rows and labels.numel() == len(labels) and not real:
        return ["classes"]
    raise SteeringError(
        f"no loss an example is known for logits {tuple(logits.shape)} and labels {tuple(labels.shape)}, {labels.dtype};"
        f" {ELSEWHERE}"
    )


def certain(model: nn.Module, names: list[str]) -> bool:
    """Whether the first name can be trusted without the model's own loss: its class or config says
    so."""
    model = bare(model)
    known = getattr(model, "config", None) is not None
    named = type(model).__name__.endswith((*SHIFTED, *UNSHIFTED)) or getattr(
        getattr(model, "config", None), "is_encoder_decoder", False
    )
    return len(names) == 1 or (known and (named or names[0] not in ("tokens", "shifted")))


def takes_outputs(losses: ExampleLosses) -> bool:
    """Whether a function of the user's is one of (outputs, inputs) instead of (logits, labels)."""
    try:
        names = list(inspect.signature(losses).parameters)
    except (TypeError, ValueError):
        return False
    return names[:2] == ["outputs", "inputs"]


@dataclass
class LossOf:
    """Per-example losses of one model.

    Attributes:
        model: whose config and own loss decide.
        custom: the user's function; None: the model's own loss.
        smoothing: label smoothing factor.
    """

    model: nn.Module
    custom: ExampleLosses | None = None
    smoothing: float = 0.0
    _kind: str | None = None

    def __post_init__(self) -> None:
        if self.custom is example_losses:  # it does not know the model
            self.custom = None

    def __call__(self, outputs: Any, inputs: Mapping[str, Any], count: int) -> PerExample:
        """Losses of one batch.

        Args:
            outputs: of the model on the inputs.
            inputs: with "labels", without "index".
            count: examples in the batch, b.

        Raises:
            SteeringError: this model's loss is none of ours, or not one an example.
        """
        if self.custom is not None and takes_outputs(self.custom):
            return self._own(self.custom(outputs, inputs), count)
        logits, labels = _entry(outputs, "logits"), inputs.get("labels")
        if not isinstance(logits, Tensor):
            raise SteeringError(f"the model's outputs hold no tensor 'logits'; {ELSEWHERE}")
        if not isinstance(labels, Tensor):
            raise SteeringError(
                f"a batch has no tensor 'labels', only {', '.join(sorted(inputs))}; {ELSEWHERE}"
            )
        labels = labels.to(logits.device)
        if self.custom is not None:
            return self._own(self.custom(logits, labels), count)
        name = self._kind or self._decided(logits, labels, _entry(outputs, "loss"))
        terms = _terms(name, logits, labels, self.smoothing)
        if len(labels) == count:
            return _means(terms)
        if name not in ("tokens", "shifted"):
            raise SteeringError(
                f"a batch has {len(labels)} rows of labels and {count} numbers in 'index'"
            )
        sums, counts = hf_packed.split(*terms, name == "shifted", inputs, labels, count)
        return PerExample(sums / counts.clamp_min(1), counts > 0)

    def _own(self, losses: Any, count: int) -> PerExample:
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        if shape != (count,):
            raise SteeringError(
                f"losses: must return one loss an example, ({count},) for this batch, got {shape}"
            )
        return PerExample(losses, None)

    def _decided(self, logits: Tensor, labels: Tensor, own: Any) -> str:
        """The kind that gives the model's own mean; it stays once the model has confirmed it."""
        names = kinds(self.model, logits, labels)
        called = type(bare(self.model)).__name__
        if not isinstance(own, Tensor) or own.numel() != 1:
            if not certain(self.model, names):
                raise SteeringError(
                    f"{called} returns no loss that tells which its loss is ({' or '.join(names)}); {ELSEWHERE}"
                )
            return names[0]
        own, means = own.detach().float(), []
        with torch.no_grad():
            for name in names:
                losses, counted = KINDS[name](logits, labels, 0.0)
                means.append((losses.sum() / counted.sum()).to(own.device))
        told, *means = torch.stack([own.reshape(()), *means]).tolist()
        if not math.isfinite(told):  # nothing counts in this batch: ask the next one
            return names[0]
        for name, mean in zip(names, means, strict=True):
            if abs(mean - told) <= _tolerance(logits) * max(abs(told), 0.1):
                self._kind = name
                return name
        raise SteeringError(
            f"the loss of {called} is {told:.4g} on its first batch, and the mean over its examples {means[0]:.4g}: weights, an"
            f" auxiliary loss or a loss of its own would be lost; {ELSEWHERE}"
        )


def _tolerance(logits: Tensor) -> float:
    return 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2


def _entry(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
