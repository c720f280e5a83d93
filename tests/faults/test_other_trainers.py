"""Faults of other people's trainers: which loss an example has, which state a run resumes, what a
trainer drops unsaid."""

# ruff: noqa: ARG001, ARG002, ARG005 (stand-ins for what a trainer calls)

import contextlib
import gc
import io
import multiprocessing
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import steering
import steering.distributed
from steering.errors import SteeringError

pl = pytest.importorskip(
    "lightning.pytorch",
    reason="Lightning is not installed: pip install 'model-steering[lightning]'",
)
pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

import transformers as hf  # noqa: E402
from transformers import TrainingArguments, default_data_collator  # noqa: E402
from transformers.modeling_outputs import SequenceClassifierOutput  # noqa: E402

from steering.integrations import hf_terms, numbers  # noqa: E402
from steering.integrations.hf_losses import LossOf  # noqa: E402
from steering.integrations.hugging_face import SteeringTrainer, example_losses, reference_losses  # noqa: E402
from steering.integrations.lightning import SteeringCallback  # noqa: E402

N, WORDS = 16, 20
pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers themselves


@pytest.fixture(autouse=True, scope="module")
def _cheap_collections():
    """A trainer collects garbage at every start and end; what its library's import has left need
    not be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# ---- small models and data
# --------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A classifier of vectors, with the outputs of `transformers`; `weight` is a class weight of
    its own loss."""

    def __init__(self, weight=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.weight = nn.Linear(4, 3), weight

    def forward(self, x, labels=None):
        logits = self.layer(x)
        loss = None if labels is None else F.cross_entropy(logits, labels, weight=self.weight)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class Items(torch.utils.data.Dataset):
    def __init__(self, n=N, first=0, dtype=torch.int64):
        self.x, self.y = (
            torch.randn(n, 4, generator=torch.Generator().manual_seed(1)),
            torch.arange(n) % 3,
        )
        self.index = (torch.arange(n) + first).to(dtype)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i], "index": self.index[i]}


class Stream(IterableDataset):
    def __iter__(self):
        items = Items()
        return iter([items[i] for i in range(N)])


class Sentences(torch.utils.data.Dataset):
    """Rows of 6 words; those of `silent` have no label that counts."""

    def __init__(self, silent=()):
        self.ids = words(N)
        self.labels = self.ids.clone()
        self.labels[list(silent)] = -100

    def __len__(self):
        return N

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i], "index": i}


def words(rows, length=6, seed=0):
    return torch.randint(2, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


BERT = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
OFF = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 16,
}


def bert(kind, **changes):
    torch.manual_seed(0)
    return getattr(hf, kind)(hf.BertConfig(**BERT, **OFF, **changes))


def gpt(kind="GPT2LMHeadModel", **changes):
    torch.manual_seed(0)
    shape = {"vocab_size": WORDS, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
    off = {
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return getattr(hf, kind)(hf.GPT2Config(**shape, **off, **{"pad_token_id": 1, **changes}))


def llama():
    torch.manual_seed(0)
    shape = {
        "vocab_size": WORDS,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(**shape, intermediate_size=8, max_position_embeddings=32)
    )


def t5():
    torch.manual_seed(0)
    shape = {
        "vocab_size": WORDS,
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_heads": 2,
    }
    return hf.T5ForConditionalGeneration(
        hf.T5Config(**shape, decoder_start_token_id=0, dropout_rate=0.0)
    )


def bart():
    torch.manual_seed(0)
    half = {"layers": 1, "attention_heads": 2, "ffn_dim": 8}
    sides = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in half.items()
    }
    shape = {"vocab_size": WORDS, "d_model": 8, "max_position_embeddings": 32, "dropout": 0.0}
    return hf.BartForConditionalGeneration(hf.BartConfig(**shape, **sides))


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


def arguments(folder, **changes):
    options = {
        "output_dir": str(folder),
        "max_steps": 2,
        "learning_rate": 0.1,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0,
        "logging_steps": 1,
        "seed": 0,
    }
    return TrainingArguments(**{**options, **changes})


def trainer(
    folder, steer=None, model=None, data=None, reference=None, losses=None, extra=None, **changes
):
    data = Items() if data is None else data
    return SteeringTrainer(
        model or Linear(),
        arguments(folder, **changes),
        train_dataset=data,
        eval_dataset=Items() if model is None else data,
        data_collator=default_data_collator,
        steer=steering.DRRho(N, tau=1.0) if steer is None else steer,
        reference_losses=reference,
        losses=losses,
        **(extra or {}),
    )


def mean(losses, reference, index):
    return losses.mean()


class Scaled(nn.Module):
    """A steer with a parameter: (s·ℓ̄ − 1)², and a count of its calls in training."""

    def __init__(self, start=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(start))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, losses, reference, index):
        if self.training:
            self.calls += 1
        return (self.scale * losses.mean() - 1).square()


def run(made, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return made.train(**options)


# ---- 36, 38, 40, 46: which loss an example has
# --------------------------------------------------------------------------


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


class Unlike(nn.Module):
    """A language model without a config; its loss is aligned, shifted, or one that no mean of ours
    gives."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.table = how, nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids, labels):
        logits = self.table(input_ids)
        first, second = (
            (logits[:, :-1], labels[:, 1:]) if self.how == "shifted" else (logits, labels)
        )
        loss = F.cross_entropy(first.flatten(0, 1), second.flatten())
        loss = loss + 0.1 if self.how == "auxiliary" else loss
        return SequenceClassifierOutput(loss=None if self.how == "silent" else loss, logits=logits)


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


def flat(rows, **options):
    base = hf.DataCollatorWithFlattening(**options)
    plain = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows]
    return {
        k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in base(plain).items()
    }


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


# ---- examples in which nothing counts
# -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("divergence", ["kl", "chi2", "cvar", "tv"])
def test_the_mask_of_the_five_lines_is_the_batch_without_the_others(divergence):
    options = {"divergence": divergence, "gamma": 1.0} | (
        {"level": 0.5} if divergence == "cvar" else {}
    )
    losses, reference = torch.randn(6), torch.randn(6)
    mask, index = torch.tensor([True, False, True, True, False, True]), torch.arange(6)
    found = []
    for kept in (None, mask):
        leaf = losses.clone().requires_grad_()
        steer = steering.DRRho(6, **options)
        if kept is None:
            loss = steer(leaf[mask], reference[mask], index[mask])
        else:
            loss = steer(leaf, reference, index, mask)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1])


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


# ---- 41, and everything else that would be dropped
# -----------------------------------------------------------------------


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


# ---- 44, 45: numbers
# ------------------------------------------------------------------------------------------------------


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


# ---- 34: which state a run resumes
# ----------------------------------------------------------------------------------------


def tables(steer):
    return {name: value.clone() for name, value in steer.state_dict().items()}


def at_begin(made, **options):
    """State of the steer when the training begins."""
    seen = {}

    class Look(hf.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            seen.update(tables(made.steer))

    made.add_callback(Look())
    run(made, **options)
    return seen


def same(first, second):
    second = {name: value for name, value in second.items() if isinstance(value, torch.Tensor)}
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


SAVING = {"save_strategy": "steps", "save_steps": 2}


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


def plain_collate(items):
    return default_data_collator([{"x": item["x"], "labels": item["labels"]} for item in items])


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


# ---- 42: parameters of the steer
# ------------------------------------------------------------------------------------------


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
    from steering.dro.online.row_table import Layout

    with monkeypatch.context() as two:
        two.setattr(steering.distributed, "active", lambda: True)
        two.setattr(steering.distributed, "world_size", lambda: 2)
        two.setattr(steering.distributed, "rank", lambda: 0)
        steer = steering.GlobalContrastiveLoss(N, layout=Layout(split=True))
    with pytest.raises(SteeringError, match="split over the ranks"):
        trainer(tmp_path, steer)
    with pytest.raises(SteeringError, match="split over the ranks"):
        fit(tmp_path, steer)


def test_the_steer_is_in_training_mode_and_knows_the_epoch(tmp_path):
    class Watched(Scaled):
        epochs = ()

        def start_epoch(self, epoch):
            self.epochs = (*self.epochs, epoch)

    steer = Watched().eval()
    run(trainer(tmp_path, steer, max_steps=10, eval_strategy="steps", eval_steps=1))
    assert steer.epochs == (0, 1, 2)
    assert steer.calls == 10


def test_two_processes_average_the_gradients_of_the_steer(tmp_path):
    """Each rank has another share of the data; both end at one scale, that of one process with the
    whole batch."""
    steer = Scaled()
    index = torch.arange(8)
    x, y = Items().x[index], Items().y[index]
    model = Linear()
    halves = [
        (steer(F.cross_entropy(model.layer(x[h]), y[h], reduction="none"), None, None))
        for h in index.split(4)
    ]
    slope = torch.autograd.grad((halves[0] + halves[1]) / 2, steer.scale)[0].item()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["steering.integrations.hugging_face", "steering.integrations.lightning", "pytest"]
    )
    port = free_port()
    ranks = [context.Process(target=as_rank, args=(rank, str(tmp_path), port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
    for name in ("hf", "lightning"):
        scales = [
            torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)
        ]
        assert scales[0] == scales[1] == pytest.approx(1 - 0.1 * slope, rel=1e-5), name
    assert (tmp_path / "checkpoint-1/steering.pt").is_file()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def as_rank(rank, folder, port):
    """One step on examples 0 .. 3 or 4 .. 7, in both trainers; rank 1 starts with another scale,
    which must not matter."""
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    steer = Scaled(start=1.0 if rank == 0 else 3.0)

    class Sharded(SteeringTrainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    made = Sharded(
        Linear(),
        arguments(folder, max_steps=1, ddp_backend="gloo", save_strategy="steps", save_steps=1),
        train_dataset=Subset(Items(), range(8)),
        data_collator=default_data_collator,
        steer=steer,
    )
    made.train()
    torch.save(steer.scale.item(), f"{folder}/hf-{rank}.pt")
    steer = Scaled(start=1.0 if rank == 0 else 3.0)
    items = Items()
    data = TensorDataset(items.x[:8], items.y[:8], torch.arange(8))
    loader = DataLoader(data, batch_size=4, sampler=range(4 * rank, 4 * rank + 4))
    options = QUIET | {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
    pl.Trainer(max_epochs=1, callbacks=[SteeringCallback(steer)], **options).fit(
        Module(steer, both=True), loader
    )
    torch.save(steer.scale.item(), f"{folder}/lightning-{rank}.pt")
    steering.distributed.leave()


# ---- Lightning
# ------------------------------------------------------------------------------------------------------------

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


class Module(pl.LightningModule):
    """Calls its steers in training, validation and test; they live outside of it unless
    `inside`."""

    def __init__(self, *steers, both=False, inside=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.outside = list(steers)
        if inside:
            self.steer = steers[0]
        self.both = both

    def training_step(self, batch, _=None):
        x, y, index = batch
        losses = F.cross_entropy(self.layer(x), y, reduction="none")
        return sum(steer(losses, None, index) for steer in self.outside)

    validation_step = test_step = predict_step = training_step

    def configure_optimizers(self):
        more = [p for steer in self.outside for p in steer.parameters()] if self.both else []
        return torch.optim.SGD([*self.parameters(), *more], lr=0.1)


def loader(size=4):
    items = Items()
    return DataLoader(TensorDataset(items.x, items.y, torch.arange(N)), batch_size=size)


def fit(
    folder, *steers, names=None, checkpoint=None, module=None, validate=False, size=4, **options
):
    names = names or ["steering"] * len(steers)
    callbacks = [SteeringCallback(steer, name) for steer, name in zip(steers, names, strict=True)]
    made = pl.Trainer(
        default_root_dir=folder, callbacks=callbacks, **{"max_epochs": 1, **QUIET, **options}
    )
    module = module or Module(*steers)
    made.fit(module, loader(size), loader() if validate else None, ckpt_path=checkpoint)
    return made


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


def test_kinds_are_all_named():
    assert set(hf_terms.SMOOTH) < set(hf_terms.KINDS)
