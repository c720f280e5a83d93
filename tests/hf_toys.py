"""Tiny models, data and trainers for the tests of the Hugging Face drop-in."""

# ruff: noqa: ARG001, ARG002 (stand-ins for what a trainer calls)

import contextlib
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import IterableDataset

import steering
import steering.distributed
from steering.dro.online.row_table import Layout

pytest.importorskip(
    "accelerate", reason="accelerate is not installed: pip install 'model-steering[hf]'"
)

import transformers as hf
from transformers import TrainingArguments, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput

from steering.integrations.hugging_face import (
    SteeringTrainer,
)

N, WORDS = 16, 20
LENGTHS = [5, 3, 7, 4, 6, 3, 7, 5]


@pytest.fixture(autouse=True, scope="module")
def cheap_collections():
    """A trainer collects garbage at every start and end; what its library's import has left need
    not be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


class Unlike(nn.Module):
    """A language model without a config; its loss is aligned, shifted, or one that no mean of ours
    gives."""

    def __init__(self, how):
        super().__init__()
        torch.manual_seed(0)
        self.how, self.table = how, nn.Embedding(WORDS, WORDS)

    def forward(self, input_ids, labels, attention_mask=None, position_ids=None):
        logits = self.table(input_ids)
        first, second = (
            (logits[:, :-1], labels[:, 1:]) if self.how == "shifted" else (logits, labels)
        )
        loss = F.cross_entropy(first.flatten(0, 1), second.flatten())
        loss = loss + 0.1 if self.how == "auxiliary" else loss
        return SequenceClassifierOutput(loss=None if self.how == "silent" else loss, logits=logits)


def flat(rows, **options):
    base = hf.DataCollatorWithFlattening(**options)
    plain = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in rows]
    return {
        k: v if isinstance(v, torch.Tensor) else torch.tensor(v) for k, v in base(plain).items()
    }


def tables(steer):
    return {name: value.clone() for name, value in steer.state_dict().items()}


def same(first, second):
    second = {name: value for name, value in second.items() if isinstance(value, torch.Tensor)}
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


SAVING = {"save_strategy": "steps", "save_steps": 2}


def plain_collate(items):
    return default_data_collator([{"x": item["x"], "labels": item["labels"]} for item in items])


def split_over_two(monkeypatch):
    """A steer whose tables are the first of two ranks' parts."""
    with monkeypatch.context() as two:
        two.setattr(steering.distributed, "active", lambda: True)
        two.setattr(steering.distributed, "world_size", lambda: 2)
        two.setattr(steering.distributed, "rank", lambda: 0)
        return steering.GlobalContrastiveLoss(N, layout=Layout(split=True))


class Ragged(torch.utils.data.Dataset):
    """Sentences of unlike lengths; the first two words of every second one are a prompt."""

    def __init__(self, numbered=True):
        self.rows = [words(1, n, seed=n)[0] for n in LENGTHS]
        self.numbered = numbered

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        labels = self.rows[i].clone()
        labels[: 2 * (i % 2)] = -100
        number = {"index": i} if self.numbered else {}
        return {"input_ids": self.rows[i], "labels": labels, **number}


def padded(side="right", width=None):
    """A collator; what it pads with is a word like any other, only its label is −100."""

    def collate(items):
        length = width or max(len(item["labels"]) for item in items)

        def fill(row, value):
            pad = torch.full((length - len(row),), value)
            return torch.cat([row, pad] if side == "right" else [pad, row])

        batch = {
            "input_ids": torch.stack([fill(item["input_ids"], 3) for item in items]),
            "labels": torch.stack([fill(item["labels"], -100) for item in items]),
            "attention_mask": torch.stack([fill(torch.ones_like(i["labels"]), 0) for i in items]),
        }
        if "index" in items[0]:
            batch["index"] = torch.tensor([item["index"] for item in items])
        return batch

    return collate


def another(seed=7):
    """Another language model of the same kind: a reference."""
    model = Unlike("shifted")
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.table.weight)
    return model
