"""Faults of the Lightning drop-in: states of several steers, and what is no visit."""

# ruff: noqa: ARG002 (stand-ins for what a trainer calls)

import pytest
import torch
from torch import nn

import steering
import steering.distributed
from steering.errors import SteeringError
from steering.schedules import Linear

pl = pytest.importorskip(
    "lightning.pytorch",
    reason="Lightning is not installed: pip install 'model-steering[lightning]'",
)

from lightning_toys import Module, fit, loader  # noqa: E402

from steering.integrations.lightning import SteeringCallback  # noqa: E402

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

from hf_toys import (  # noqa: E402
    N,
    Scaled,
    cheap_collections,  # noqa: F401
    mean,
    same,
    split_over_two,
    tables,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


def test_two_callbacks_keep_two_states(tmp_path):
    def pair():
        return steering.DRRho(N, tau=0.5), steering.DRRho(N, tau=3.0)

    first = pair()
    fit(tmp_path, *first, names=["image", "text"]).save_checkpoint(tmp_path / "two.ckpt")
    for order in (1, -1):  # not by their places
        again = pair()
        callbacks = {"names": ["image", "text"][::order], "checkpoint": tmp_path / "two.ckpt"}
        fit(tmp_path, *again[::order], **callbacks)
        assert all(same(tables(a), tables(b)) for a, b in zip(first, again, strict=True))


def test_two_of_one_name_are_refused_in_one_line(tmp_path):
    first, second = steering.DRRho(N), steering.DRRho(N)
    for steers, names, told in [
        ((first, second), None, "two SteeringCallbacks are called 'steering'"),
        ((first, second), ["a", "a"], "are called 'a'"),
        ((first, first), ["a", "b"], "look after one steer"),
    ]:
        with pytest.raises(SteeringError, match=told) as caught:
            fit(tmp_path, *steers, names=names)
        assert "\n" not in str(caught.value)
    for name in ("", None):
        with pytest.raises(SteeringError, match="name must be"):
            SteeringCallback(first, name)
    with pytest.raises(SteeringError, match="must be a module"):
        SteeringCallback(mean)


@pytest.mark.parametrize("name", ["steering", "image"])
def test_a_checkpoint_of_the_one_key_of_before_is_read(tmp_path, name):
    steer, path = steering.DRRho(N, tau=0.5), tmp_path / "old.ckpt"
    fit(tmp_path, steer).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=False)
    assert list(checkpoint["callbacks"]) == ["steering"]
    checkpoint["callbacks"]["steering"] = tables(steer)  # as it was written then: tensors alone
    torch.save(checkpoint, path)
    again = steering.DRRho(N, tau=0.5)
    fit(tmp_path, again, names=[name], checkpoint=path)
    assert same(tables(again), tables(steer))


@pytest.mark.parametrize("inside", [False, True])
def test_a_state_of_another_set_is_refused_in_one_line(tmp_path, inside):
    steer = steering.DRRho(N)
    fit(tmp_path, steer, module=Module(steer, inside=inside)).save_checkpoint(
        tmp_path / "made.ckpt"
    )
    for other, told in [
        (steering.DRRho(N + 1), "num_examples 16, and this steer has 17"),
        (steering.DRRho(N, divergence="chi2"), "another divergence" if inside else "divergence kl"),
    ]:
        with pytest.raises(SteeringError, match=told) as caught:
            fit(
                tmp_path,
                other,
                module=Module(other, inside=inside),
                checkpoint=tmp_path / "made.ckpt",
                max_epochs=2,
            )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_checkpoint_without_a_state_is_refused(tmp_path, weights_only):
    made = fit(tmp_path, module=Module(steering.DRRho(N)))
    made.save_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    checkpoint = torch.load(tmp_path / "plain.ckpt", weights_only=False)
    if weights_only:
        del checkpoint["callbacks"]
        torch.save(checkpoint, tmp_path / "plain.ckpt")
    with pytest.raises(SteeringError, match=r"plain.ckpt: has no state of a SteeringCallback"):
        fit(tmp_path, steering.DRRho(N), checkpoint=tmp_path / "plain.ckpt", max_epochs=2)


@pytest.mark.parametrize("inside", [False, True])
def test_validation_and_test_are_no_visits(tmp_path, inside):
    """4 batches an epoch are training; the sanity check, validation twice an epoch, test and
    prediction are not."""
    steer = Scaled()
    module = Module(steer, both=not inside, inside=inside)
    made = fit(
        tmp_path,
        steer,
        module=module,
        validate=True,
        max_epochs=2,
        num_sanity_val_steps=2,
        val_check_interval=0.5,
    )
    assert steer.calls == 8
    assert steer.training
    made.validate(module, loader(), verbose=False)
    made.test(module, loader(), verbose=False)
    made.predict(module, loader())
    assert steer.calls == 8


def test_parameters_outside_must_be_in_an_optimizer(tmp_path):
    with pytest.raises(SteeringError, match=r"no optimizer moves its parameters \(scale\)"):
        fit(tmp_path, Scaled())
    for options in ({"both": True}, {"inside": True}):
        steer = Scaled()
        fit(tmp_path, steer, module=Module(steer, **options))
        assert steer.scale.item() != 1.0


def test_lightning_accumulates_means(tmp_path):
    class Mean(nn.Module):
        def forward(self, losses, reference, index):
            return losses.mean()

    moved = []
    for size in (8, 4):
        module = Module(Mean())
        fit(tmp_path, Mean(), module=module, size=size, accumulate_grad_batches=8 // size)
        moved.append(module.layer.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


class Told(nn.Module):
    """A mean that remembers how far it was told the training is, batch by batch."""

    def __init__(self):
        super().__init__()
        self.progress, self.now = [], None

    def at(self, progress):
        self.now = progress

    def forward(self, losses, reference, index):
        self.progress.append(self.now)
        return losses.mean()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 2}, [step / 8 for step in range(8)]),
        ({"accumulate_grad_batches": 2}, [0, 0, 0.5, 0.5]),
        ({"max_epochs": -1, "max_steps": 5}, [0, 0.2, 0.4, 0.6, 0.8]),
        ({"max_epochs": 1, "max_steps": 100}, [0, 0.25, 0.5, 0.75]),
        ({"max_epochs": 2, "limit_train_batches": 2}, [0, 0.25, 0.5, 0.75]),
    ],
)
def test_schedules_are_told_how_far_the_training_is(tmp_path, options, expected):
    steer = Told()
    fit(tmp_path, steer, **options)
    assert steer.progress == pytest.approx(expected)


def test_a_schedule_moves_and_goes_on_where_it_was(tmp_path):
    def steer():
        return steering.DRRho(N, tau=Linear(2.0, 0.5), strength=Linear(0.0, 0.5))

    first, again = steer(), steer()
    made = fit(tmp_path, first, max_steps=5, max_epochs=-1)
    # The last step began at 4/5: τ = 2 − 1.5·4/5.
    torch.testing.assert_close(first.risk.temperature.read(None, False), torch.tensor(0.8))
    assert first.risk.strength.value == pytest.approx(0.4)
    made.save_checkpoint(tmp_path / "five.ckpt")
    fit(tmp_path, again, max_steps=10, max_epochs=-1, checkpoint=tmp_path / "five.ckpt")
    torch.testing.assert_close(again.risk.temperature.read(None, False), torch.tensor(0.65))


def test_a_schedule_without_an_end_is_refused(tmp_path):
    steer = steering.DRRho(N, tau=Linear(2.0, 0.5), prior=Linear(0.0, 1.0))
    with pytest.raises(SteeringError, match=r"prior, tau would follow a schedule.* max_steps"):
        fit(tmp_path, steer, max_epochs=-1)


def test_tables_that_are_split_over_the_ranks_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SteeringError, match="split over the ranks"):
        fit(tmp_path, split_over_two(monkeypatch))
