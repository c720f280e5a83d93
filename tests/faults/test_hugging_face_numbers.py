"""Faults of the Hugging Face drop-in: numbers of examples, and what is looked up by them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset

import steering
import steering.distributed
from steering.errors import SteeringError

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

from hf_toys import (
    Items,
    Linear,
    N,
    Stream,
    cheap_collections,  # noqa: F401
    gpt,
    mean,
    run,
    trainer,
    words,
)
from transformers import default_data_collator

from steering.integrations import numbers
from steering.integrations.hugging_face import (
    reference_losses,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_integers_of_any_width_are_numbers(tmp_path, dtype):
    run(trainer(tmp_path, data=Items(dtype=dtype), reference=torch.zeros(N)))
    found = reference_losses(Linear(), Items(dtype=dtype), default_data_collator)
    items = Items()
    torch.testing.assert_close(
        found, F.cross_entropy(Linear().layer(items.x), items.y, reduction="none").detach()
    )


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ([1, N], f"example number {N} in a batch, expected 0 .. {N - 1}"),
        ([-1, 3], "example number -1"),
        ([0.0, 1.0], "must be integers"),
        ([True, False], "must be integers"),
        ([[1, 2]], "one number an example"),
        (["a", "b"], "must be integers"),
        ([], "must be"),
    ],
)
def test_numbers_that_are_none(index, told):
    with pytest.raises(SteeringError, match=told):
        numbers.checked_index(index, N)


@pytest.mark.parametrize("first", [1, -1])
def test_numbers_that_start_elsewhere_are_refused_before_anything_is_looked_up(tmp_path, first):
    with pytest.raises(SteeringError, match=r"expected 0 \.\. 15"):
        reference_losses(Linear(), Items(first=first), default_data_collator)
    made = trainer(tmp_path, data=Items(first=first), reference=torch.zeros(N), max_steps=4)
    with pytest.raises(SteeringError, match=r"expected 0 \.\. 15"):
        run(made)


def test_numbers_that_are_there_twice_or_never():
    items = Items()
    items.index[3] = 2
    with pytest.raises(
        SteeringError, match=r"no finite loss of example 3; .* each once, and 2 is there 2 times"
    ):
        reference_losses(Linear(), items, default_data_collator)
    with pytest.raises(SteeringError, match="carry its own number"):
        reference_losses(
            Linear(),
            [{"x": items.x[0], "labels": items.y[0]}],
            lambda rows: {"x": rows[0]["x"][None]},
        )

    def leaves_one_out(rows):
        return default_data_collator(rows[:-1] if len(rows) == 4 else rows)

    with pytest.raises(SteeringError, match="no finite loss of example 3"):
        reference_losses(Linear(), Items(), leaves_one_out, batch_size=4)


def test_a_collator_may_shuffle_and_the_last_batch_be_short():
    def shuffled(rows):
        return default_data_collator([rows[i] for i in torch.randperm(len(rows)).tolist()])

    items = Items()
    found = reference_losses(Linear(), items, shuffled, batch_size=5)
    torch.testing.assert_close(
        found, F.cross_entropy(Linear().layer(items.x), items.y, reduction="none").detach()
    )


def test_a_loss_that_is_not_finite_is_told_from_a_missing_one():
    items = Items()
    items.x[5] = float("inf")
    with pytest.raises(SteeringError, match="no finite loss of example 5, but nan"):
        reference_losses(Linear(), items, default_data_collator)


def test_streams(tmp_path):
    with pytest.raises(SteeringError, match="num_examples="):
        reference_losses(Linear(), Stream(), default_data_collator)
    found = reference_losses(Linear(), Stream(), default_data_collator, num_examples=N)
    torch.testing.assert_close(found, reference_losses(Linear(), Items(), default_data_collator))
    run(trainer(tmp_path, data=Stream(), reference=found))


def test_the_reference_model_is_left_as_it_was():
    model = nn.Sequential(Linear(), nn.Dropout())
    model[1].eval()
    model.forward = model[0].forward
    with pytest.raises(SteeringError):
        reference_losses(model, Items(first=1), default_data_collator)
    assert model.training
    assert not model[1].training


@pytest.mark.parametrize("wrong", [8, 1600])
def test_reference_losses_of_another_set_name_both_numbers(tmp_path, wrong):
    with pytest.raises(
        SteeringError, match=rf"num_examples {N}, reference_losses {wrong}, train_dataset {N}"
    ):
        trainer(tmp_path, reference=torch.zeros(wrong))
    with pytest.raises(SteeringError, match=rf"reference_losses {wrong}, train_dataset {N}"):
        trainer(tmp_path, steer=mean, reference=torch.zeros(wrong))
    with pytest.raises(SteeringError, match=rf"num_examples {wrong}, train_dataset {N}"):
        trainer(tmp_path, steer=steering.DRRho(wrong))
    with pytest.raises(SteeringError, match=rf"num_examples {N}, train_dataset 4"):
        trainer(tmp_path, data=Subset(Items(), range(4)))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        (
            torch.tensor([0.0, float("nan")] + [float("inf")] * 14),
            "15 of 16 are not finite, the first is that of example 1",
        ),
        (torch.zeros(N, 1), r"shape \(16, 1\)"),
        (torch.zeros(N, dtype=torch.bool), "torch.bool"),
        ("losses.pt", "torch.load"),
        (Path("losses.pt"), "torch.load"),
        ({"losses": 1}, "got dict"),
    ],
)
def test_reference_losses_that_are_none(tmp_path, reference, told):
    with pytest.raises(SteeringError, match=told) as caught:
        trainer(tmp_path, reference=reference)
    assert "\n" not in str(caught.value)


def test_arrays_and_lists_are_reference_losses(tmp_path):
    for reference in (
        [1] * N,
        torch.ones(N).numpy(),
        torch.ones(N, dtype=torch.float16, requires_grad=True),
    ):
        made = trainer(tmp_path, reference=reference)
        assert made.reference_losses.tolist() == [1.0] * N
        assert made.reference_losses.dtype == torch.float32
        assert not made.reference_losses.requires_grad


def test_any_function_is_a_steer(tmp_path):
    run(trainer(tmp_path, steer=mean, save_strategy="steps", save_steps=1))
    run(
        trainer(tmp_path, steer=mean, max_steps=3),
        resume_from_checkpoint=str(tmp_path / "checkpoint-1"),
    )


def test_the_column_of_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"input_ids": words(N).tolist(), "labels": words(N).tolist()}

    def made(index):
        data = datasets.Dataset.from_dict(rows | ({} if index is None else {"index": index}))
        return trainer(tmp_path, model=gpt(), data=data)

    made_well = made(list(range(N))[::-1])
    run(made_well)  # remove_unused_columns is True here: "index" is kept all the same
    for index, told in [
        (None, "add_column"),
        (list(range(1, N + 1)), "example number 16"),
        ([0] * N, "has 0 16 times"),
        ([float(i) for i in range(N)], "must be integers"),
    ]:
        with pytest.raises(SteeringError, match=told):
            made(index)
