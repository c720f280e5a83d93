"""Faults of the Hugging Face drop-in: which loss an example has."""

# ruff: noqa: ARG005 (stand-ins for what a trainer calls)

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
    WORDS,
    Items,
    Linear,
    N,
    Sentences,
    Unlike,
    arguments,
    bart,
    bert,
    cheap_collections,  # noqa: F401
    flat,
    gpt,
    llama,
    mean,
    run,
    t5,
    trainer,
    words,
)
from transformers import default_data_collator

from steering.integrations import hf_terms
from steering.integrations.hf_losses import LossOf
from steering.integrations.hugging_face import (
    SteeringTrainer,
    example_losses,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


def holes(labels):
    """As a collator leaves them: unlike numbers of tokens count."""
    labels = labels.clone()
    labels[0, :3], labels[1, 4:], labels[2, 1:2] = -100, -100, -100
    return labels


SOME, REALS = torch.tensor([2, 0, 1, 1]), torch.tensor([0.5, -1.0, 2.0, 0.1])


MANY = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])


HEADS = {
    "one label": lambda: (bert("BertForSequenceClassification", num_labels=3), SOME),
    "one label, GPT": lambda: (gpt("GPT2ForSequenceClassification", num_labels=3), SOME),
    "several labels": lambda: (
        bert(
            "BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification"
        ),
        MANY,
    ),
    "several labels, not said": lambda: (bert("BertForSequenceClassification", num_labels=3), MANY),
    "regression": lambda: (bert("BertForSequenceClassification", num_labels=1), REALS),
    "regression of three": lambda: (
        bert("BertForSequenceClassification", num_labels=3, problem_type="regression"),
        MANY + 0.25,
    ),
    "causal": lambda: (gpt(), holes(words(4))),
    "causal, another": lambda: (llama(), holes(words(4))),
    "causal, BERT": lambda: (bert("BertLMHeadModel", is_decoder=True), holes(words(4))),
    "masked": lambda: (bert("BertForMaskedLM"), holes(words(4, seed=3))),
    "tokens": lambda: (bert("BertForTokenClassification", num_labels=3), holes(words(4) % 3)),
    "T5": lambda: (t5(), holes(words(4, seed=2))),
    "BART": lambda: (bart(), holes(words(4, seed=2))),
}


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_an_example_is_the_models_own_on_a_batch_of_one(head):
    model, labels = HEADS[head]()
    model.eval()
    inputs = {"input_ids": words(4), "labels": labels}
    found = LossOf(model)(model(**inputs), inputs, 4)
    alone = [
        model(input_ids=inputs["input_ids"][i : i + 1], labels=labels[i : i + 1]).loss
        for i in range(4)
    ]
    torch.testing.assert_close(found.losses, torch.stack(alone), rtol=1e-5, atol=1e-6)
    assert found.counted.all()


@pytest.mark.parametrize("mode", ["whole", "autocast"])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_confirms_the_same_loss(head, mode):
    """Its own mean is rounded to 8 bits there; what must not happen is a refusal."""
    model, labels = HEADS[head]()
    model = model.eval().to(torch.bfloat16 if mode == "whole" else torch.float32)
    labels = labels.bfloat16() if mode == "whole" and labels.is_floating_point() else labels
    inputs = {"input_ids": words(4), "labels": labels}
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        outputs = model(**inputs)
    found = LossOf(model)(outputs, inputs, 4)
    assert found.losses.dtype == torch.float32
    assert found.losses.isfinite().all()


@pytest.mark.parametrize("head", ["one label", "causal", "masked", "T5"])
def test_smoothing_is_the_formula_of_the_library(head):
    from transformers.trainer_pt_utils import LabelSmoother

    model, labels = HEADS[head]()
    inputs = {"input_ids": words(4), "labels": labels}
    found = LossOf(model.eval(), smoothing=0.3)(model(**inputs), inputs, 4).losses
    for i in range(4):
        outputs = model(input_ids=inputs["input_ids"][i : i + 1], labels=labels[i : i + 1])
        shift = {"shift_labels": True} if head == "causal" else {}
        torch.testing.assert_close(
            found[i], LabelSmoother(epsilon=0.3)(outputs, labels[i : i + 1], **shift)
        )


def test_the_bare_function_takes_no_side():
    logits, ids = torch.randn(3, 4, 5), torch.randint(0, 5, (3, 4))
    log_p = logits.log_softmax(-1)
    for i in range(3):
        aligned = -sum(log_p[i, t, ids[i, t]] for t in range(4)) / 4
        shifted = -sum(log_p[i, t, ids[i, t + 1]] for t in range(3)) / 3
        torch.testing.assert_close(example_losses(logits, ids)[i], aligned)
        torch.testing.assert_close(example_losses(logits, ids, shift=True)[i], shifted)
    for name in ("GPT", "T5"):  # given to a trainer it is the model's own, as if nothing were given
        model = gpt() if name == "GPT" else t5()
        inputs = {"input_ids": words(2), "labels": words(2)}
        outputs = model.eval()(**inputs)
        torch.testing.assert_close(
            LossOf(model, example_losses)(outputs, inputs, 2).losses.mean(), outputs.loss
        )


@pytest.mark.parametrize("how", ["aligned", "shifted"])
def test_a_model_without_a_config_is_read_from_its_own_loss(how):
    model, inputs = Unlike(how), {"input_ids": words(4), "labels": words(4, seed=5)}
    outputs = model(**inputs)
    torch.testing.assert_close(LossOf(model)(outputs, inputs, 4).losses.mean(), outputs.loss)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: Unlike("auxiliary"), "auxiliary loss"),
        (lambda: Unlike("silent"), "returns no loss that tells"),
        (lambda: Linear(weight=torch.tensor([1.0, 5.0, 1.0])), "weights"),
    ],
)
def test_a_loss_that_is_none_of_ours_is_refused_in_the_first_step(tmp_path, model, told):
    made = trainer(tmp_path, model=model(), data=Items() if "weights" in told else Sentences())
    with pytest.raises(SteeringError, match=f"{told}.*losses=") as caught:
        run(made)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("before", [1, 5])
def test_class_weights_are_found_behind_batches_of_one_label(before):
    """A weighted mean over one label is the plain one."""
    model = Linear(weight=torch.tensor([1.0, 5.0, 1.0]))
    losses = LossOf(model)

    def ask(labels):
        inputs = {"x": torch.randn(len(labels), 4), "labels": torch.tensor(labels)}
        return losses(model(**inputs), inputs, None)

    for _ in range(before):
        assert ask([1]).losses.isfinite().all()
        assert ask([2, 2, 2]).losses.isfinite().all()
    ask([0, 2])  # of equal weight
    with pytest.raises(SteeringError, match="weights"):
        ask([0, 1, 2])


@pytest.mark.parametrize(
    ("coefficient", "dtype"), [(0.001, torch.float32), (0.02, torch.bfloat16), (0.0, torch.float32)]
)
def test_a_routers_loss_is_refused_however_small(coefficient, dtype):
    """Times its usual coefficient it is smaller than what rounding may do to a mean."""
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    router = {"output_router_logits": True, "router_aux_loss_coef": coefficient}
    model = hf.MixtralForCausalLM(hf.MixtralConfig(**shape, **heads, **router)).eval().to(dtype)
    inputs = {"input_ids": words(4), "labels": words(4)}
    outputs, losses = model(**inputs), LossOf(model, unit="token")
    assert outputs.aux_loss > 0
    if not coefficient:  # nothing is added then
        assert losses(outputs, inputs, None).losses.isfinite().all()
        return
    with pytest.raises(SteeringError, match=rf"\(aux_loss\), times {coefficient}.* losses="):
        losses(outputs, inputs, None)


def test_several_labels_are_trained_by_binary_cross_entropy(tmp_path):
    """A mean as steer: the trained weights are those of the plain trainer."""
    rows = [{"input_ids": words(4)[i], "labels": MANY[i], "index": i} for i in range(4)]
    moved = []
    for plain in (True, False):
        model = bert(
            "BertForSequenceClassification", num_labels=3, problem_type="multi_label_classification"
        )
        shared = {"train_dataset": rows, "data_collator": default_data_collator}
        args = arguments(tmp_path)
        if plain:
            made = hf.Trainer(model, args, **shared)
        else:
            made = SteeringTrainer(model, args, **shared, steer=mean)
        run(made)
        moved.append(model.classifier.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("factor", [0.0, 0.4])
def test_label_smoothing_trains_what_the_plain_trainer_trains(tmp_path, factor):
    moved = []
    for plain in (True, False):
        model = llama()
        shared = {"train_dataset": Sentences(), "data_collator": default_data_collator}
        args = arguments(tmp_path, label_smoothing_factor=factor)
        made = (
            hf.Trainer(model, args, **shared)
            if plain
            else SteeringTrainer(model, args, **shared, steer=mean)
        )
        run(made)
        moved.append(model.lm_head.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"position_ids_start": 2},
        {"return_position_ids": False, "return_seq_idx": True},
        {"return_position_ids": False, "return_flash_attn_kwargs": True},
    ],
)
def test_packed_examples_have_the_losses_of_single_ones(told):
    """The model sees one word at a time, so that packing changes nothing but the bookkeeping."""
    rows, model = [words(1, n, seed=n)[0] for n in (5, 2, 7)], Unlike("shifted")
    inputs = flat(rows, **told)
    assert inputs["labels"].shape == (1, 14)
    outputs = model(inputs["input_ids"], inputs["labels"])
    found = LossOf(model)(outputs, inputs, 3)
    for i, row in enumerate(rows):
        torch.testing.assert_close(found.losses[i], F.cross_entropy(model.table(row[:-1]), row[1:]))


def test_packed_examples_that_cannot_be_told_apart_are_refused():
    model, inputs = Unlike("shifted"), flat([words(1, 5)[0], words(1, 4)[0]])
    outputs = model(inputs["input_ids"], inputs["labels"])
    with pytest.raises(SteeringError, match="2 examples by its positions"):
        LossOf(model)(outputs, inputs, 3)
    inputs.pop("position_ids")
    with pytest.raises(SteeringError, match="packed batches must tell"):
        LossOf(model)(outputs, inputs, 2)


def test_a_packed_run_learns(tmp_path):
    def collate(items):
        return flat([item["input_ids"] for item in items]) | {
            "index": torch.tensor([item["index"] for item in items])
        }

    made = SteeringTrainer(
        gpt(),
        arguments(tmp_path, max_steps=12, optim="adamw_torch", learning_rate=0.1),
        train_dataset=Sentences(),
        data_collator=collate,
        steer=steering.DRRho(N),
        reference_losses=torch.zeros(N),
    )
    run(made)
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2


def test_a_function_of_outputs_and_inputs_serves_models_without_logits(tmp_path):
    def span(outputs, inputs):
        start = F.cross_entropy(outputs.start_logits, inputs["start_positions"], reduction="none")
        return (
            start + F.cross_entropy(outputs.end_logits, inputs["end_positions"], reduction="none")
        ) / 2

    rows = [
        {"input_ids": words(N)[i], "start_positions": 1, "end_positions": 3, "index": i}
        for i in range(N)
    ]
    model = bert("BertForQuestionAnswering")
    with pytest.raises(SteeringError, match=r"BertForQuestionAnswering.*losses="):
        trainer(tmp_path, model=model, data=rows)
    made = trainer(tmp_path, steer=mean, model=model, data=rows, losses=span)
    batch = default_data_collator(rows[:4])
    own = model.eval()(**{key: value for key, value in batch.items() if key != "index"}).loss
    torch.testing.assert_close(made.compute_loss(model.train(), batch), own, rtol=1e-4, atol=1e-5)
    run(made)


def test_losses_must_be_one_an_example(tmp_path):
    for wrong in (
        lambda logits, labels: logits.mean(),
        lambda logits, labels: logits,
        lambda logits, labels: 1.0,
    ):
        with pytest.raises(SteeringError, match="one loss an example"):
            run(trainer(tmp_path, losses=wrong))
    with pytest.raises(SteeringError, match="steer: must return one number"):
        run(trainer(tmp_path, steer=lambda losses, reference, index: losses))


def test_kinds_are_all_named():
    assert set(hf_terms.SMOOTH) < set(hf_terms.KINDS)
