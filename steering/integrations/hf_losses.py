"""The losses of a Hugging Face model's items: its own loss, before it takes the mean.

Which loss that is, the model's config tells; the model's own mean of a batch, `outputs.loss`, has
to confirm it. So class weights, an auxiliary loss or labels of another convention are found in the
first steps, not after the run.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.integrations import hf_terms
from steering.integrations.hf_terms import IGNORED, KINDS, Terms
from steering.integrations.hf_units import PerItem, per_item

ExampleLosses = Callable[..., Tensor]
SHIFTED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
UNSHIFTED = ("ForMaskedLM", "ForTokenClassification", "WithLMHeadModel")
CONFIRMATIONS = 4
"""Batches with unlike labels that must agree with the model's own loss."""
# What is added to a loss, by its name in the outputs, and the coefficients that it may have.
ADDED = {
    "aux_loss": ("router_aux_loss_coef", "aux_loss_coef"),
    "encoder_aux_loss": ("router_aux_loss_coef",),
    "decoder_aux_loss": ("router_aux_loss_coef",),
    "encoder_z_loss": ("router_z_loss_coef",),
    "decoder_z_loss": ("router_z_loss_coef",),
}
ELSEWHERE = "give losses=, a function of (outputs, inputs) that returns one loss an example"


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
    found = hf_terms.terms(name, logits, labels, label_smoothing)
    return per_item("example", name, found, {}, labels, None).losses


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
    return len(names) == 1 or (known and (named or not KINDS[names[0]].of_tokens))


def takes_outputs(losses: ExampleLosses) -> bool:
    """Whether a function of the user's is one of (outputs, inputs) instead of (logits, labels)."""
    try:
        names = list(inspect.signature(losses).parameters)
    except (TypeError, ValueError):
        return False
    return names[:2] == ["outputs", "inputs"]


@dataclass
class LossOf:
    """Losses of one model's items.

    Attributes:
        model: whose config and own loss decide.
        custom: the user's function, one loss an example; None: the model's own loss.
        smoothing: label smoothing factor.
        unit: what an item is, one of `hf_units.UNITS`.
        kind: name of the loss that the last batch had, one of `KINDS`; None before the first.
    """

    model: nn.Module
    custom: ExampleLosses | None = None
    smoothing: float = 0.0
    unit: str = "example"
    kind: str | None = None
    _confirmed: int = 0  # by so many batches

    def __post_init__(self) -> None:
        if self.custom is example_losses:  # it does not know the model
            self.custom = None
        if self.custom is not None and self.unit != "example":
            raise SteeringError(
                f"losses: returns one loss an example, expected unit='example', got {self.unit!r}"
            )

    def __call__(self, outputs: Any, inputs: Mapping[str, Any], count: int | None) -> PerItem:
        """Losses of one batch.

        Args:
            outputs: of the model on the inputs.
            inputs: with "labels", without "index".
            count: examples in the batch, c; None if they carry no numbers: as many as rows.

        Raises:
            SteeringError: this model's loss is none of ours, or not one an item.
        """
        if self.custom is not None and takes_outputs(self.custom):
            return _own(self.custom(outputs, inputs), count)
        logits, labels = _entry(outputs, "logits"), _labels(inputs)
        if not isinstance(logits, Tensor):
            raise SteeringError(f"the model's outputs hold no tensor 'logits'; {ELSEWHERE}")
        labels = labels.to(logits.device)
        if self.custom is not None:
            return _own(self.custom(logits, labels), len(labels) if count is None else count)
        _require_nothing_added(self.model, outputs)
        if self._confirmed < CONFIRMATIONS:
            self.kind = self._decided(logits, labels, _entry(outputs, "loss"))
        name = str(self.kind)
        found = hf_terms.terms(name, logits, labels, self.smoothing)
        return per_item(self.unit, name, found, inputs, labels, count)

    def items(self, inputs: Mapping[str, Any], count: int | None) -> int:
        """How many items of a batch count, without running the model; asked after a first batch
        has told the kind."""
        if self.kind is None:  # a function of the user's: all of its examples count
            first = next(value for value in inputs.values() if isinstance(value, Tensor))
            return len(first) if count is None else count
        labels = _labels(inputs)
        counted = KINDS[self.kind].counted(labels)
        nothing = Terms(torch.zeros(counted.shape, device=labels.device), counted)
        found = per_item(self.unit, self.kind, nothing, inputs, labels, count)
        return int(found.counts().sum())

    def _decided(self, logits: Tensor, labels: Tensor, own: Any) -> str:
        """The kind that gives the model's own mean; it stays once some batches have confirmed it.

        One whose labels are all the same confirms nothing: class weights fall out of its mean. (For
        a model that never sees another, as with one example a batch, they mean nothing either.)
        """
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
                losses, counted = hf_terms.terms(name, logits, labels)
                means.append((losses.sum() / counted.sum()).to(own.device))
        told, *means = torch.stack([own.reshape(()), *means]).tolist()
        if not math.isfinite(told):  # nothing counts in this batch: ask the next one
            return names[0]
        for name, mean in zip(names, means, strict=True):
            if abs(mean - told) <= _tolerance(logits) * max(abs(told), 0.1):
                self._confirmed += _unlike(labels)
                return name
        raise SteeringError(
            f"the loss of {called} is {told:.4g} on a batch, and the mean over its examples {means[0]:.4g}: weights, an"
            f" auxiliary loss or a loss of its own would be lost; {ELSEWHERE}"
        )


def _require_nothing_added(model: nn.Module, outputs: Any) -> None:
    """Whatever its size: with a small coefficient it would pass for rounding.

    Raises:
        SteeringError: the outputs hold another loss, of a router, whose coefficient is not 0.
    """
    model = bare(model)
    config = getattr(model, "config", None)
    holders = (model, config, getattr(config, "text_config", None))
    for name, coefficients in ADDED.items():
        if _entry(outputs, name) is None:
            continue
        found = [getattr(holder, one, None) for one in coefficients for holder in holders]
        told = next((value for value in found if value is not None), None)
        if told != 0:
            weight = "" if told is None else f", times {told:g},"
            raise SteeringError(
                f"{type(model).__name__}: adds an auxiliary loss of its router ({name}){weight} to its loss, which would"
                f" be lost; set output_router_logits=False in its config, or {ELSEWHERE}"
            )


def _own(losses: Any, count: int | None) -> PerItem:
    """What a function of the user's has returned: one loss an example, all of which count."""
    shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
    fits = (
        shape == (count,) if count is not None else isinstance(losses, Tensor) and losses.ndim == 1
    )
    if not fits:
        expected = "(b,)" if count is None else f"({count},) for this batch"
        raise SteeringError(f"losses: must return one loss an example, {expected}, got {shape}")
    return PerItem(losses, None, None, len(losses))


def _labels(inputs: Mapping[str, Any]) -> Tensor:
    labels = inputs.get("labels")
    if not isinstance(labels, Tensor):
        raise SteeringError(
            f"a batch has no tensor 'labels', only {', '.join(sorted(inputs))}; {ELSEWHERE}"
        )
    return labels


def _unlike(labels: Tensor) -> bool:
    """Whether there are two that differ among those that count."""
    counted = labels[labels != IGNORED]
    return bool((counted != counted[:1]).any())


def _tolerance(logits: Tensor) -> float:
    return 1e-3 if logits.dtype in (torch.float32, torch.float64) else 2e-2


def _entry(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
