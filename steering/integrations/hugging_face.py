"""Steering in a Hugging Face `Trainer`: another class name, two more arguments.

    steer = steering.DRRho(num_examples=len(train_set), tau=1.0)
    trainer = SteeringTrainer(model, args, train_dataset=train_set, steer=steer, reference_losses=found)

Needs `pip install 'model-steering[hf]'`. The data set's items must carry "index", their own number, and
`args.remove_unused_columns` must be False, or the trainer drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from steering.errors import SteeringError

STATE = "steering.pt"
ExampleLosses = Callable[[Tensor, Tensor], Tensor]


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each example, (b,), nats, float32.

    Args:
        logits: (b, C) for classification; (b, T, V) for a causal language model, whose tokens are shifted here.
        labels: int64, (b,) or (b, T); −100 does not count. An example's loss is the mean over its tokens that do.
    """
    if logits.ndim == 2:
        return F.cross_entropy(logits.float(), labels, reduction="none")
    losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")  # (b, T − 1)
    counts = (labels[:, 1:] != -100).sum(-1)
    return losses.sum(-1) / counts.clamp_min(1)


@torch.no_grad()
def reference_losses(
    model: nn.Module,
    dataset: Any,
    collate: Callable[[list[Any]], Mapping[str, Tensor]],
    batch_size: int = 32,
    losses: ExampleLosses = example_losses,
) -> Tensor:
    """The frozen reference's loss of every example, (n,), by one pass in eval mode; keep it in a file."""
    found = torch.full((len(dataset),), torch.nan)
    device, training = next(model.parameters()).device, model.training
    model.eval()
    for batch in DataLoader(dataset, batch_size=batch_size, collate_fn=collate):
        inputs = {key: value.to(device) for key, value in batch.items()}
        index = inputs.pop("index").cpu()
        found[index] = losses(model(**inputs).logits, inputs["labels"]).float().cpu()
    model.train(training)
    if found.isnan().any():
        place = int(found.isnan().nonzero()[0, 0])
        raise SteeringError(
            f"reference_losses: no finite loss of example {place}; 'index' must be 0 .. {len(found) - 1}"
        )
    return found


class SteeringTrainer(Trainer):
    """A `Trainer` that descends a steered loss. Evaluation is unchanged: the model's own loss.

    Args:
        steer: `steering.DRRho`, or anything called as steer(losses, reference losses or None, index). Its state is saved in
            every checkpoint, as `steering.pt`, and restored with it.
        reference_losses: (n,), by example number; None for a `steer` that uses no reference.
        losses: (logits, labels) -> (b,).
    """

    def __init__(
        self,
        *args: Any,
        steer: nn.Module,
        reference_losses: Tensor | None = None,
        losses: ExampleLosses = example_losses,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.steer = steer.to(self.args.device)
        self.reference_losses = None if reference_losses is None else reference_losses.to(self.args.device)
        self.example_losses = losses
        # Our loss is a mean over the micro-batch: the trainer must divide it by their number.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_StateCallback(self.steer))

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        index = inputs.pop("index", None)
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if index is None:
            raise SteeringError("a training batch has no 'index'; keep it with remove_unused_columns=False")
        outputs = model(**inputs)
        losses = self.example_losses(outputs.logits, inputs["labels"])
        guide = None if self.reference_losses is None else self.reference_losses[index]
        loss = self.steer(losses, guide, index)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return super().prediction_step(
            model, {key: value for key, value in inputs.items() if key != "index"}, *args, **kwargs
        )


class _StateCallback(TrainerCallback):
    """Keeps the running estimates beside the trainer's own checkpoints."""

    def __init__(self, steer: nn.Module) -> None:
        self.steer = steer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            torch.save(self.steer.state_dict(), _path(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step > 0:  # resumed
            path = _path(args, state)
            if not path.is_file():
                raise SteeringError(f"{path.parent} was made without steering: no {STATE} in it")
            self.steer.load_state_dict(torch.load(path, weights_only=True, map_location=args.device))


def _path(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
