"""The language modelling task: documents, packing, corruption, mixes, models, losses by token and
sequence, and runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from steering.analysis.intervals import value_of
from steering.cli import main
from steering.config import ConfigError, load_config
from steering.errors import SteeringError
from steering.methods import build_method, find_method
from steering.task import ModelSpec, find_task
from steering_tasks.language import LanguageOptions, LanguageTask
from steering_tasks.language.corpus import held_out, read_domains, stdlib
from steering_tasks.language.data import corrupted, first_of_each, mixed, pack, part_of, tagged
from steering_tasks.language.evaluation import (
    block_losses,
    losses_by_domain,
    perplexities,
    perplexity_figure,
)
from steering_tasks.language.task import LanguageData
from steering_tasks.language.tokens import Bytes, open_tokens

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TEXTS = {"a": ["hello world, " * 9, "short"], "b": ["βeta ünïcode " * 6, "more words " * 8, "end"]}


@pytest.fixture
def files(tmp_path):
    """Two domains of three documents each."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(
            "\n\n".join(f"{name} document {i} " * 12 for i in range(3))
        )
    return {
        "source": "files",
        "paths": {name: str(tmp_path / f"{name}.txt") for name in "ab"},
        "separator": "\n\n",
    }


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(
        '{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}'
    )
    return str(path)


def task(data: dict, **options: object) -> LanguageTask:
    return LanguageTask(LanguageOptions(data=LanguageData(**data), **{"length": 16, **options}))


# ---- documents
# --------------------------------------------------------------------------------------------------------


def test_it_is_found_by_name():
    assert find_task("language") is LanguageTask


def test_the_standard_library_is_split_by_file():
    train, validation = stdlib(("email", "xml"))
    assert [*train] == [*validation] == ["email", "xml"]
    for name in train:
        assert train[name]
        assert validation[name]
        assert not {*train[name]} & {*validation[name]}
    assert stdlib(("email", "xml")) == (train, validation)
    assert any("def message_from_string" in text for text in train["email"] + validation["email"])
    with pytest.raises(SteeringError, match="no package 'nothing'"):
        stdlib(("nothing",))


def test_every_kind_of_file(tmp_path):
    texts = ["one", "zwei ü", "three"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    Dataset.from_dict({"body": texts}).to_parquet(str(tmp_path / "a.parquet"))
    Dataset.from_dict({"body": texts}).save_to_disk(str(tmp_path / "disk"))
    (tmp_path / "a.txt").write_text("|".join(texts))
    for number, text in enumerate(texts):
        (tmp_path / f"part{number}.txt").write_text(text)
    paths = {
        "jsonl": "a.jsonl",
        "parquet": "a.parquet",
        "disk": "disk",
        "text": "a.txt",
        "glob": "part*.txt",
    }
    found = read_domains(
        {key: str(tmp_path / path) for key, path in paths.items()}, "body", "|", "paths"
    )
    assert all(documents == texts for documents in found.values())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.txt", None, "paths.x: cannot read .*gone.txt: no such file"),
        ("a.jsonl", '{"text": "ok"}\n{"txt": "?"}\n', "line 2 has no text 'text'"),
        ("a.jsonl", "{", "paths.x: cannot read"),
        ("a.txt", "", "no documents"),
        ("a.parquet", "not parquet", "paths.x"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SteeringError, match=words):
        read_domains({"x": str(tmp_path / name)}, "text", None, "paths")


def test_documents_are_held_out_whole():
    texts = {"a": [f"document {i}" for i in range(40)]}
    train, validation = held_out(texts, 0.25)
    assert len(validation["a"]) == 10
    assert sorted(train["a"] + validation["a"]) == sorted(texts["a"])
    with pytest.raises(SteeringError, match="domain a has one document"):
        held_out({"a": ["alone"]}, 0.5)


# ---- packing
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 16, 500])
def test_every_token_but_a_domains_first_is_predicted_once(length):
    blocks, tokens = pack(TEXTS, Bytes(), length), Bytes()
    for number, texts in enumerate(TEXTS.values()):
        stream = [token for text in texts for token in [*tokens.encode(text).tolist(), tokens.end]]
        rows = np.flatnonzero(blocks.domain == number)
        batch = blocks.batch(rows, 0)
        inputs, labels = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        assert labels[batch["mask"]].tolist() == stream[1:]
        assert inputs[batch["mask"]].tolist() == stream[:-1]
        assert batch["group"].tolist() == [number] * len(rows)


def test_bytes_round_trip_and_documents_end():
    tokens = open_tokens("bytes")
    assert tokens.decode(tokens.encode("naïve €").tolist()) == "naïve €"
    assert pack({"a": ["xy"]}, tokens, 4).tokens[0, :3].tolist() == [120, 121, 256]


def test_a_pretrained_tokenizer(tmp_path, files):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        ["document a b 0 1 2"] * 9, trainers.BpeTrainer(special_tokens=["<unk>", "<end>"])
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>"
    )
    whole.save_pretrained(tmp_path / "tok")
    tokens = open_tokens(str(tmp_path / "tok"))
    assert (tokens.size, tokens.end) == (len(whole), 1)
    assert "document" in tokens.decode(tokens.encode("document 1").tolist())
    assert task(files, tokenizer=str(tmp_path / "tok"))._train.tokens.max() < tokens.size
    with pytest.raises(SteeringError, match=r"task\.tokenizer: cannot load"):
        open_tokens(str(tmp_path / "gone"))


def test_corruption_hits_its_domain_at_its_rate():
    blocks = pack({"a": ["x" * 20_000], "b": ["y" * 20_000]}, Bytes(), 100)
    noisy = corrupted(blocks, {1: 0.4}, 256, seed=0)
    clean, hit = blocks.domain == 0, blocks.domain == 1
    np.testing.assert_array_equal(noisy.tokens[clean], blocks.tokens[clean])
    share = (noisy.tokens[hit] != blocks.tokens[hit]).mean()
    assert abs(share - 0.4 * 255 / 256) < 0.02
    assert noisy.tokens.max() <= 256
    assert noisy.fingerprint() != blocks.fingerprint()
    np.testing.assert_array_equal(noisy.tokens, corrupted(blocks, {1: 0.4}, 256, seed=0).tokens)


def test_what_was_replaced_is_known():
    """Of the tokens to predict, not of those behind the end, and wherever their block goes."""
    blocks = pack({"a": ["x" * 500], "b": ["y" * 555]}, Bytes(), 100)
    assert blocks.wrong is None
    assert corrupted(blocks, {1: 0.0}, 256, seed=0).wrong is None
    noisy = corrupted(blocks, {1: 0.4}, 4, seed=0)  # of four bytes, of which "y" is none
    mask = np.stack([np.arange(100) < count for count in blocks.counts])
    expected = (noisy.tokens != blocks.tokens)[:, 1:] & mask
    np.testing.assert_array_equal(noisy.wrong, expected)
    assert not noisy.wrong[noisy.domain == 0].any()
    assert (noisy.tokens != blocks.tokens)[-1, 57:].any()  # behind the end, where nothing is asked
    alike = corrupted(pack({"a": ["\x01" * 999]}, Bytes(), 50), {0: 1.0}, np.array([1]), seed=0)
    assert alike.wrong.sum() == 1  # a token in place of its like is right; the end was none
    rows = np.array([7, 7, 0])
    np.testing.assert_array_equal(noisy.take(rows).wrong, expected[rows])
    np.testing.assert_array_equal(tagged(noisy, 0.5, 0).wrong, expected)


def test_labels_are_those_of_the_losses(files):
    """A token is wrong or not; of a sequence the share of its tokens counts."""
    noisy = files | {"corrupt": {"a": 0.5}}
    by_token, by_sequence = (task(noisy, unit=unit) for unit in LanguageTask.units)
    wrong = by_token.labels().wrong_items
    assert wrong.shape == by_token._train.tokens[:, 1:].shape
    counts = by_token._train.counts[:, None]
    shares = by_sequence.labels().wrong_items
    np.testing.assert_allclose(shares, wrong.sum(1, keepdims=True) / counts)
    own = by_token._train.domain == 0
    assert 0.3 < (wrong[own].sum() / counts[own].sum()) < 0.7
    assert not wrong[~own].any()
    assert task(files).labels().wrong_items is None


def test_a_mix_repeats_and_leaves_out():
    blocks = pack({"a": ["x" * 3000], "b": ["y" * 1000]}, Bytes(), 10)
    found = mixed(blocks, np.array([1.0, 3.0]), seed=0)
    counts = np.bincount(found.domain)
    assert counts.tolist() == [len(blocks) // 4, 3 * len(blocks) // 4]
    own = [row.tobytes() for row in blocks.tokens[blocks.domain == 1]]
    assert {row.tobytes() for row in found.tokens[found.domain == 1]} == {
        *own
    }  # all of them, some three times
    assert mixed(blocks, np.array([1.0, 0.0]), seed=0).domain.max() == 0


def test_parts_and_first_blocks():
    blocks = pack({"a": ["x" * 3000], "b": ["y" * 1000]}, Bytes(), 10)
    one, other = part_of(blocks, 0, 0.3, 1), part_of(blocks, 0.3, 1, 1)
    assert len(one) + len(other) == len(blocks)
    few = first_of_each(blocks, 7)
    assert np.bincount(few.domain).tolist() == [7, 7]
    assert first_of_each(blocks, 10**6).fingerprint() == blocks.fingerprint()


# ---- models and losses
# ------------------------------------------------------------------------------------------------


def test_losses_are_those_of_transformers(files, tiny):
    found = task(files)
    torch.manual_seed(0)
    model = found.build(ModelSpec(tiny))
    model.module.eval()
    batch = found.train_data(model, None, 0).batch(np.arange(3), 0)
    outputs = found.risk.outputs(model.module, batch)
    assert outputs["loss"].shape == (3, 16)
    assert batch["mask"].all()
    first = batch["tokens"][:, :-1]
    expected = model.module.model(
        input_ids=first, labels=first
    ).loss  # they shift the labels themselves
    torch.testing.assert_close(outputs["loss"][:, :-1].mean(), expected)


def test_units_of_tokens_and_of_sequences(files, tiny):
    by_token, by_sequence = task(files), task(files, unit="sequence")
    model = by_token.build(ModelSpec(tiny))
    data = by_token.train_data(model, None, 0)
    batch = data.batch(np.arange(len(data)), 0)
    outputs = by_token.risk.outputs(model.module, batch)
    half = {"loss": outputs["loss"].detach() / 2}
    tokens, sequences = (
        by_token.risk.losses(outputs, half, batch),
        by_sequence.risk.losses(outputs, half, batch),
    )
    assert tokens.target.shape == (len(data) * 16,)
    assert tokens.mask.sum() == batch["mask"].sum() < tokens.mask.numel()
    for i in range(len(data)):
        mask = batch["mask"][i]
        torch.testing.assert_close(sequences.target[i], outputs["loss"][i][mask].mean())
    torch.testing.assert_close(sequences.reference, sequences.target.detach() / 2)
    assert (
        tokens.groups.view(-1, 16)[:, 0].tolist()
        == sequences.groups.tolist()
        == batch["group"].tolist()
    )


def test_a_masked_token_has_no_gradient(files, tiny):
    found = task(files)
    model = found.build(ModelSpec(tiny))
    data = found.train_data(model, None, 0)
    short = int(np.flatnonzero(data.counts < 16)[0])
    batch = data.batch(np.array([short]), 0)
    outputs = found.risk.outputs(model.module, batch)
    loss = outputs["loss"].detach().requires_grad_()
    for name in ("erm", "drrho", "rho1", "group_dro", "doremi"):
        method = build_method(name, find_method(name).options(), 1, found.groups, found.risk.unit)
        loss.grad = None
        method(
            found.risk.losses({"loss": loss}, {"loss": torch.zeros_like(loss)}, batch)
        ).loss.backward()
        assert not loss.grad[~batch["mask"]].any(), name
        assert loss.grad[batch["mask"]].any(), name


def test_perplexity_of_a_uniform_model_is_the_vocabulary(files):
    class Uniform(torch.nn.Module):
        def forward(self, tokens):
            return torch.zeros(*tokens.shape, 257)

    found = task(files)
    losses = losses_by_domain(
        block_losses(Uniform(), found.risk, found._validation, CPU), found._validation, 2
    )
    assert perplexities(losses, found.groups) == pytest.approx(
        {"perplexity/average": 257, "perplexity/a": 257, "perplexity/b": 257}, rel=1e-5
    )


def test_a_run_that_has_diverged_has_a_perplexity():
    found = perplexities(np.array([710.0, 1.0]), ["news/en", "wiki/en"])
    assert found["perplexity/news/en"] == math.inf
    assert found["perplexity/average"] == pytest.approx(math.exp(355.5))
    bars = perplexity_figure(found | {"perplexity/news/en": 2.0}).axes[0]
    assert [one.get_text() for one in bars.get_xticklabels()] == ["average", "news/en", "wiki/en"]


def test_perplexity_counts_tokens_not_blocks(files, tiny):
    found = task(files)
    model = found.build(ModelSpec(tiny))
    model.module.eval()
    evaluation = found.evaluate(model, CPU)
    metrics = evaluation.values()
    assert [*metrics] == ["perplexity/average", *(f"perplexity/{name}" for name in found.groups)]
    for number, name in enumerate(found.groups):
        rows = np.flatnonzero(found._validation.domain == number)
        batch = found._validation.batch(rows, 0)
        logits = model.module(batch["tokens"][:, :-1])[batch["mask"]]
        loss = F.cross_entropy(logits, batch["tokens"][:, 1:][batch["mask"]])
        assert metrics[f"perplexity/{name}"] == pytest.approx(math.exp(loss.item()), rel=1e-4)
    average = math.exp(np.mean([math.log(metrics[f"perplexity/{name}"]) for name in found.groups]))
    assert metrics["perplexity/average"] == pytest.approx(average)
    meanings = evaluation.meanings(found.metrics)
    for name, value in metrics.items():  # every metric is what its meaning makes of the scores
        means = [evaluation.scores[part].mean() for part in meanings[name].of]
        assert float(value_of(meanings[name], means)) == pytest.approx(value, rel=1e-12)


def test_models_by_folder_with_weights(files, tiny, tmp_path):
    found = task(files)
    model = found.build(ModelSpec(tiny))
    model.module.model.save_pretrained(tmp_path / "saved")
    again = found.build(ModelSpec(str(tmp_path / "saved"), pretrained="name"))
    other = found.build(ModelSpec(tiny, pretrained=str(tmp_path / "saved")))
    fresh = found.build(ModelSpec(str(tmp_path / "saved")))
    for key, value in model.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[key], value)
        assert torch.equal(other.module.state_dict()[key], value)
    assert not torch.equal(fresh.module.state_dict()["model.transformer.wte.weight"], value)
    assert isinstance(
        model.module.model, type(AutoModelForCausalLM.from_config(model.module.model.config))
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ('{"n_layer": 1}', "has no 'model_type'"),
        ('{"model_type": "gpt99"}', "cannot build the language model"),
        ('{"model_type": "gpt2", "n_embd": 15, "n_head": 2}', "cannot build the language model"),
        (
            '{"model_type": "gpt2", "vocab_size": 100, "n_embd": 16, "n_head": 2}',
            "knows 100 tokens, the tokenizer makes 257",
        ),
        (
            '{"model_type": "gpt2", "n_positions": 8, "n_embd": 16, "n_head": 2}',
            "16 tokens are more than the 8 positions",
        ),
    ],
)
def test_models_that_cannot_be_had(files, tmp_path, content, words):
    path = tmp_path / "m.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SteeringError, match=words):
        task(files).build(ModelSpec(str(path)))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.unit=word", "unit: expected token or sequence"),
        ("task.length=0", "length: expected at least 1"),
        ("task.data.source=web", "source: expected stdlib or files"),
        ("task.data.source=files", "paths: domain -> file, needed for source 'files'"),
        ("task.data.corrupt={nowhere: 0.5}", "corrupt: no domain 'nowhere'; there are asyncio"),
        ("task.data.corrupt={xml: 1.5}", "corrupt: expected a number"),
        ("task.data.mix={xml: 0}", "mix: all weights are zero"),
        ("task.data.validation_blocks=0", "validation_blocks: expected at least 1"),
    ],
)
def test_bad_options(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(ROOT / "configs/language/stdlib.yaml", [override])


def test_another_tokenizer_for_a_live_reference_is_refused(files, tiny):
    found = task(files)
    model = found.build(ModelSpec(tiny))
    other = type(model)(model.module, None, "other tokens")
    with pytest.raises(SteeringError, match="has another tokenizer"):
        found.train_data(model, other, 0)


# ---- runs
# -------------------------------------------------------------------------------------------------------------


def test_the_example_config_compares_every_valid_method(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = "configs/language/stdlib.yaml"
    assert main(["compare", path, "smoke=true", f"output={tmp_path}", "train.eval_every=0"]) == 0
    rows = json.loads((tmp_path / "stdlib-smoke/compare.json").read_text())
    assert [row["method"] for row in rows] == ["reference", *load_config(path).compare.methods]
    chosen = {section["name"] for section in load_config(path).compare.methods.values()}
    assert chosen == {"erm", "dro", "drrho", "rho1", "group_dro", "doremi", "distillation"}
    mix = next(row for row in rows if row["method"] == "doremi")["summary"]["data_mix"]
    assert [*mix] == ["email", "xml"]
    assert sum(mix.values()) == pytest.approx(1)
    text = (tmp_path / "stdlib-smoke/compare.md").read_text()
    assert "Percent, but for average, email, xml" in text
    assert "| method | average ↓ | email ↓ | xml ↓ |" in text
    (stored,) = (tmp_path / "stdlib-smoke/outputs").glob("*/loss.npy")
    losses = np.load(stored)
    assert losses.shape[1:] == (32,)  # one float per token
    again = [f"task.data.mix={json.dumps(mix)}".replace('"', ""), "method=erm", "name=large"]
    assert (
        main(["train", path, "smoke=true", f"output={tmp_path}", *again]) == 0
    )  # DoReMi's mix, as it stands


def test_sequences_train_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = [
        "train",
        "configs/language/stdlib.yaml",
        "smoke=true",
        f"output={tmp_path}",
        "task.unit=sequence",
    ]
    for method in ("drrho", "rho_loss"):
        assert main([*words, f"method={method}", f"name={method}"]) == 0
    assert main([*words, "method=rho1"]) == 2
    assert "rho1 works on losses of a token, not of a sequence" in capsys.readouterr().err
