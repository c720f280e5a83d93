"""The study weak_to_strong at the size of a test, and its parts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from steering.analysis.weak_to_strong import disjoint_samples
from steering.cli import main
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.runs.store import Store
from steering.studies.weak_to_strong import WeakToStrong, WeakToStrongOptions
from steering.studies.weak_to_strong_cells import Part, _Fits
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.shares import in_shares
from steering_tasks.classification.spurious import coloured_digits

CONFIG = Path(__file__).parents[2] / "configs/classification/weak_to_strong.yaml"


def test_samples_are_disjoint_with_the_shares_that_were_asked_for():
    rng = np.random.default_rng(0)
    label, group = rng.integers(3, size=900), rng.integers(2, size=900)
    found = disjoint_samples(label, group, [60, 90], [0.1, 0.5], rng)
    assert [len(rows) for rows in found] == [60, 90]
    assert len(set(np.concatenate(found))) == 150
    assert [group[rows].mean() for rows in found] == [0.1, 0.5]
    for rows in found:
        for g in (0, 1):
            counts = np.bincount(label[rows][group[rows] == g], minlength=3)
            assert counts.max() - counts.min() <= 1
    odd, other = disjoint_samples(label, group, [25, 15], [0.5, 0.1], rng)
    assert (len(odd), len(other)) == (25, 15)  # halves of a point go to one of the groups
    with pytest.raises(SteeringError, match="too few points of group 1"):
        disjoint_samples(label, group, [600], [0.9], rng)


def points(n, seed):
    rng = np.random.default_rng(seed)
    label = rng.integers(2, size=n)
    x = torch.from_numpy(rng.normal(size=(n, 4)) + 2 * label[:, None])
    return Part(x[:, :2], x, label, rng.integers(2, size=n))


def test_everything_kept_by_cross_entropy_is_the_vanilla_student_to_the_bit():
    given = {"p": [0.5, 1.0], "q": [0.7], "decay": 1e-2}
    fit = _Fits(points(40, 0), points(80, 1), points(30, 2), given)
    vanilla = fit._fit(
        lambda logits, _: torch.nn.functional.cross_entropy(logits, fit.pseudo, reduction="none")
    )
    same = fit._enhanced(np.arange(80), 0.0, vanilla)
    assert torch.equal(same.weight, vanilla.weight)
    heads, chosen = fit.all(np.random.default_rng(0))
    assert {"vanilla", "enhanced", "ceiling", "confidence", "adaptive"} <= heads.keys()
    assert len(chosen["kept"]) == round(chosen["p"] * 80)
    best = max(score for p, q, score in chosen["grid"] if q > 0)
    assert [chosen["p"], chosen["q"], best] in chosen["grid"]


def test_the_colour_disagrees_with_the_label_as_often_as_it_is_told_to():
    train, test = coloured_digits({"minority": 0.2, "test_minority": 0.5})
    assert abs(train.groups.mean() - 0.2) < 0.03
    assert abs(test.groups.mean() - 0.5) < 0.05
    for number in range(50):
        red, green, blue = train.images[number].reshape(-1, 3).sum(0)
        assert blue == 0
        assert (green > red) == bool(train.labels[number] ^ train.groups[number])
    digit, _ = coloured_digits({"minority": 0.2, "label": "digit"})
    assert np.array_equal(digit.images, train.images)
    assert np.array_equal(digit.labels >= 5, train.labels == 1)
    grey, _ = coloured_digits({"cue": 0.0})
    assert np.array_equal(grey.images[..., 0], grey.images[..., 2])
    with pytest.raises(SteeringError, match="unexpected keyword argument 'cues'"):
        coloured_digits({"cues": 1})
    with pytest.raises(SteeringError, match="cue: expected a number in"):
        coloured_digits({"cue": 2})


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({1: 0.1}, {0: 90, 1: 10}),
        ({1: 0.5}, {0: 90, 1: 90}),
        ({0: 0.0}, {0: 0, 1: 110}),
        ({0: 0.25, 1: 0.75}, {0: 36, 1: 110}),
    ],
)
def test_shares_of_groups_keep_as_many_as_possible(shares, expected):
    groups = np.array([0] * 90 + [1] * 110)
    rows = in_shares(groups, shares, np.arange(200), seed=0)
    counts = np.bincount(groups[rows], minlength=2)
    assert all(abs(counts[g] - count) <= 1 for g, count in expected.items())
    assert np.array_equal(rows, np.unique(rows))
    again = in_shares(groups, shares, np.arange(200), seed=1)
    assert (shares == {0: 0.0}) or not np.array_equal(rows, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "source"}, "source 'digits' knows of none"),
        ({"group_shares": {0: 0.5}}, "there are no groups"),
        ({"groups": "class", "group_shares": {0: 0.7, 1: 0.7}}, "they sum to 1.4"),
        ({"groups": "class", "group_shares": {0: -1}}, "expected group number -> share"),
    ],
)
def test_groups_that_cannot_be(options, message):
    with pytest.raises(SteeringError, match=message):
        ClassificationData(**options)


def test_two_names_of_one_teacher_are_refused():
    config = load_config(CONFIG, ["smoke=true"])
    options = config.studies["weak_to_strong"]
    teacher = options["teachers"]["short-trained"]
    given = WeakToStrongOptions(**{**options, "teachers": {"a": teacher, "b": teacher}})
    with pytest.raises(
        ConfigError, match=r"cell-a-digits-.* and cell-b-digits-.* are the same run"
    ):
        WeakToStrong(given).wanted(config, [])


@pytest.mark.parametrize("name", ["texts", "animals", "emoji"])
def test_backbones_learn_the_classes_that_the_cells_merge(name):
    config = load_config(CONFIG.with_name(f"{name}.yaml"))
    data = config.task.data
    assert len(data.merge) == 2
    options = WeakToStrongOptions(**{**config.studies["weak_to_strong"], "seeds": 5})
    cells = WeakToStrong(options).wanted(config, [])
    assert len(cells) == 2 * 4 * 5
    for cell in (cells[0], cells[-1]):
        assert cell.config.task.data.merge == data.merge
        for features in cell.parents.values():
            assert features.config.task.data.merge == {}
            (backbone,) = features.parents.values()
            trained = backbone.config.task.data
            assert trained.merge == {}
            assert trained.part[1] == features.config.task.data.part[0]  # they share no example


def test_the_study_from_the_command_line_and_again_from_its_records(tmp_path):
    words = [
        "smoke=true",
        f"output={tmp_path}",
        "studies.weak_to_strong.labelled=40",
        "studies.weak_to_strong.unlabelled=60",
        "studies.weak_to_strong.validation=20",
        "studies.weak_to_strong.students.digits.train={task.data.part: [0.0, 0.25], train.samples: 64}",
    ]
    assert main(["study", "weak_to_strong", str(CONFIG), *words]) == 0
    folder = tmp_path / f"{load_config(CONFIG).name}-smoke"
    rows = json.loads((folder / "weak_to_strong.json").read_text())
    assert len(rows) == 4  # two shares, two draws
    assert all(0 < row["metrics"]["ceiling/balanced"] <= 1 for row in rows)
    text = (folder / "weak_to_strong.md").read_text()
    assert "what the theory predicts" in text
    assert (folder / "weak_to_strong.png").stat().st_size > 10_000
    cell = next(r for r in Store(folder).all() if r.kind == "call")
    scores = cell.scores()["vanilla/balanced"]
    assert cell.metrics["vanilla/balanced"] == pytest.approx(scores.mean())
    (folder / "weak_to_strong.md").unlink()
    assert main(["report", str(folder)]) == 0
    assert (folder / "weak_to_strong.md").read_text() == text
    assert (
        main(
            [
                "study",
                "weak_to_strong",
                str(CONFIG),
                *words[:2],
                "studies.weak_to_strong.teachers={}",
            ]
        )
        == 2
    )
