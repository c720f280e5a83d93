"""Tokens and sequences under a steer in a Hugging Face Trainer: which count, how micro-batches add
up, what the log tells. The twins here are loops over single tokens."""

# ruff: noqa: ARG001, ARG002, ARG005 (steers have three arguments)

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import steering
from steering.errors import SteeringError

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

import transformers as hf
from hf_toys import (
    Linear,
    N,
    Ragged,
    Sentences,
    Unlike,
    another,
    arguments,
    bert,
    cheap_collections,  # noqa: F401
    flat,
    llama,
    mean,
    padded,
    run,
    words,
)

from steering.integrations.hf_losses import LossOf
from steering.integrations.hugging_face import SteeringTrainer, reference_losses

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainer itself


def token_losses(model, item):
    """−log p of every word that counts and has one before it: the sum of the definition, for
    `Unlike`, which sees one word at a time."""
    found = []
    for before, word in zip(item["input_ids"][:-1], item["labels"][1:], strict=True):
        if word != -100:
            found.append(-model.table.weight[before].log_softmax(-1)[word])
    return torch.stack(found)


def made(folder, steer, model=None, collate=None, data=None, **options):
    names = {"reference_losses", "ref_model", "unit"} & set(options)
    ours = {name: options.pop(name) for name in names}
    return SteeringTrainer(
        model or Unlike("shifted"),
        arguments(folder, **{"per_device_train_batch_size": 4, **options}),
        train_dataset=data or Ragged(),
        eval_dataset=data or Ragged(),
        data_collator=collate or padded(),
        steer=steer,
        **{"unit": "token", **ours},
    )


@pytest.mark.parametrize("collate", [padded(), padded("left"), padded("left", 12)])
def test_the_tokens_of_a_batch_are_those_that_count(collate):
    model, data = Unlike("shifted"), Ragged()
    batch = collate([data[i] for i in range(8)])
    batch.pop("index")
    items = LossOf(model, unit="token")(model(**batch), batch, 8)
    assert items.losses.shape == items.counted.shape == (8 * (batch["labels"].shape[1] - 1),)
    for i in range(8):
        own = items.counted & (items.example == i)
        torch.testing.assert_close(items.losses[own], token_losses(model, data[i]))
    assert not items.losses[~items.counted].any()


def test_drrho_by_token_is_the_formula_over_all_tokens_of_the_batch(tmp_path):
    """KL with the batch's own normaliser: τ·log mean exp(h/τ) over the tokens that count."""
    tau, model, reference, data = 0.4, Unlike("shifted"), another(), Ragged()
    steer = steering.DRRho(len(data), tau=tau, gamma=1.0)
    trainer = made(tmp_path, steer, model, ref_model=reference)
    picked = [data[i] for i in (1, 6, 0)]
    found = trainer.compute_loss(model.train(), padded()(picked))
    target = torch.cat([token_losses(model, item) for item in picked])
    guide = torch.cat([token_losses(reference, item) for item in picked]).detach()
    expected = tau * ((target - guide) / tau).exp().mean().log()
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(loss, model.table.weight)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_rho1_trains_on_the_tokens_of_the_largest_excess(tmp_path, share):
    model, reference, data = Unlike("shifted"), another(), Ragged()
    trainer = made(tmp_path, {"name": "rho1", "share": share}, model, ref_model=reference)
    picked = [data[i] for i in range(4)]
    found = trainer.compute_loss(model.train(), padded()(picked))
    target = torch.cat([token_losses(model, item) for item in picked])
    guide = torch.cat([token_losses(reference, item) for item in picked])
    kept = (target - guide).sort(descending=True).indices[: math.ceil(share * len(target))]
    torch.testing.assert_close(found, target[kept].mean())


@pytest.mark.parametrize("collate", [padded(), padded("left"), padded(width=11)])
def test_stored_tokens_are_found_whatever_the_padding(tmp_path, collate):
    """The table is made with one padding and read with another, in another order."""
    reference, data = another(), Ragged()
    table = reference_losses(reference, data, padded("right", 9), batch_size=3, unit="token")
    assert table.shape == (8, 6)
    picked = [data[i] for i in (5, 0, 3)]
    batch = padded()(picked)
    stored = made(tmp_path, "rho1", reference_losses=table, collate=collate)
    live = made(tmp_path, "rho1", ref_model=reference)
    for trainer in (stored, live):
        trainer.model.train()
    losses = [trainer.compute_loss(trainer.model, dict(batch)) for trainer in (stored, live)]
    torch.testing.assert_close(*losses)
    for i, row in enumerate(table):
        torch.testing.assert_close(
            row[~row.isnan()], token_losses(reference, data[i]).detach(), rtol=1e-5, atol=1e-6
        )


def test_stored_tokens_are_found_in_packed_rows(tmp_path):
    """Behind one another the first word of a sentence is nobody's next one."""
    reference, data = another(), Ragged()
    table = reference_losses(reference, data, padded(), unit="token")
    picked = [data[i] for i in (4, 1, 2)]
    packed = flat([item["input_ids"] for item in picked])
    packed["labels"] = torch.cat([item["labels"] for item in picked])[None]
    packed["labels"][packed["position_ids"] == 0] = -100
    batch = packed | {"index": torch.tensor([4, 1, 2])}
    trainer = made(tmp_path, "rho1", reference_losses=table)
    expected = trainer.compute_loss(trainer.model.train(), padded()(picked))
    torch.testing.assert_close(trainer.compute_loss(trainer.model, batch), expected)


def test_stored_tokens_of_other_labels_are_refused(tmp_path):
    data = Ragged()
    table = reference_losses(another(), data, padded(), unit="token")
    trainer = made(tmp_path, "rho1", reference_losses=table)
    batch = padded()([data[3], data[2]])
    batch["labels"][1, 4] = -100
    with pytest.raises(SteeringError, match=r"example 2 has 5 items that count, and 6 are stored"):
        trainer.compute_loss(trainer.model.train(), batch)
    for wrong, told in [
        (table[:, 0], r"\(n, K\), got torch.float32 of shape \(8,\)"),
        (torch.cat([torch.full((8, 1), math.nan), table], 1), "8 of 8 rows are not finite up to"),
        (table[:7], "reference_losses 7, train_dataset 8"),
        (table.nan_to_num(math.inf), "not finite up to their last number"),
    ]:
        with pytest.raises(SteeringError, match=told):
            made(tmp_path, "rho1", reference_losses=wrong)


def test_sequences_in_a_row_are_told_apart_by_their_positions(tmp_path):
    """Rows 0: 4 + 3 words; row 1: 5 words and padding. Three sequences, of two examples."""
    model, a, b, c = Unlike("shifted"), *(words(1, n, seed=n)[0] for n in (4, 3, 5))
    inputs = {
        "input_ids": torch.stack([torch.cat([a, b]), torch.cat([c, torch.tensor([3, 3])])]),
        "labels": torch.stack([torch.cat([a, b]), torch.cat([c, torch.tensor([-100, -100])])]),
    }
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1]])
    outputs = model(**inputs)
    inputs["position_ids"] = positions
    items = LossOf(model, unit="sequence")(outputs, inputs, 2)
    assert items.counted.tolist() == [True, True, True, False]  # the padding is a fourth
    assert items.example.tolist() == [0, 0, 1, 1]
    means = [token_losses(model, {"input_ids": row, "labels": row}).mean() for row in (a, b, c)]
    torch.testing.assert_close(items.losses[:3], torch.stack(means))
    # A row is a sequence where nobody tells.
    inputs.pop("position_ids")
    rows = LossOf(model, unit="sequence")(outputs, inputs, 2)
    alone = LossOf(model)(outputs, inputs, 2)
    torch.testing.assert_close(rows.losses, alone.losses)


def test_a_packed_row_without_numbers_is_no_example(tmp_path):
    data = Ragged(numbered=False)

    def collate(items):
        return flat([item["input_ids"] for item in items])

    refused = made(tmp_path, mean, collate=collate, data=data, unit="example")
    with pytest.raises(SteeringError, match=r"holds 4 sequences .* unit='sequence'"):
        run(refused)
    seen = []

    def watched(losses, reference, index):
        seen.append((len(losses), index))
        return losses.mean()

    run(made(tmp_path, watched, collate=collate, data=data, unit="sequence", ref_model=another()))
    assert seen == [(4, None)] * 2


@pytest.mark.parametrize("unit", ["token", "sequence"])
def test_units_that_a_loss_does_not_have(tmp_path, unit):
    model = Linear()
    inputs = {"x": torch.randn(4, 4), "labels": torch.arange(4) % 3}
    with pytest.raises(SteeringError, match=rf"\(classes\) has no tokens.*got '{unit}'"):
        LossOf(model, unit=unit)(model(**inputs), inputs, 4)
    with pytest.raises(SteeringError, match="expected unit='example'"):
        LossOf(model, example_mean, unit=unit)


def example_mean(logits, labels):
    return logits.mean(-1)


def test_a_unit_that_is_none(tmp_path):
    for make in (
        lambda: made(tmp_path, mean, unit="word"),
        lambda: reference_losses(another(), Ragged(), padded(), unit="word"),
    ):
        with pytest.raises(SteeringError, match="expected one of example, sequence, token"):
            make()


# ---- several micro-batches a step


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "masked"])
def test_accumulated_steps_average_tokens_as_the_library_does(tmp_path, parts, kind):
    """A mean over tokens, in 1, 2 and 4 micro-batches of unlike counts: the plain trainer's step on
    the whole, for a model that is given num_items_in_batch."""
    build = llama if kind == "causal" else lambda: bert("BertForMaskedLM")
    moved = []
    for plain in (True, False):
        model = build()
        shared = {"train_dataset": Ragged(), "data_collator": padded(width=7)}
        size = 8 if plain else 8 // parts
        args = arguments(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
        )
        if plain:
            run(hf.Trainer(model, args, **shared))
        else:
            run(SteeringTrainer(model, args, **shared, steer=mean, unit="token"))
        moved.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    start = torch.cat([p.detach().flatten() for p in build().parameters()])
    assert (moved[0] - start).abs().max() > 1e-3
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("unit", ["token", "sequence", "example"])
def test_a_shorter_last_step_is_averaged_over_what_it_has(tmp_path, unit):
    """8 examples in micro-batches of 3, two a step: 6, then 2."""
    moved = []
    for size, parts in ((6, 1), (3, 2)):
        model = Unlike("shifted")
        trainer = made(
            tmp_path,
            steering.DRRho(8, tau=1e6, gamma=1.0),  # a mean
            model,
            unit=unit,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=parts,
            max_steps=2,
        )
        run(trainer)
        moved.append(model.table.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)


def test_a_loss_outside_of_a_step_is_not_scaled(tmp_path):
    trainer = made(tmp_path, mean, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    run(trainer)
    model, data = trainer.model.train(), Ragged()
    picked = [data[i] for i in (2, 3)]
    expected = torch.cat([token_losses(model, item) for item in picked]).mean()
    torch.testing.assert_close(trainer.compute_loss(model, padded()(picked)), expected)


# ---- the log, and evaluation


def test_the_log_tells_the_means_of_what_the_loss_hides(tmp_path):
    model, reference, data = Unlike("shifted"), another(), Ragged()
    every = [torch.cat([token_losses(m, data[i]) for i in range(8)]) for m in (model, reference)]
    trainer = made(
        tmp_path,
        {"name": "rho1", "share": 0.5},
        model,
        ref_model=reference,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=1,
    )
    run(trainer)
    [entry] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert entry["steer/target_loss"] == pytest.approx(every[0].mean().item(), rel=1e-5)
    assert entry["steer/reference_loss"] == pytest.approx(every[1].mean().item(), rel=1e-5)
    assert 0.5 <= entry["steer/kept_share"] < 0.56
    assert trainer.batches.meter.read() == {}


def test_a_steer_with_an_estimate_tells_its_metrics(tmp_path):
    class Told(torch.nn.Module):
        def estimate(self, losses, reference, index):
            return SimpleNamespace(loss=losses.mean(), metrics={"seven": torch.tensor(7.0)})

        def forward(self, losses, reference, index):
            raise AssertionError

    trainer = made(tmp_path, Told())
    run(trainer)
    told = [entry["steer/seven"] for entry in trainer.state.log_history if "loss" in entry]
    assert told == [7.0, 7.0]


@pytest.mark.parametrize("numbered", [True, False])
def test_evaluation_is_the_plain_mean_over_tokens(tmp_path, numbered):
    data = Ragged(numbered)
    trainer = made(tmp_path, "rho1", data=data, ref_model=another(), per_device_eval_batch_size=8)
    expected = torch.cat([token_losses(trainer.model, data[i]) for i in range(8)]).mean()
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert not any(name.startswith("steer/") for name in found)


def test_examples_without_a_label_are_told_by_token_too(tmp_path):
    data = Sentences(silent=[1, 2])
    steer = steering.DRRho(N, tau=0.5, gamma=1.0)
    trainer = made(tmp_path, steer, data=data, collate=hf.default_data_collator)
    model = trainer.model.train()
    found = trainer.compute_loss(model, hf.default_data_collator([data[i] for i in range(4)]))
    losses = torch.cat(
        [F.cross_entropy(model.table(r[:-1]), r[1:], reduction="none") for r in data.ids[[0, 3]]]
    )
    torch.testing.assert_close(found, 0.5 * (losses / 0.5).exp().mean().log())
    assert trainer.without_labels == 2


def test_a_steer_is_given_what_it_takes(tmp_path):
    """Numbers by name or in the third place, a mask by name, neither to one that has no place."""
    seen = {}

    class NoNumbers(torch.nn.Module):
        def forward(self, losses, reference_losses, mask=None):
            seen["no numbers"] = mask
            return losses[mask].mean()

    class Named(torch.nn.Module):
        def forward(self, losses, *, reference_losses=None, index=None, mask=None):
            raise AssertionError

        def estimate(self, losses, reference_losses, mask=None, index=None):
            seen["named"] = index
            return SimpleNamespace(loss=losses[mask].mean(), metrics={})

    def third(losses, reference_losses, numbers):
        seen["third"] = numbers
        return losses.mean()

    def any_three(*given):
        seen["any"] = given[2]
        return given[0].mean()

    data = Ragged()
    picked, losses = [data[i] for i in (1, 4)], []
    for steer in (NoNumbers(), Named(), third, any_three, lambda losses, reference: losses.mean()):
        trainer = made(tmp_path, steer)
        losses.append(trainer.compute_loss(trainer.model.train(), padded()(picked)))
    torch.testing.assert_close(losses, losses[:1] * 5)
    assert seen["no numbers"].sum() == 1 + 5
    assert seen["named"].tolist() == [1] * 5 + [4] * 5  # all places, of which the mask leaves some
    assert seen["third"].tolist() == seen["any"].tolist() == [1] + [4] * 5


@pytest.mark.parametrize("resumed", [False, True])
def test_schedules_are_told_how_far_the_run_is(tmp_path, resumed):
    told = []

    class Scheduled(torch.nn.Module):
        def at(self, progress):
            told.append(progress)

        def forward(self, losses, reference, index):
            return losses.mean()

    saving = {"save_strategy": "steps", "save_steps": 3}
    run(made(tmp_path, Scheduled(), max_steps=4, gradient_accumulation_steps=2, **saving))
    if resumed:
        told.clear()
        again = made(tmp_path, Scheduled(), max_steps=4, gradient_accumulation_steps=2)
        run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert told == ([0.75] if resumed else [0.0, 0.25, 0.5, 0.75])
