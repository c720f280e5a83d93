"""Steering inside a Hugging Face Trainer and inside Lightning: the same loss, its state saved and
restored, the examples."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import steering
from steering.errors import SteeringError

pl = pytest.importorskip(
    "lightning.pytorch",
    reason="Lightning is not installed: pip install 'model-steering[lightning]'",
)
pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

from transformers import TrainingArguments  # noqa: E402
from transformers.modeling_outputs import SequenceClassifierOutput  # noqa: E402

from steering.integrations.hugging_face import SteeringTrainer, example_losses, reference_losses  # noqa: E402
from steering.integrations.lightning import SteeringCallback  # noqa: E402

N = 24
pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


class Linear(nn.Module):
    """A classifier of vectors, with the outputs of `transformers`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x, labels=None, **_):
        logits = self.layer(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Items(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(N, 4, generator=generator), torch.arange(N) % 3

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i], "index": torch.tensor(i)}


def collate(items):
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


def trainer(folder, steps, steer, model=None, **changes):
    options = {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": 0.1,
        "per_device_train_batch_size": 8,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        **changes,
    }
    guide = torch.linspace(0, 1, N)
    return SteeringTrainer(
        model or Linear(),
        TrainingArguments(**options),
        train_dataset=Items(),
        eval_dataset=Items(),
        data_collator=collate,
        steer=steer,
        reference_losses=guide,
    )


def make():
    return steering.DRRho(N, tau=0.5, gamma=0.5)


def test_the_loss_of_a_step_is_the_five_line_function(tmp_path):
    steer, by_hand = make(), make()
    made = trainer(tmp_path, 1, steer)
    batch = collate([Items()[i] for i in (3, 1, 7, 8)])
    model = made.model.train()
    losses = F.cross_entropy(model.layer(batch["x"]), batch["labels"], reduction="none")
    index = batch["index"]
    expected = by_hand(losses, torch.linspace(0, 1, N)[index], index)
    found = made.compute_loss(model, dict(batch))
    torch.testing.assert_close(found, expected)
    for x, y in zip(
        torch.autograd.grad(found, [*model.parameters()]),
        torch.autograd.grad(expected, [*model.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_evaluation_is_the_models_own_loss(tmp_path):
    made = trainer(tmp_path, 1, make())
    items = Items()
    assert made.evaluate()["eval_loss"] == pytest.approx(
        F.cross_entropy(made.model.layer(items.x), items.y).item(), rel=1e-5
    )


def test_accumulated_steps_are_divided(tmp_path):
    """The trainer must average our means: two halves with weight 1/2 each."""
    moved = {}
    for parts in (1, 2):
        uniform = steering.DRRho(N, tau=1e6, gamma=1.0)  # a mean: halves then add up exactly
        model = Linear()
        changes = {"per_device_train_batch_size": 8 // parts, "gradient_accumulation_steps": parts}
        made = trainer(
            tmp_path / str(parts),
            1,
            uniform,
            model,
            optim="sgd",
            max_grad_norm=0,
            seed=3,
            **changes,
        )
        made.train()
        moved[parts] = model.layer.weight.detach().clone()
    torch.testing.assert_close(moved[1], moved[2], rtol=1e-4, atol=1e-6)


def test_a_resumed_trainer_has_the_state_of_the_estimates(tmp_path):
    whole_steer, whole = make(), Linear()
    trainer(tmp_path / "whole", 6, whole_steer, whole).train()
    first, part = make(), Linear()
    trainer(tmp_path / "part", 3, first, part, save_strategy="steps", save_steps=3).train()
    assert (tmp_path / "part/checkpoint-3/steering.pt").is_file()
    again, resumed = make(), Linear()
    trainer(tmp_path / "part", 6, again, resumed).train(
        resume_from_checkpoint=str(tmp_path / "part/checkpoint-3")
    )
    for x, y in zip(whole_steer.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    torch.testing.assert_close(resumed.layer.weight, whole.layer.weight)
    (tmp_path / "part/checkpoint-3/steering.pt").unlink()
    with pytest.raises(SteeringError, match="was made without steering"):
        trainer(tmp_path / "part", 6, make()).train(
            resume_from_checkpoint=str(tmp_path / "part/checkpoint-3")
        )


def test_a_batch_without_numbers(tmp_path):
    made = trainer(tmp_path, 1, make())
    with pytest.raises(SteeringError, match="remove_unused_columns=False"):
        made.compute_loss(
            made.model.train(),
            {"x": torch.zeros(2, 4), "labels": torch.zeros(2, dtype=torch.int64)},
        )


def test_reference_losses_by_number():
    model, items = Linear(), Items()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0)).tolist()
    found = reference_losses(model, torch.utils.data.Subset(items, order), collate, batch_size=7)
    torch.testing.assert_close(
        found, F.cross_entropy(model.layer(items.x), items.y, reduction="none").detach()
    )
    with pytest.raises(SteeringError, match="no finite loss of example"):
        reference_losses(model, [items[0], items[0]], collate)


def test_losses_of_sequences_leave_out_what_does_not_count():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 2, 3, -100, -100], [0, 4, 5, 6, 1]])
    shifted, aligned = example_losses(logits, labels, shift=True), example_losses(logits, labels)
    for i, n in enumerate((3, 5)):
        torch.testing.assert_close(shifted[i], F.cross_entropy(logits[i, : n - 1], labels[i, 1:n]))
        torch.testing.assert_close(aligned[i], F.cross_entropy(logits[i, :n], labels[i, :n]))


class Module(pl.LightningModule):
    def __init__(self, steer):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.outside = [steer]  # not a part of this module: the callback alone keeps its state

    def training_step(self, batch, _):
        x, y, index = batch
        losses = F.cross_entropy(self.layer(x), y, reduction="none")
        return self.outside[0](losses, torch.linspace(0, 1, N)[index], index)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, epochs, steer, checkpoint=None):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    module, items = Module(steer), Items()
    loader = DataLoader(TensorDataset(items.x, items.y, torch.arange(N)), batch_size=8)
    made = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[SteeringCallback(steer)],
        enable_checkpointing=False,
        **quiet,
    )
    made.fit(module, loader, ckpt_path=checkpoint)
    return made, module


def test_lightning_keeps_the_state(tmp_path):
    steer = make()
    fit(tmp_path, 4, steer)
    first = make()
    made, _ = fit(tmp_path, 2, first)
    made.save_checkpoint(tmp_path / "half.ckpt")
    again = make()
    fit(tmp_path, 4, again, str(tmp_path / "half.ckpt"))
    for x, y in zip(steer.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y)


def test_lightning_tells_the_epoch(tmp_path):
    seen = []

    class Watched(steering.DRRho):
        def start_epoch(self, epoch):
            seen.append(epoch)

    fit(tmp_path, 3, Watched(N, tau=1.0))
    assert seen == [0, 1, 2]
