"""Faults of the Hugging Face drop-in: examples in which nothing counts, and what a trainer would drop
unsaid."""

# ruff: noqa: ARG001, ARG005 (stand-ins for what a trainer calls)

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
    BERT,
    Linear,
    N,
    Sentences,
    bert,
    cheap_collections,  # noqa: F401
    gpt,
    mean,
    run,
    trainer,
    words,
)
from transformers import TrainingArguments, default_data_collator

from steering.integrations.hugging_face import (
    reference_losses,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


def test_examples_without_a_label_do_not_count(tmp_path):
    """The loss of a batch is that of the batch without them, by hand for KL with a batch's own
    normaliser."""
    data, tau = Sentences(silent=[1, 2]), 0.5
    reference = torch.linspace(0, 3, N)
    made = trainer(tmp_path, steering.DRRho(N, tau=tau, gamma=1.0), gpt(), data, reference)
    batch, model = default_data_collator([data[i] for i in range(4)]), made.model.train()
    found = made.compute_loss(model, dict(batch))
    logits = model(input_ids=data.ids[[0, 3]]).logits
    losses = torch.stack(
        [F.cross_entropy(row[:-1], data.ids[i, 1:]) for row, i in zip(logits, (0, 3), strict=True)]
    )
    excess = losses - reference[[0, 3]]
    torch.testing.assert_close(found, tau * ((excess / tau).exp().mean().log()))
    assert made.without_labels == 2

    def sums(losses, reference, index):  # a function that knows no mask is given the others alone
        assert index.tolist() == [0, 3]
        return losses.sum()

    other = trainer(tmp_path, sums, gpt(), data)
    torch.testing.assert_close(other.compute_loss(other.model.train(), dict(batch)), losses.sum())


def test_a_batch_in_which_nothing_counts_moves_nothing(tmp_path):
    data = Sentences(silent=range(N))
    made = trainer(
        tmp_path,
        model=gpt(),
        data=data,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
    )
    before, state = (
        made.model.transformer.wte.weight.detach().clone(),
        dict(made.steer.state_dict()),
    )
    state = {name: value.clone() for name, value in state.items()}
    run(made)
    assert torch.equal(made.model.transformer.wte.weight, before)
    assert all(torch.equal(value, state[name]) for name, value in made.steer.state_dict().items())


def test_reference_losses_tell_of_examples_without_labels(caplog):
    from steering.reading import report_once

    report_once.cache_clear()
    model = gpt()
    with caplog.at_level("WARNING", logger="steering"):
        found = reference_losses(model, Sentences(silent=[3, 5]), default_data_collator)
    assert found[3] == found[5] == 0
    assert found.count_nonzero() == N - 2
    assert "16 examples" in caplog.text
    assert "2 to loss 0" in caplog.text


def own_loss(outputs, labels, num_items_in_batch=None):
    return outputs.logits.mean()


def with_loss_function():
    model = gpt()
    model.loss_function = own_loss
    return model


REFUSED = {
    "compute_loss_func": {"extra": {"compute_loss_func": own_loss}},
    "use_liger_kernel": {"use_liger_kernel": True},
    "label_names": {"label_names": ["answers"]},
    "GPUs in one process": {"patched": {"_n_gpu": 2}},
    "label_smoothing_factor: needs a model with a config": {"label_smoothing_factor": 0.1},
    "label_smoothing_factor: 0.1 would not be applied": {
        "label_smoothing_factor": 0.1,
        "model": gpt,
        "losses": lambda logits, labels: logits.mean((1, 2)),
    },
    "label_smoothing_factor: has no meaning for regression": {
        "label_smoothing_factor": 0.1,
        "model": lambda: bert(
            "BertForSequenceClassification", num_labels=1, problem_type="regression"
        ),
    },
    "label_smoothing_factor: has no meaning for multi_label": {
        "label_smoothing_factor": 0.1,
        "model": lambda: bert(
            "BertForSequenceClassification", problem_type="multi_label_classification"
        ),
    },
    "loss_function of its own": {"model": with_loss_function},
    "Wav2Vec2ForCTC": {
        "model": lambda: hf.Wav2Vec2ForCTC(
            hf.Wav2Vec2Config(
                **{k: v for k, v in BERT.items() if k != "vocab_size"},
                vocab_size=8,
                conv_dim=(8,),
                conv_kernel=(3,),
                conv_stride=(2,),
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        )
    },
    "BertForPreTraining": {"model": lambda: bert("BertForPreTraining")},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_would_be_dropped_is_refused_by_name(tmp_path, monkeypatch, named):
    case = dict(REFUSED[named])
    made = case.pop("model", Linear)()
    for name, value in case.pop("patched", {}).items():
        monkeypatch.setattr(TrainingArguments, name, value, raising=False)
        if name == "_n_gpu":
            monkeypatch.setattr(TrainingArguments, "n_gpu", value)
    with pytest.raises(SteeringError, match=named) as caught:
        trainer(tmp_path, model=made, **case)
    assert "\n" not in str(caught.value)


def test_one_of_the_librarys_own_loss_functions_is_taken(tmp_path):
    from transformers.loss.loss_utils import ForMaskedLMLoss

    model = gpt()
    model.loss_function = ForMaskedLMLoss  # GPT's labels, but aligned
    made = trainer(tmp_path, steer=mean, model=model, data=Sentences())
    batch = default_data_collator([Sentences()[i] for i in range(4)])
    own = model.eval()(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(made.compute_loss(model.train(), batch), own)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_micro_batches_are_averaged_once(tmp_path, parts):
    """Of a model whose forward takes **kwargs, to which a plain trainer gives
    num_items_in_batch."""
    moved = []
    for size in (8, 8 // parts):
        model = bert("BertForSequenceClassification", num_labels=3)
        rows = [{"input_ids": words(N)[i], "labels": i % 3, "index": i} for i in range(N)]
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        run(trainer(tmp_path, mean, model, rows, **steps))
        moved.append(model.classifier.weight.detach().clone())
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-4, atol=1e-6)
