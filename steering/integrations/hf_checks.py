"""What a Hugging Face `Trainer` can be told that a steered one would drop: refused by name when the
trainer is made."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.utils import is_sagemaker_mp_enabled

from steering.errors import SteeringError
from steering.integrations.hf_losses import ELSEWHERE, LossOf, bare, takes_outputs
from steering.integrations.hf_terms import SMOOTH

# Models whose loss is not one of logits and labels, by the ends of their class names.
OTHER_LOSSES = re.compile(
    r"For(QuestionAnswering|CTC|RNNT|TDT|PreTraining|MaskedImageModeling|XVector|\w*Segmentation|\w*Detection|\w*DepthEstimation)$"
)


def arguments(given: tuple[Any, ...], named: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `Trainer` is about to be made with, by name; a trainer between it and ours may take more
    names."""
    names = list(inspect.signature(Trainer.__init__).parameters)[1:]
    return dict(zip(names, given, strict=False)) | dict(named)


def before(given: Mapping[str, Any]) -> None:
    """What `Trainer` itself would answer with a traceback.

    Raises:
        SteeringError: label smoothing for a model that has no config.
    """
    args, model = given.get("args"), given.get("model")
    if args is not None and args.label_smoothing_factor and isinstance(model, nn.Module):
        config = getattr(bare(model), "config", None)
        if config is None:
            raise SteeringError(
                "label_smoothing_factor: needs a model with a config, expected 0; smooth in losses="
            )


def require(
    trainer: Trainer,
    loss_of: LossOf,
    parameters: Mapping[str, nn.Parameter],
    ref_model: Any = None,
) -> None:
    """Refuse what would be lost.

    Args:
        trainer: made, not started.
        loss_of: its per-example losses.
        parameters: trainable ones of `steer` that are not the model's.
        ref_model: the live reference, or None.

    Raises:
        SteeringError: names the argument.
    """
    args, model, custom = trainer.args, bare(loss_of.model), loss_of.custom
    plan = getattr(trainer.accelerator, "parallelism_config", None)
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    smoothing = args.label_smoothing_factor
    own_loss = vars(model).get("_loss_function")
    sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
    optimizer = str(getattr(args.optim, "value", args.optim))
    listed = ", ".join(parameters)
    for wrong, told in (
        (
            getattr(trainer, "compute_loss_func", None) is not None,
            "compute_loss_func: returns one loss a batch and would not be called; give losses=, one loss an example",
        ),
        (
            args.n_gpu > 1,
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported: start one process a GPU with torchrun",
        ),
        (
            is_sagemaker_mp_enabled(),
            "SageMaker's model parallelism computes the loss itself and is not supported",
        ),
        (
            any(getattr(plan, f"{name}_enabled", False) for name in ("cp", "sp", "tp")),
            "parallelism_config: tensor, context and sequence parallelism are not supported",
        ),
        (
            args.use_liger_kernel and (custom is None or not takes_outputs(custom)),
            "use_liger_kernel: computes the loss without logits, so there is no loss an example; expected False",
        ),
        (
            bool(smoothing) and custom is not None,
            f"label_smoothing_factor: {smoothing} would not be applied to the losses of losses=; smooth there, and set 0",
        ),
        (
            bool(smoothing) and problem in ("regression", "multi_label_classification"),
            f"label_smoothing_factor: has no meaning for {problem}, only for {', '.join(SMOOTH)}; expected 0",
        ),
        (
            custom is None and "labels" not in (args.label_names or ["labels"]),
            f"label_names: {args.label_names} without 'labels'; {ELSEWHERE}",
        ),
        (
            custom is None and OTHER_LOSSES.search(type(model).__name__) is not None,
            f"{type(model).__name__}: its loss is not one of logits and labels; {ELSEWHERE}",
        ),
        (
            custom is None and own_loss is not None and not _standard(own_loss),
            f"{type(model).__name__}: has a loss_function of its own, which would not be called; {ELSEWHERE}",
        ),
        (
            bool(parameters) and (sharded or "layerwise" in optimizer or "lomo" in optimizer),
            f"steer: its parameters ({listed}) cannot be trained under DeepSpeed, FSDP or {optimizer}",
        ),
        (
            ref_model is not None and sharded,
            "ref_model: is not sharded under DeepSpeed or FSDP; store its losses with reference_losses(...)",
        ),
    ):
        if wrong:
            raise SteeringError(told)


def _standard(loss: Any) -> bool:
    """Whether it is one of the library's own losses; the first batch tells which."""
    try:
        from transformers.loss.loss_utils import LOSS_MAPPING
    except ImportError:  # older than these
        return False
    return any(loss is known for known in LOSS_MAPPING.values())
