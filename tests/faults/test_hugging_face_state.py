"""Faults of the Hugging Face drop-in: which state a run resumes, and parameters of the steer."""

# ruff: noqa: ARG002 (stand-ins for what a trainer calls)

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import steering
import steering.distributed
from steering.errors import SteeringError

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

import transformers as hf
from hf_toys import (
    SAVING,
    Items,
    Linear,
    N,
    Scaled,
    arguments,
    cheap_collections,  # noqa: F401
    plain_collate,
    run,
    same,
    split_over_two,
    tables,
    trainer,
)
from transformers import default_data_collator

from steering.integrations.hugging_face import (
    SteeringTrainer,
)
from steering.integrations.state import restore, saved
from steering.reading import report_once
from steering.schedules import Cosine

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


def at_begin(made, **options):
    """State of the steer when the training begins."""
    seen = {}

    class Look(hf.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            seen.update(tables(made.steer))

    made.add_callback(Look())
    run(made, **options)
    return seen


def test_a_run_resumes_the_state_beside_the_weights_it_was_told(tmp_path):
    reference = torch.linspace(0, 1, N)
    old, new = tmp_path / "old", tmp_path / "new"
    run(trainer(old, steering.DRRho(N, tau=5.0), max_steps=4, **SAVING))
    run(trainer(new, reference=reference, max_steps=4, **SAVING))
    states = {
        (name, step): torch.load(
            tmp_path / name / f"checkpoint-{step}/steering.pt", weights_only=True
        )
        for name in ("old", "new")
        for step in (2, 4)
    }
    for given, told in [
        (str(new / "checkpoint-2"), ("new", 2)),
        (new / "checkpoint-4", ("new", 4)),
        (True, ("old", 4)),
    ]:
        resumed = trainer(
            old,
            steering.DRRho(N, tau=5.0 if given is True else 1.0),
            reference=reference,
            max_steps=4,
        )
        assert same(at_begin(resumed, resume_from_checkpoint=given), states[told])
    third = trainer(tmp_path / "third", reference=reference, max_steps=4)  # a folder of its own
    assert same(at_begin(third, resume_from_checkpoint=str(new / "checkpoint-2")), states["new", 2])


@pytest.mark.parametrize(
    ("steer", "told"),
    [
        (lambda: steering.DRRho(N + 1), f"num_examples {N}, and this steer has {N + 1}"),
        (lambda: steering.DRRho(N, divergence="chi2"), "divergence kl, and this steer has chi2"),
        (
            lambda: steering.DRRho(N, divergence="cvar", level=0.5),
            "divergence kl, and this steer has cvar",
        ),
        (lambda: Scaled(), "not a state of this steer"),
    ],
)
def test_a_state_of_another_steer_is_refused_in_one_line(tmp_path, steer, told):
    run(trainer(tmp_path, **SAVING))
    data = Items(N + 1) if "num_examples" in told else None
    with pytest.raises(SteeringError, match=f"steering.pt: .*{told}") as caught:
        run(trainer(tmp_path, steer(), data=data, max_steps=4), resume_from_checkpoint=True)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_steering_is_refused_before_anything_is_loaded(tmp_path):
    run(
        hf.Trainer(
            Linear(),
            arguments(tmp_path, **SAVING),
            train_dataset=Items(),
            data_collator=plain_collate,
        )
    )
    made = trainer(tmp_path, max_steps=4)
    before = made.model.layer.weight.detach().clone()
    with pytest.raises(SteeringError, match="checkpoint-2 was made without steering"):
        run(made, resume_from_checkpoint=True)
    assert torch.equal(made.model.layer.weight, before)


@pytest.mark.parametrize(("tau", "said"), [(1.0, True), (Cosine(2.0, 0.5), False)])
def test_a_temperature_that_differs_is_told_unless_the_next_step_sets_it(caplog, tau, said):
    report_once.cache_clear()
    state = saved(steering.DRRho(N, tau=0.65))
    with caplog.at_level("WARNING", logger="steering"):
        restore(steering.DRRho(N, tau=tau), state, "here")
    assert ("its temperature 0.65 is taken" in caplog.text) is said


def test_a_state_dict_of_before_is_still_read(tmp_path):
    run(trainer(tmp_path, **SAVING))
    path = tmp_path / "checkpoint-2/steering.pt"
    state = {
        name: value
        for name, value in torch.load(path, weights_only=True).items()
        if isinstance(value, torch.Tensor)
    }
    torch.save(state, path)
    assert same(at_begin(trainer(tmp_path, max_steps=4), resume_from_checkpoint=True), state)


def test_the_best_model_comes_with_its_state_and_old_checkpoints_go(tmp_path):
    made = trainer(
        tmp_path,
        max_steps=6,
        greater_is_better=True,  # the first checkpoint is the best
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        save_total_limit=1,
        **SAVING,
    )
    run(made)
    assert Path(made.state.best_model_checkpoint).name == "checkpoint-2"
    assert same(
        tables(made.steer), torch.load(tmp_path / "checkpoint-2/steering.pt", weights_only=True)
    )
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_new_model_has_a_new_history(tmp_path):
    data, first = Items(), []
    made = SteeringTrainer(
        args=arguments(tmp_path, max_steps=3),
        train_dataset=data,
        data_collator=default_data_collator,
        model_init=Linear,
        steer=steering.DRRho(N, tau=0.5),
    )
    for _ in range(2):
        run(made)
        first.append(tables(made.steer))
    assert same(first[0], first[1])


def test_parameters_of_the_steer_are_trained(tmp_path):
    """One step of SGD on (s·ℓ̄ − 1)²: ds = −lr·2ℓ̄(sℓ̄ − 1); weight decay is not theirs."""
    steer, model = Scaled(), Linear()
    rows = [Items()[i] for i in range(4)]
    mean_loss = default_data_collator(rows)
    mean_loss = F.cross_entropy(model.layer(mean_loss["x"]), mean_loss["labels"]).item()
    for item, i in zip(rows, range(4), strict=True):
        item["index"] = i
    run(trainer(tmp_path, steer, model, rows, max_steps=1, weight_decay=0.5))
    assert steer.scale.item() == pytest.approx(1 - 0.1 * 2 * mean_loss * (mean_loss - 1), rel=1e-5)


def test_a_gradient_of_the_steer_lives_for_one_step_and_is_clipped_alone(tmp_path):
    grads, steer = [], Scaled(start=50.0)
    made = trainer(
        tmp_path,
        steer,
        max_steps=2,
        max_grad_norm=0.5,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
    )

    class Look(hf.TrainerCallback):
        def on_optimizer_step(self, *args, **kwargs):
            grads.append((abs(steer.scale.grad.item()), made.model.layer.weight.grad.norm().item()))

        def on_step_end(self, *args, **kwargs):
            assert steer.scale.grad is None

    made.add_callback(Look())
    run(made)
    assert all(abs(own - 0.5) < 1e-4 for own, _ in grads)
    assert all(0.3 < norm <= 0.5 for _, norm in grads)  # the model's is not crushed by the other


def test_resumed_parameters_of_the_steer(tmp_path):
    options = {"optim": "adamw_torch", "learning_rate": 0.05}
    whole = Scaled()
    run(trainer(tmp_path / "whole", whole, max_steps=4, **options))
    run(trainer(tmp_path / "part", Scaled(), max_steps=2, **options, **SAVING))
    again = Scaled(start=7.0)
    run(trainer(tmp_path / "part", again, max_steps=4, **options), resume_from_checkpoint=True)
    assert again.scale.item() == pytest.approx(whole.scale.item(), abs=1e-6)
    assert again.calls == whole.calls == 4
    run(
        trainer(tmp_path / "whole", whole, max_steps=5, **options)
    )  # a second trainer of the same object


def test_an_optimizer_of_the_users_must_move_them(tmp_path):
    model, steer = Linear(), Scaled()
    with pytest.raises(SteeringError, match=r"optimizers: lacks parameters of steer \(scale\)"):
        trainer(
            tmp_path,
            steer,
            model,
            extra={"optimizers": (torch.optim.SGD(model.parameters(), lr=0.1), None)},
        )
    both = torch.optim.SGD([*model.parameters(), *steer.parameters()], lr=0.1)
    run(trainer(tmp_path, steer, model, extra={"optimizers": (both, None)}))
    assert steer.scale.item() != 1.0


def test_tables_that_are_split_over_the_ranks_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SteeringError, match="split over the ranks"):
        trainer(tmp_path, split_over_two(monkeypatch))


def test_the_steer_is_in_training_mode_and_knows_the_epoch(tmp_path):
    class Watched(Scaled):
        epochs = ()

        def start_epoch(self, epoch):
            self.epochs = (*self.epochs, epoch)

    steer = Watched().eval()
    run(trainer(tmp_path, steer, max_steps=10, eval_strategy="steps", eval_steps=1))
    assert steer.epochs == (0, 1, 2)
    assert steer.calls == 10
