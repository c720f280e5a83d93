"""Data derived from a run: its answers as labels, the examples it is surest of; and what that does to
a run's key."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from steering.cli import main
from steering.config import ConfigError, load_config
from steering.derived import Derive, DeriveLabels, Keep
from steering.errors import SteeringError
from steering.runs.ask import model_outputs, training
from steering.runs.execute import execute
from steering.runs.store import Store
from steering.runs.workshop import Workshop
from steering.task import ModelSpec, find_task

CPU = torch.device("cpu")
DIGITS = "configs/classification/digits.yaml"
SMALL = ["method=erm", "reference=null", "target={name: linear}", "train.eval_every=0"]
STUDENT = ["task.data.part=[0.5, 1.0]", "task.data.label_noise=0", *SMALL]


def opened(*words, config=DIGITS):
    task = load_config(config, [*STUDENT, *words] if config == DIGITS else [*words]).task
    return find_task(task.name)(task)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a teacher trained for a moment on the other half."""
    output = tmp_path_factory.mktemp("runs")
    words = ["task.data.part=[0.0, 0.5]", "train.samples=640", "name=teacher", f"output={output}"]
    words += ["task.data.label_noise=0", "optimizer.lr=2e-2"]
    assert main(["train", DIGITS, *words, *SMALL]) == 0
    return output / "teacher" / "erm-seed0"


def naive(folder, task):
    """Probabilities of the model in a folder on a task's training data, in one pass."""
    weights = str(folder / "model.safetensors")
    model = task.build(ModelSpec("linear", checkpoint=weights))
    batch = task.plain_data(model).batch(np.arange(len(task.part.numbers)), 0)
    with torch.no_grad():
        return model.module.eval()(batch["image"]).double().softmax(-1).numpy()


def test_labels_and_subset_of_a_run(teacher):
    plain = opened()
    probability = naive(teacher, plain)
    told = opened(f"task.data.derive.labels_from={teacher}")
    assert np.array_equal(told.part.labels, probability.argmax(-1))
    assert np.array_equal(told.part.numbers, plain.part.numbers)
    assert np.array_equal(told.part.groups, told.part.labels)  # groups are the classes as labelled
    wrong = told.labels().wrong
    assert 0.05 < wrong.mean() < 0.8
    assert np.array_equal(wrong, probability.argmax(-1) != plain.part.labels)
    entropy = -(probability * np.log(probability)).sum(-1)
    both = opened(f"task.data.derive={{labels_from: {teacher}, keep: {{share: 0.3}}}}")
    kept = np.sort(np.argsort(entropy)[: round(0.3 * len(entropy))])
    assert np.array_equal(both.part.numbers, plain.part.numbers[kept])
    assert np.array_equal(both.part.labels, probability.argmax(-1)[kept])
    losses = -np.log(probability[np.arange(len(probability)), plain.part.labels])
    keep = f"{{run: {teacher}, score: loss, share: 0.1, highest: true}}"
    hard = opened(f"task.data.derive.keep={keep}")
    worst = np.sort(np.argsort(-losses)[: round(0.1 * len(losses))])
    assert np.array_equal(hard.part.numbers, plain.part.numbers[worst])
    assert np.array_equal(hard.part.labels, plain.part.labels[worst])
    model = hard.build(ModelSpec("linear"))
    assert hard.train_data(model, None, 0).batch(np.arange(3), 0)["index"].tolist() == [0, 1, 2]


def test_a_run_counts_by_its_parent_and_not_by_its_path(teacher, tmp_path):
    def key(*words):
        return training(load_config(DIGITS, [*STUDENT, *words])).key

    derived = "task.data.derive.labels_from"
    assert key() == key("task.data.derive={keep: {share: 1.0}}")
    first = key(f"{derived}={teacher}")
    shutil.copytree(teacher, tmp_path / "copy")
    assert key(f"{derived}={tmp_path}/copy") == first != key()
    assert main(["train", DIGITS, *SMALL, "seed=1", "train.samples=64", f"output={tmp_path}"]) == 0
    assert key(f"{derived}={tmp_path}/digits/erm-seed1") != first
    with pytest.raises(SteeringError, match=r"task.data.derive.labels_from: no finished run in"):
        key(f"{derived}={tmp_path}/nowhere")


def test_a_student_is_trained_from_the_command_line(teacher, tmp_path):
    words = [f"task.data.derive={{labels_from: {teacher}, keep: {{share: 0.5}}}}", *STUDENT]
    assert main(["train", DIGITS, *words, "train.samples=64", f"output={tmp_path}"]) == 0
    (record,) = Store(tmp_path / "digits").all()
    assert record.config()["task"]["data"]["derive"]["labels_from"] == str(teacher)
    assert str(teacher / "model.safetensors") in record.sources
    again = opened(words[0])
    data = again.plain_data(again.build(ModelSpec("linear")))
    assert record.found["task: data"] == data.fingerprint()
    assert len(list((teacher.parent / "outputs").glob("*/outputs.json"))) == 1


def test_stored_outputs_serve_as_the_run_when_they_are_of_these_data(teacher, tmp_path):
    config = load_config(DIGITS, [*STUDENT, f"output={tmp_path}"])
    config.target.checkpoint = str(teacher / "model.safetensors")
    store = Store(tmp_path / "outs")
    record = execute(model_outputs(config, "logits", label="logits"), Workshop(store, CPU))
    stored = f"task.data.derive={{labels_from: {record.folder}, keep: {{share: 0.4}}}}"
    other = f"task.data.derive={{labels_from: {teacher}, keep: {{share: 0.4}}}}"
    one, two = opened(stored).part, opened(other).part
    assert np.array_equal(one.numbers, two.numbers)
    assert np.array_equal(one.labels, two.labels)
    with pytest.raises(SteeringError, match="are of part 'train' of other data than these"):
        opened(stored, "task.data.part=[0.4, 1.0]").part  # noqa: B018
    losses = execute(model_outputs(config, "losses", label="losses"), Workshop(store, CPU))
    with pytest.raises(SteeringError, match="have no logits, only loss"):
        opened(f"task.data.derive.labels_from={losses.folder}").part  # noqa: B018


def test_blocks_of_text_that_a_run_finds_easy(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("".join(rng.choice([*"abc \n"], 900)))
    paths = {"paths": {"d": str(tmp_path / "train.txt")}}
    paths |= {"source": "files", "validation": {"d": str(tmp_path / "val.txt")}}
    config = str(tmp_path / "texts.yaml")
    Path(config).write_text(
        yaml.safe_dump(
            {
                "name": "texts",
                "output": str(tmp_path / "runs"),
                "task": {"name": "language", "length": 16, "data": paths},
                "target": {"name": "configs/language/models/tiny-gpt2-reference.json"},
                "method": "erm",
                "optimizer": {"lr": 0.01},
                "train": {"samples": 32, "batch_size": 8},
            }
        )
    )
    words: list[str] = []
    assert main(["train", config]) == 0
    folder = tmp_path / "runs/texts/erm-seed0"
    plain = opened(*words, config=config)
    kept = opened(
        *words,
        f"task.data.derive.keep={{run: {folder}, score: loss, share: 0.25}}",
        config=config,
    )
    spec = load_config(config, words).target
    spec.checkpoint = str(folder / "model.safetensors")
    model = plain.build(spec)
    blocks, few = plain.plain_data(model), kept.plain_data(model)
    with torch.no_grad():
        batch = blocks.batch(np.arange(len(blocks)), 0)
        loss = plain.risk.outputs(model.module.eval(), batch)["loss"].double()
    means = (loss.sum(1) / batch["mask"].sum(1)).numpy()
    rows = np.sort(np.argsort(means, kind="stable")[: round(0.25 * len(means))])
    assert abs(len(few) - 0.25 * len(blocks)) <= 1
    assert np.array_equal(few.tokens, blocks.tokens[rows])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Keep(score="margin"), "score: expected one of entropy, loss"),
        (lambda: Keep(share=0), "share: expected"),
        (lambda: Derive(Keep(share=0.5)), "keep.run: expected the folder"),
        (lambda: DeriveLabels(Keep(share=0.5)), "keep.run: expected the folder"),
    ],
)
def test_sections_that_cannot_be(make, message):
    with pytest.raises(SteeringError, match=message):
        make()
    with pytest.raises(ConfigError, match=r"unknown key 'task\.data\.derive\.labels_from'"):
        load_config("configs/language/stdlib.yaml", ["task.data.derive.labels_from=x"])
