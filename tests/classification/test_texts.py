"""Texts as rows of bytes: their sources, their model, and what is refused."""

import json

import numpy as np
import pytest
import torch

from steering.config import load_config
from steering.errors import SteeringError
from steering.task import ModelSpec
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.models import build_classifier
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.text_models import Ngrams
from steering_tasks.classification.texts import library, text_of, texts

KINDS = [["json"], ["html"]]


def task(**data):
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**data)))


def words(source):
    return [text_of(source.image(number)) for number in range(len(source))]


@pytest.fixture
def places(tmp_path):
    """Two classes of two files each, and one of each for the test part."""
    for name, letter in (("poems", "p"), ("bills", "b")):
        (tmp_path / name / "test").mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / name / f"{number}.txt").write_text(letter * 10 * number)
        (tmp_path / name / "test/1.txt").write_text(letter * 3 + "é")
    return str(tmp_path / "{class}/*.txt"), str(tmp_path / "{class}/test/*.txt")


def test_files_whose_place_says_the_class(places):
    train, test = texts(*places, {"length": 8})
    assert train.classes == test.classes == ["bills", "poems"]
    assert words(train)[:4] == ["b" * 8, "bb", "b" * 8, "b" * 8]  # of 10 and of 20 bytes
    assert words(train)[4] == "bbbb"
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert words(test) == ["bbbé", "pppé"]
    assert train.image(0).shape == (1, 8, 1)
    whole, _ = texts(*places, {"length": 8, "pieces": False})
    assert words(whole) == ["b" * 8, "b" * 8, "p" * 8, "p" * 8]
    short, _ = texts(*places, {"length": 9})  # the last byte of ten is too little for a text
    assert words(short) == ["b" * 9, "b" * 9, "b" * 9, "p" * 9, "p" * 9, "p" * 9]
    assert train.fingerprint() != short.fingerprint()


def test_a_character_that_is_cut_in_half_is_not_shown(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("éé" + name)
    path = str(tmp_path / "{class}.txt")
    train, _ = texts(path, path, {"length": 3})
    assert words(train) == ["é", "a", "é", "b"]


def test_a_table_of_texts(tmp_path):
    rows = [
        ("good film", "pos", "x"),
        ("bad, film", "neg", "y"),
        ("", "neg", "y"),
        ("ok", "pos", "y"),
    ]
    (tmp_path / "a.csv").write_text(
        "text,label,who\n" + "".join(f'"{text}",{label},{who}\n' for text, label, who in rows)
    )
    (tmp_path / "a.tsv").write_text(
        "text\tlabel\twho\n" + "".join("\t".join(row) + "\n" for row in rows)
    )
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": label, "who": w}) + "\n" for t, label, w in rows)
    )
    for name in ("a.csv", "a.tsv", "a.jsonl"):
        path = str(tmp_path / name)
        train, test = texts(path, path, {"length": 16, "group": "who"})
        assert words(train) == ["good film", "bad, film", "ok"]
        assert train.classes == ["neg", "pos"]
        assert train.labels.tolist() == test.labels.tolist() == [1, 0, 1]
        assert train.groups.tolist() == [0, 1, 1]
        assert train.group_names == ("x", "y")
    (tmp_path / "b.csv").write_text("text,label\nso so,middling\n")
    with pytest.raises(SteeringError, match=r"has the class middling, which .*a.csv has not"):
        texts(str(tmp_path / "a.csv"), str(tmp_path / "b.csv"), {})
    for options, message in (
        ({"label": "stars"}, "row 1 of .*a.csv has no stars; it has text, label, who"),
        ({"spurious": "who"}, "who has the value x, which is no label"),
    ):
        with pytest.raises(SteeringError, match=message):
            texts(str(tmp_path / "a.csv"), str(tmp_path / "a.csv"), options)


def test_the_mark_disagrees_with_the_kind_as_often_as_it_is_told_to():
    options = {"modules": ["json", "html"], "kinds": KINDS, "minority": 0.2, "length": 64}
    train, test = library(options)
    assert train.classes == ["json", "html"]
    assert abs(train.groups.mean() - 0.2) < 0.04
    assert abs(test.groups.mean() - 0.5) < 0.1
    plain, _ = library({**options, "kinds": [], "length": 53})
    for number in range(0, len(train), 29):
        mark = b"# <<<<<<<<\n" if train.labels[number] == train.groups[number] else b"# >>>>>>>>\n"
        expected = mark.decode() + text_of(plain.image(number))
        assert text_of(train.image(number)) == expected
    same, _ = library({**options, "minority": 0.9})
    assert [text[11:] for text in words(same)] == [text[11:] for text in words(train)]
    assert same.fingerprint() != train.fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minority": 2}, "minority: expected a number in"),
        ({"test_minority": "half"}, "test_minority: expected a number in .* got 'half'"),
        ({"length": 0}, "length: expected a number of bytes, got 0"),
        ({"length": "long"}, "length: expected a number of bytes, got 'long'"),
        ({"modules": "json"}, "modules: expected a list of packages, got 'json'"),
        ({"kinds": [["json"]]}, "kinds, marks: expected two of each"),
        ({"kinds": KINDS, "length": 11}, "length: expected more bytes than the marks have, 11"),
        ({"kinds": KINDS, "group": "who"}, "both make groups"),
        ({"kinds": [["json"], ["xml"]]}, "options.kinds.the second: there is no class xml"),
        ({"kinds": [["json"], ["json", "html"]]}, "json is in the first and in the second"),
        ({"lenght": 3}, "unexpected keyword argument 'lenght'"),
        ({"modules": ["nonesuch"]}, "no package 'nonesuch'"),
    ],
)
def test_libraries_that_cannot_be(options, message):
    with pytest.raises(SteeringError, match=message):
        library({"modules": ["json", "html"], **options})


def test_files_that_cannot_be(places, tmp_path):
    path, test_path = places
    (tmp_path / "poems/test/1.txt").unlink()
    with pytest.raises(SteeringError, match="have other classes: poems"):
        texts(path, test_path, {})
    for one, other, message in (
        (path, str(tmp_path), "in path and test_path, or in neither"),
        (str(tmp_path / "{class}/none"), test_path, "path: .*none: no such file"),
        (str(tmp_path / "a.txt"), str(tmp_path / "a.txt"), "expected .csv, .tsv or .jsonl"),
        (path + "{class}", path, "expected {class} once"),
    ):
        with pytest.raises(SteeringError, match=message):
            texts(one, other, {})
    with pytest.raises(SteeringError, match="plain files have none"):
        texts(path, path, {"group": "who"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"blur": 1.0}, "blur: is for images, and source 'stdlib' has texts"),
        ({"augment": "crop"}, "augment: is for images"),
        ({"dedup": "near"}, "dedup: is for images, .*expected none or exact"),
        ({"path": "x"}, "path: source 'stdlib' does not read it"),
    ],
)
def test_what_is_done_to_pictures_alone(data, message):
    with pytest.raises(SteeringError, match=message):
        ClassificationData(source="stdlib", **data)


def test_ngrams_against_a_loop():
    """The mean over every run of one to three bytes of the text, and of nothing behind it."""
    torch.manual_seed(0)
    model = Ngrams(2, n=3, width=5, buckets=97)
    text = b"abcab"
    row = torch.zeros(2, 1, 1, 9)
    row[0, 0, 0, :5] = torch.tensor([float(byte) + 1e-5 for byte in text])
    row[1, 0, 0, :9] = torch.arange(1.0, 10.0)
    numbers = model.numbers(row)
    assert numbers.shape == (2, 9 + 8 + 7)
    used = numbers[0][numbers[0] > 0].tolist()
    seen = {}
    grams = [text[i : i + k] for k in (1, 2, 3) for i in range(len(text) - k + 1)]
    assert len(used) == len(grams)
    for gram, number in zip(grams, used, strict=True):
        assert seen.setdefault(gram, number) == number
    assert len({*seen.values()}) == len(seen)  # by luck of 97 buckets, as of most draws
    assert 1 <= min(used) <= max(used) <= 97
    expected = model.embed.weight[torch.tensor(used)].mean(0)
    torch.testing.assert_close(model.embed(numbers)[0], expected)
    longer = torch.cat([row[:1], torch.zeros(1, 1, 1, 20)], -1)
    torch.testing.assert_close(model(longer), model(row[:1]))
    empty = model(torch.zeros(1, 1, 1, 9))
    assert torch.isfinite(empty).all()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cnn", {}, "texts want the model ngrams, got 'cnn'"),
        ("torchvision:resnet18", {}, "texts want the model ngrams"),
        ("ngrams", {"size": 3}, "ngrams takes n, width, buckets, got size"),
        ("ngrams", {"n": 0}, "target.options.n: expected at least 1, got 0"),
    ],
)
def test_models_that_are_not_for_texts(name, options, message):
    with pytest.raises(SteeringError, match=message):
        build_classifier(ModelSpec(name, options=options), (1, 64, 1), 2, "text")
    with pytest.raises(SteeringError, match="no model 'ngrams'"):
        build_classifier(ModelSpec("ngrams"), (8, 8, 1), 2)


def test_pairs_of_bytes_tell_what_single_ones_cannot(tmp_path):
    """Both classes have the same letters, in another order."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        label = number % 2
        words = [("ab", "ba")[label] * 2 for _ in range(3)] + ["cd", "xyz", "q"]
        rows.append(f"{label},{' '.join(rng.permutation(words))}\n")
    for name, some in (("train", rows[:80]), ("test", rows[80:])):
        (tmp_path / f"{name}.csv").write_text("label,text\n" + "".join(some))
    train, test = (str(tmp_path / f"{name}.csv") for name in ("train", "test"))
    found = task(source="texts", path=train, test_path=test, options={"length": 64}, dedup="exact")
    shown = found.exhibits([1])[0]
    assert shown.picture is None
    assert shown.text.startswith("1: ")
    assert "baba" in shown.text
    accuracy = {}
    for n in (1, 2):
        torch.manual_seed(0)
        model = found.network(ModelSpec("ngrams", options={"n": n, "buckets": 512}))
        optimizer = torch.optim.Adam(model.module.parameters(), lr=1e-2)
        data = found.train_data(model, None, 0)
        batch = data.batch(np.arange(len(data)), 0)
        for _ in range(40):
            optimizer.zero_grad()
            losses = torch.nn.functional.cross_entropy(model.module(batch["image"]), batch["label"])
            losses.backward()
            optimizer.step()
        held_out = found.held_out_data(model)["test"]
        batch = held_out.batch(np.arange(len(held_out)), 0)
        answers = model.module(batch["image"]).argmax(-1)
        accuracy[n] = (answers == batch["label"]).double().mean()
    assert accuracy[2] == 1.0
    assert accuracy[1] < 0.7


def test_the_texts_config_is_valid():
    config = load_config("configs/classification/texts.yaml")
    assert config.task.data.options["kinds"] == [*config.task.data.merge.values()]
