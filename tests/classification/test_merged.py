"""Classes merged into fewer, and groups of classes."""

import numpy as np
import pytest
import torch

from steering.errors import SteeringError
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.merged import Merged
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.sources import ArraySource

MERGE = {"machines": [0, 3], "animals": ["cat", "dog"]}


def task(**data):
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**data)))


def source():
    """Four classes, three images of each: the first pixel is the class."""
    labels = np.repeat(np.arange(4), 3)
    images = np.broadcast_to(labels[:, None, None], (12, 4, 4)).astype(np.uint8)
    return ArraySource(images, labels, ["car", "cat", "dog", "ship"])


def test_classes_become_others_by_name_or_number_and_groups_are_of_the_old_ones():
    groups = {"common": ["car", "cat", 2], "rare": ["ship"]}
    found = Merged(source(), MERGE, groups)
    assert found.classes == ["machines", "animals"]
    assert found.place.tolist() == [0, 1, 1, 0]
    assert found.labels.tolist() == [0] * 3 + [1] * 6 + [0] * 3
    assert found.groups.tolist() == [0] * 9 + [1] * 3
    assert found.group_names == ("common", "rare")
    assert [found.image(number)[0, 0, 0] for number in (0, 4, 11)] == [0, 1, 3]
    assert Merged(source(), {}, groups).labels.tolist() == source().labels.tolist()
    other = Merged(source(), {"machines": [0, 1], "animals": [2, 3]}, groups)
    rare = Merged(source(), MERGE, {"common": [0, 1], "rare": [2, 3]})
    prints = {one.fingerprint() for one in (found, other, rare, source())}
    assert len(prints) == 4


def test_a_name_goes_before_a_number():
    labels = np.array([0, 1, 0])
    one = ArraySource(np.zeros((3, 4, 4), np.uint8), labels, ["1", "0"])
    found = Merged(one, {"a": [0], "b": ["1"]}, {})
    assert found.place.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ({"a": [0, 1], "b": [1, 2, 3]}, "merge: class cat is in a and in b"),
        ({"a": [0], "b": [1]}, "merge: class dog, ship is in none of a, b"),
        ({"a": [0, 1, 2], "b": [4]}, "merge.b: there is no class 4; there are 4: car, cat, dog"),
        ({"a": [0, 1, 2], "b": ["bird"]}, "merge.b: there is no class bird"),
        ({"a": [0, 1, 2], "b": [-1]}, "merge.b: there is no class -1"),
    ],
)
def test_classes_that_cannot_be_merged(merge, message):
    with pytest.raises(SteeringError, match=message):
        Merged(source(), merge, {})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"merge": {"a": [0]}}, "merge: expected at least two names, got one"),
        ({"merge": {"a": [0], "b": []}}, "merge.b: expected names or numbers of classes, got none"),
        ({"merge": {"a": [0.5], "b": [1]}}, "merge.a: expected names or numbers of .*got 0.5"),
        ({"merge": {"a": [True], "b": [1]}}, "merge.a: expected names or numbers of .*got True"),
        ({"group_classes": {"a": [0], "b": [1]}}, "group_classes: wants groups: source, got None"),
        ({"groups": "source"}, "knows of none; give a file, or set group_classes"),
    ],
)
def test_sections_that_cannot_be(data, message):
    with pytest.raises(SteeringError, match=message):
        ClassificationData(**data)


def test_a_task_with_merged_classes_and_groups(tmp_path):
    """A file of labels has numbers of the old classes; noise is among the new ones."""
    low, high = [*range(5)], [*range(5, 10)]
    groups = {"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 9]}
    merge = {"low": low, "high": high}
    plain, found = task(), task(merge=merge, groups="source", group_classes=groups)
    old = plain.part.labels
    assert found.classes == ["low", "high"]
    assert np.array_equal(found.part.labels, (old >= 5).astype(int))
    assert np.array_equal(found.part.groups, old % 2)
    assert np.array_equal(found.test_part.labels, (plain.test_part.labels >= 5).astype(int))
    np.savetxt(tmp_path / "labels.txt", (old + 1) % 10, fmt="%d")
    named = task(merge=merge, labels=str(tmp_path / "labels.txt"))
    assert np.array_equal(named.part.labels, ((old + 1) % 10 >= 5).astype(int))
    wrong = named.labels().wrong
    assert np.array_equal(wrong, np.isin(old, [4, 9]))  # the others stay on their side
    (tmp_path / "labels.txt").write_text("10\n" * len(old))
    with pytest.raises(SteeringError, match=r"labels: expected numbers in \[0, 10\)"):
        task(merge=merge, labels=str(tmp_path / "labels.txt"))
    noisy = task(merge=merge, label_noise=1.0)
    assert np.array_equal(noisy.part.labels, 1 - (old >= 5))
    rare = task(merge=merge, groups="source", group_classes=groups, group_shares={1: 0.1})
    assert abs((rare.part.groups == 1).mean() - 0.1) < 0.01


def test_a_blur_keeps_the_groups_of_classes():
    groups = {"even": [0, 2, 4, 6, 8], "odd": [1, 3, 5, 7, 9]}
    found = task(groups="source", group_classes=groups, blur=1.0)
    assert found.part.source.group_names == ("even", "odd")
    assert torch.is_tensor(torch.from_numpy(found.part.groups))
