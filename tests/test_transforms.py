"""Recipes of training data: duplicates, filters, copies and mixtures, of images and of texts."""

import logging
from collections import Counter

import numpy as np
import pytest
import torch

from steering.config import load_config
from steering.errors import SteeringError
from steering.runs.ask import training
from steering.runs.sources import sources_of
from steering.task import ModelSpec
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.recipe import ImagesFilter
from steering_tasks.language.options import LanguageData
from steering_tasks.language.recipe import TextsFilter, cooked
from steering_tasks.numbers import read_scores
from steering_tasks.transforms import Duplicate, best, mixed_rows

TEXTS = {"a": ["One two.", "one  TWO", "three", "three"], "b": ["three", "four " * 50, "five"]}


def texts(dedup="none", given=None, repeat=None, seed=0):
    return cooked(TEXTS, dedup, given or TextsFilter(), repeat or Duplicate(), seed)


def images(tmp_path, **data):
    """Twelve training images of three classes, of which 3 is 0 again and 4 is 0 but brighter."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 200, (12, 9, 9, 3)).astype(np.uint8)
    image[3], image[4] = image[0], image[0] + 3
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", image=image, label=np.arange(12) % 3)
    paths = {
        "path": str(tmp_path / "train.npz"),
        "test_path": str(tmp_path / "test.npz"),
        "source": "arrays",
    }
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**paths, **data)))


def test_texts_without_duplicates(caplog):
    caplog.set_level(logging.INFO)
    assert texts() == TEXTS
    assert texts("exact") == {"a": TEXTS["a"][:3], "b": TEXTS["b"][1:]}
    assert texts("near") == {"a": ["One two.", "three"], "b": TEXTS["b"][1:]}
    assert "documents in the training data; skipped: 3 duplicates" in caplog.text


def test_no_copy_of_a_reserved_example_is_trained_on(tmp_path):
    away = {"a": ["ONE two"], "b": ["five"]}
    kept = cooked(TEXTS, "near", TextsFilter(), Duplicate(), 0, away)
    assert kept["a"] == ["three"]
    assert "five" not in kept["b"]
    assert cooked(TEXTS, "none", TextsFilter(), Duplicate(), 0, away) == TEXTS
    # Of the three that look alike (0, 3, 4) the draw reserves some and not all.
    split = images(tmp_path, reserved=0.4)
    alike = {0, 3, 4}
    assert 0 < len(alike & {*split.reserved.numbers.tolist()}) < 3
    assert alike & {*split.part.numbers.tolist()}
    for blur in (0.0, 0.5):  # what is reserved is not blurred, but its copies are
        found = images(tmp_path, reserved=0.4, dedup="near", blur=blur).part
        assert {*found.numbers.tolist()} == {*split.part.numbers.tolist()} - alike


def test_texts_by_length_by_scores_and_by_a_function(tmp_path):
    assert texts(given=TextsFilter(shortest=5, longest=8))["b"] == ["three"]
    scores = tmp_path / "scores.txt"
    scores.write_text("9\n8\n-1.5\n0\n7e0\n6\n1\n")
    kept = texts(given=TextsFilter(scores=str(scores), share=0.55))
    assert kept == {"a": TEXTS["a"][:2], "b": TEXTS["b"][:2]}
    low = texts(given=TextsFilter(scores=str(scores), share=0.4, lowest=True))
    assert low == {"a": ["three", "three"], "b": ["five"]}
    file = tmp_path / "mine.py"
    file.write_text("def wanted(text, domain):\n    return domain == 'b' or 'o' in text.lower()\n")
    assert texts(given=TextsFilter(function=f"{file}:wanted"))["a"] == TEXTS["a"][:2]
    # A change of the function may be a change of the data, and is looked for.
    assert str(file) in sources_of({"function": f"{file}:wanted"})
    with pytest.raises(SteeringError, match="leaves no document of a"):
        texts(given=TextsFilter(shortest=20))
    with pytest.raises(SteeringError, match="has no function 'other'"):
        texts(given=TextsFilter(function=f"{file}:other"))
    scores.write_text("1\n2\n")
    with pytest.raises(SteeringError, match="has 2 numbers for 7 documents"):
        texts(given=TextsFilter(scores=str(scores)))


def test_copies_of_texts_depend_on_the_seed_alone():
    once = texts(repeat=Duplicate(0.5, 3))
    assert once == texts(repeat=Duplicate(0.5, 3))
    assert once != texts(repeat=Duplicate(0.5, 3), seed=1)
    for domain, found in once.items():
        copies = Counter(found)
        copies.subtract(TEXTS[domain])
        assert all(count % 2 == 0 for count in copies.values())
    assert texts(repeat=Duplicate(1.0, 2))["b"] == 2 * TEXTS["b"]


def test_images_without_duplicates_and_stable_numbers(tmp_path):
    assert images(tmp_path, dedup="exact").part.numbers.tolist() == [0, 1, 2, *range(4, 12)]
    found = images(tmp_path, dedup="near", duplicate=Duplicate(0.5, 2))
    numbers = found.part.numbers
    assert numbers[:10].tolist() == [0, 1, 2, *range(5, 12)]
    assert 10 < len(numbers) < 20
    model = found.build(ModelSpec("linear"))
    data = found.train_data(model, None, 0)
    assert len(data) == len(numbers)
    rows = np.arange(len(data))
    batch, again = data.batch(rows, 0), data.batch(rows, 3)
    assert batch["index"].tolist() == rows.tolist()  # a copy is an example of its own
    assert torch.equal(batch["image"], again["image"])
    original = numbers.tolist().index(numbers[-1])
    assert torch.equal(batch["image"][original], batch["image"][-1])
    assert data.fingerprint() != images(tmp_path).train_data(model, None, 0).fingerprint()


def test_filters_of_images(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def dark(image, label):\n    return label > 0 and image.mean() < 99\n")
    plain = images(tmp_path)
    expected = [
        number for number in range(12) if number % 3 > 0 and plain.train.image(number).mean() < 99
    ]
    assert 0 < len(expected) < 8
    found = images(tmp_path, filter=ImagesFilter(function=f"{file}:dark"))
    assert found.part.numbers.tolist() == expected
    np.savez(tmp_path / "s.npz", quality=np.arange(12.0))
    given = ImagesFilter(scores=f"{tmp_path}/s.npz:quality", share=0.25)
    assert images(tmp_path, filter=given).part.numbers.tolist() == [9, 10, 11]
    with pytest.raises(SteeringError, match="none of 12 images is left"):
        images(tmp_path, filter=ImagesFilter(side=10)).part  # noqa: B018


def test_mixtures_of_images_are_by_class_or_by_group(tmp_path):
    found = images(tmp_path, mix={0: 2, 2: 1})
    assert np.bincount(found.part.labels, minlength=3).tolist() == [8, 0, 4]
    groups = tmp_path / "groups.txt"
    groups.write_text("0\n1\n" * 6)
    given = {"groups": str(groups), "test_groups": str(groups)}
    found = images(tmp_path, mix={0: 1, 1: 3}, **given)
    assert np.bincount(found.part.groups).tolist() == [3, 9]
    assert np.array_equal(found.part.groups, found.part.numbers % 2)
    with pytest.raises(SteeringError, match="no number 3; expected below 3: 0, 1, 2"):
        images(tmp_path, mix={3: 1.0}).part  # noqa: B018


def test_blur_keeps_the_mean_and_loses_the_detail(tmp_path):
    sharp, soft = images(tmp_path), images(tmp_path, blur=2.0)
    one, other = sharp.part.source.image(5).astype(float), soft.part.source.image(5).astype(float)
    assert other.std() < 0.5 * one.std()
    assert abs(other.mean() - one.mean()) < 0.1 * one.mean()
    assert soft.test_part.source.image(5).std() == sharp.test_part.source.image(5).std()


def test_the_share_of_the_best_scores():
    scores = np.array([3.0, 1.0, 2.0, 1.0])
    assert best(scores, 0.5, False).tolist() == [True, False, True, False]
    assert best(scores, 0.25, True).tolist() == [False, True, False, False]  # the earlier of equals
    assert best(scores, 0.001, False).sum() == 1
    assert best(scores, 1.0, True).all()
    for share in (0.3, 0.7):  # no monotone map of the scores changes the choice
        assert np.array_equal(best(scores, share, True), best(np.exp(scores), share, True))


def test_a_mixture_counts_by_largest_remainders():
    kind = np.array([0] * 5 + [1] * 5)
    rows = mixed_rows(kind, np.array([1.0, 2.0]), 0, ["x", "y"])
    assert np.bincount(kind[rows]).tolist() == [3, 7]
    assert len(set(rows[:3])) == 3
    assert Counter(rows[3:].tolist()).most_common()[-1][1] == 1


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (ClassificationData, {"dedup": "all"}, "dedup: expected one of none, exact, near"),
        (LanguageData, {"dedup": "all"}, "dedup: expected one of none, exact, near"),
        (ClassificationData, {"blur": -1.0}, "blur: expected"),
        (ClassificationData, {"mix": {0: -1.0}}, "mix: expected numbers >= 0"),
        (Duplicate, {"share": 2}, "share: expected"),
        (Duplicate, {"times": 0}, "times: expected at least 1"),
        (TextsFilter, {"shortest": 9, "longest": 3}, "shortest, longest"),
        (TextsFilter, {"share": 0.0}, "share: expected"),
        (ImagesFilter, {"side": -1}, "side: expected"),
        (ImagesFilter, {"function": "mine"}, "function: expected 'file.py:name'"),
    ],
)
def test_recipes_that_cannot_be(cls, options, message):
    with pytest.raises(SteeringError, match=message):
        cls(**options)


@pytest.mark.parametrize("content", ["1\nnan\n", "1\n\n2\n", "1\nx\n", ""])
def test_scores_that_are_no_numbers(tmp_path, content):
    (tmp_path / "s.txt").write_text(content)
    with pytest.raises(SteeringError, match=r"^here: .*(finite|line 2|empty)"):
        read_scores(str(tmp_path / "s.txt"), "here")


def test_recipes_are_overrides_of_a_config_and_others_keep_their_key():
    def key(*words):
        return training(load_config("configs/language/recipes.yaml", words)).key

    plain = key()
    assert key("task.data.dedup=none", "task.data.filter.shortest=0") == plain
    changed = {
        key(f"task.data.{one}")
        for one in ("dedup=near", "filter.shortest=9", "duplicate.share=0.1", "filter.longest=99")
    }
    assert len(changed | {plain}) == 5
