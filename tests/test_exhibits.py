"""Examples to look at: what every task shows, how they are kept, what damage says."""

import io

import numpy as np
import pytest
from PIL import Image

from steering.errors import SteeringError
from steering.exhibits import (
    TEXT,
    THUMBNAIL,
    Exhibit,
    Labels,
    read_exhibits,
    read_labels,
    thumbnail,
    write_exhibits,
)
from steering.runs.record import RunRecord
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.options import ClassificationData
from steering_tasks.clip import ClipOptions, ClipTask
from steering_tasks.clip.task import ClipData
from steering_tasks.language import LanguageOptions, LanguageTask
from steering_tasks.language.task import LanguageData


def picture(exhibit):
    return Image.open(io.BytesIO(exhibit.picture))


def test_they_are_read_as_they_were_written(tmp_path):
    shown = [Exhibit("a" * 1000, thumbnail(Image.new("L", (3, 2)))), Exhibit("b")]
    labels = Labels(("x", "y"), np.array([0, 1, 1]), np.array([False, True, False]))
    write_exhibits(tmp_path, [7, 2], shown, labels)
    record = RunRecord("k", "examples", "one", folder=tmp_path)
    found = read_exhibits(record)
    assert found == {7: Exhibit("a" * TEXT, shown[0].picture), 2: shown[1]}
    again = read_labels(record)
    assert again.classes == ("x", "y")
    assert again.label.tolist() == [0, 1, 1]
    assert again.wrong.tolist() == [False, True, False]
    write_exhibits(tmp_path, [], [], Labels())
    assert read_exhibits(record) == {}
    assert (read_labels(record).classes, read_labels(record).wrong) == ((), None)
    (tmp_path / "examples.json").write_text('[{"number": 1}]')
    (tmp_path / "labels.npz").unlink()
    for read in (read_exhibits, read_labels):
        with pytest.raises(SteeringError, match=r"its examples cannot be read .* delete it"):
            read(record)


def test_a_name_in_the_file_leads_nowhere_else(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"no")
    folder = tmp_path / "run"
    write_exhibits(folder, [], [], Labels())
    (folder / "examples.json").write_text('[{"number": 1, "text": "", "picture": "../secret.png"}]')
    with pytest.raises(SteeringError, match="cannot be read"):
        read_exhibits(RunRecord("k", "examples", "one", folder=folder))


def test_thumbnails_fit_and_small_pictures_stay():
    large = picture(Exhibit("", thumbnail(Image.new("RGB", (1000, 500)))))
    assert large.size == (THUMBNAIL, THUMBNAIL // 2)
    assert picture(Exhibit("", thumbnail(Image.new("RGB", (8, 9))))).size == (8, 9)


def test_digits_show_their_image_and_both_labels():
    noisy = ClassificationTask(
        ClassificationOptions(data=ClassificationData(label_noise=0.5, part=(0.2, 0.6)))
    )
    clean = ClassificationTask(ClassificationOptions(data=ClassificationData(part=(0.2, 0.6))))
    labels, own = noisy.labels(), clean.labels()
    assert own.wrong is None  # nobody has said that any is
    assert (labels.wrong == (labels.label != own.label)).all()
    assert 0.4 < labels.wrong.mean() < 0.6
    numbers = [int(np.flatnonzero(labels.wrong)[0]), int(np.flatnonzero(~labels.wrong)[0])]
    wrong, right = noisy.exhibits(numbers)
    assert wrong.text == f"{labels.label[numbers[0]]} (source: {own.label[numbers[0]]})"
    assert right.text == str(own.label[numbers[1]])
    place = noisy.part.numbers[numbers[0]]
    assert (np.asarray(picture(wrong)) == noisy.train.image(place)[..., 0]).all()


def test_glyphs_show_the_name_that_was_brought_in():
    data = ClipData(fraction=0.002, caption_noise=0.5)
    task = ClipTask(ClipOptions(data=data))
    wrong = task.labels().wrong
    assert wrong.sum() == round(0.5 * len(wrong))  # every one of the ring shows another name
    for number in range(10):
        (one,) = task.exhibits([number])
        assert wrong[number] == ("(own: " in one.text)
        assert picture(one).size == (32, 32)
    assert ClipTask(ClipOptions(data=ClipData(fraction=0.002))).labels().wrong is None


def test_a_table_of_pairs(tmp_path):
    lines = ["image,caption"]
    for number in range(6):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,caption {number}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    data = ClipData(source="table", path=str(tmp_path / "table.csv"), caption_noise=0.5)
    task = ClipTask(ClipOptions(data=data))
    wrong = task.labels().wrong
    assert wrong.sum() == 3
    (tmp_path / "5.png").write_bytes(b"damaged")
    shown = task.exhibits(range(6))
    for number, one in enumerate(shown[:5]):
        assert one.text.startswith("caption ")
        assert wrong[number] == (f"(own: caption {number})" in one.text)
        assert picture(one).getpixel((0, 0))[0] == number
    assert shown[5].picture is None
    assert "5.png" in shown[5].text


def test_language_shows_its_text():
    task = LanguageTask(LanguageOptions(data=LanguageData(modules=["json"]), length=32))
    (one,) = task.exhibits([0])
    assert one.picture is None
    assert one.text.startswith("json: ")
    assert len(one.text) > 20
