"""Images, labels and groups as people have them: damaged, hidden, 16 bits deep, sideways, in
splits, numbered with gaps."""

import json
import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_ranks import Threads

from steering import distributed, reading
from steering.cli import main
from steering.data import IndexedData
from steering.dro import worst_case
from steering.dro.online.groups import GroupWeights
from steering.errors import ConfigError, SteeringError
from steering.methods import build_method, find_method, registry
from steering.outputs import Fingerprint, build
from steering.task import ModelSpec
from steering_tasks.classification import ClassificationOptions, ClassificationTask, sources
from steering_tasks.classification.data import ImageData, ImageInputs, Labelled
from steering_tasks.classification.images import eight_bits, read_picture
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.sources import arrays, folders, read_numbers, torchvision_sets

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
AS_IT_IS = ImageInputs(None, 3, (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def _forget_what_was_said():
    reading.report_once.cache_clear()


def task(**data: object) -> ClassificationTask:
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**data)))


def colours(n: int, side: int = 8) -> list[Image.Image]:
    return [Image.new("RGB", (side, side), (20 * i, 255 - 20 * i, 90)) for i in range(n)]


@pytest.fixture
def parts(tmp_path):
    """Two folders of three images each of the classes a and b."""
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for i, image in enumerate(colours(3)):
                image.save(tmp_path / part / name / f"{i}.png")
    return {
        "source": "folder",
        "path": str(tmp_path / "train"),
        "test_path": str(tmp_path / "test"),
    }


def whole(source) -> Labelled:
    return Labelled(source, np.arange(len(source)), source.labels, None)


# ---- an evaluation never replaces
# -------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["not a picture", "cut short", "empty", "a folder's link"])
def test_an_unreadable_test_image_is_left_out_counted_and_told(parts, tmp_path, damage, caplog):
    bad = tmp_path / "test/a/1.png"
    content = {
        "not a picture": b"no picture",
        "cut short": bad.read_bytes()[:50],
        "empty": b"",
        "a folder's link": None,
    }
    bad.unlink()
    if content[damage] is None:
        bad.symlink_to(tmp_path / "gone.png")
    else:
        bad.write_bytes(content[damage])
    found = task(**parts)
    model = found.build(ModelSpec("linear"))
    with (
        torch.no_grad()
    ):  # says class a for every image: right for the 2 that are left of a, wrong for the 3 of b
        model.module.layers[1].weight.zero_()
        model.module.layers[1].bias.copy_(torch.tensor([5.0, 0.0]))
    evaluation = found.evaluate(model, CPU)
    metrics = evaluation.values()
    assert len(evaluation.scores["test/accuracy"].values) == 5
    assert metrics["test/accuracy"] == pytest.approx(2 / 5)
    assert metrics["test/unreadable"] == 1
    assert "5 images in the test part of task.data; skipped: 1 unreadable" in caplog.text
    assert {*evaluation.figures} == {"reliability", "confusion"}


def test_a_part_that_can_be_read_says_nothing_of_it(parts):
    found = task(**parts)
    assert "test/unreadable" not in found.evaluate(found.build(ModelSpec("linear")), CPU).values()


def test_a_test_part_of_which_nothing_can_be_read(parts, tmp_path):
    for path in (tmp_path / "test").rglob("*.png"):
        path.write_bytes(b"x")
    found = task(**parts)
    with pytest.raises(SteeringError, match="none of the 6 images to evaluate can be read"):
        found.evaluate(found.build(ModelSpec("linear")), CPU)


def test_a_batch_without_replacement_has_fewer_rows(parts, tmp_path):
    (tmp_path / "test/b/0.png").write_bytes(b"x")
    source = folders(parts["path"], parts["test_path"])[1]
    data = ImageData(whole(source), {"": AS_IT_IS}, 0, "none")
    batch = data.batch(np.array([5, 3, 0]), 0)
    assert batch["index"].tolist() == [5, 0]
    assert batch["label"].tolist() == [1, 0]
    assert batch["image"].shape == (2, 3, 8, 8)
    assert int(batch["skipped"]) == 1
    assert len(data.batch(np.array([3]), 0)["label"]) == 0


def test_the_result_file_counts_them(parts, tmp_path, capsys):
    (tmp_path / "test/a/0.png").write_bytes(b"x")
    (tmp_path / "train/a/0.png").write_bytes(b"x")
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: r\noutput: {tmp_path}/out\ndevice: cpu\ntask: {{name: classification, data: {json.dumps(parts)}}}\n"
        "target: linear\nmethod: erm\ntrain: {samples: 12, batch_size: 6, log_every: 1}\n"
    )
    assert main(["train", str(config)]) == 0
    result = json.loads((tmp_path / "out/r/erm-seed0/record.json").read_text())
    assert result["metrics"]["test/unreadable"] == 1
    assert result["cost"]["skipped"] == 2  # two epochs, the same image each time: training replaces
    assert "unreadable" in capsys.readouterr().out


def test_a_cache_marks_an_unreadable_example_and_gives_the_others_their_own_outputs(
    parts, tmp_path
):
    (tmp_path / "train/a/1.png").write_bytes(b"x")
    found = task(**parts)
    model = found.build(ModelSpec("linear"))
    data = found.plain_data(model)
    fingerprint = Fingerprint("w", "i", data.fingerprint())
    batches = [data.batch(np.arange(6), 0)]
    cache = build(
        tmp_path / "cache",
        fingerprint,
        "losses",
        found.risk,
        model.module,
        lambda at: iter(batches[at:]),
        6,
        CPU,
    )
    assert (~cache.valid).sum() == 1
    with pytest.raises(SteeringError, match="nothing of example 1, which could not be read"):
        cache.read(torch.tensor([1]))
    kept = np.array([0, 2, 3, 4, 5])
    alone = [
        found.risk.outputs(model.module.eval(), data.batch(kept[i : i + 1], 0))["loss"]
        for i in range(5)
    ]
    torch.testing.assert_close(
        cache.read(torch.from_numpy(kept))["loss"], torch.cat(alone).detach()
    )
    # Training never asks for its row: who replaces it comes under its own number.
    drawn = found.train_data(model, None, 3).batch(np.arange(6), 0)
    assert 1 not in drawn["index"].tolist()
    assert int(drawn["skipped"]) == 1


# ---- folders
# ----------------------------------------------------------------------------------------------------------


def test_hidden_things_are_no_data(parts, tmp_path, caplog):
    for part in ("train", "test"):
        (tmp_path / part / "a/._0.png").write_bytes(b"\x00\x05\x16\x07")
        (tmp_path / part / ".DS_Store").write_bytes(b"x")
        (tmp_path / part / "b/.DS_Store").write_bytes(b"x")
        (tmp_path / part / "b/notes.txt").write_bytes(b"x")
        (tmp_path / part / "b/.cache").mkdir()
        (tmp_path / part / "b/.cache/7.png").write_bytes(b"x")
        for name in (".ipynb_checkpoints", "__MACOSX"):
            (tmp_path / part / name).mkdir()
            (tmp_path / part / name / "0.png").write_bytes(b"x")
    train, test = folders(parts["path"], parts["test_path"])
    assert train.classes == test.classes == ["a", "b"]
    assert (len(train), len(test)) == (6, 6)
    # two folders of the root, ._0.png, b/.DS_Store and b/.cache; notes.txt has another suffix
    assert (
        f"task.data.path: 6 images in {parts['path']}; skipped: 5 hidden, 1 with another suffix"
        in caplog.text
    )


def test_classes_and_numbers_are_those_of_a_sorted_listing(parts, tmp_path):
    (tmp_path / "train/b/deep/er").mkdir(parents=True)
    colours(5)[4].save(tmp_path / "train/b/deep/er/0.png")
    train, _ = folders(parts["path"], parts["test_path"])
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [train.image(i)[0, 0].tolist() for i in (0, 2, 6)] == [
        [0, 255, 90],
        [40, 215, 90],
        [80, 175, 90],
    ]


def test_the_fingerprint_of_a_folder_does_not_know_where_it_lies(parts, tmp_path):
    before = folders(parts["path"], parts["test_path"])[0].fingerprint()
    (tmp_path / "train").rename(tmp_path / "moved")
    assert folders(str(tmp_path / "moved"), parts["test_path"])[0].fingerprint() == before
    (tmp_path / "moved/a/9.png").write_bytes(b"x")
    assert folders(str(tmp_path / "moved"), parts["test_path"])[0].fingerprint() != before


def test_parts_of_other_classes_say_which(parts, tmp_path):
    (tmp_path / "test/b").rename(tmp_path / "test/c")
    with pytest.raises(
        SteeringError, match=r"test_path: .* have other classes: b, c; only in .*train: b$"
    ):
        folders(parts["path"], parts["test_path"])


def test_a_class_without_images_and_a_folder_without_classes(parts, tmp_path):
    (tmp_path / "train/empty").mkdir()
    with pytest.raises(
        SteeringError, match=r"^path: .* has no image for class empty; looked for \.jpg"
    ):
        folders(parts["path"], parts["test_path"])
    with pytest.raises(SteeringError, match="one per class; 3 images lie in it directly"):
        folders(str(tmp_path / "train/a"), parts["test_path"])


@pytest.mark.parametrize(
    "suffix",
    ["ppm", "pgm", "pbm", "pnm", "tif", "TIFF", "gif", "bmp", "webp", "jpeg", "jfif", "JPG"],
)
def test_every_suffix_that_is_listed_can_be_decoded(parts, tmp_path, suffix):
    image = Image.new({"pgm": "L", "pbm": "1"}.get(suffix, "RGB"), (8, 8), "white")
    kind = {"jfif": "jpeg", "jpg": "jpeg", "tif": "tiff", "pgm": "ppm", "pbm": "ppm", "pnm": "ppm"}
    image.save(tmp_path / f"train/a/9.{suffix}", kind.get(suffix.lower(), suffix.lower()))
    train, _ = folders(parts["path"], parts["test_path"])
    np.testing.assert_array_equal(train.image(3), np.full((8, 8, 3), 255))


# ---- pictures
# ---------------------------------------------------------------------------------------------------------

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_of_16_bits_the_upper_8_stay(mode):
    image = Image.frombytes(
        mode, (256, 256), RAMP.astype(">u2" if mode.endswith("B") else "<u2").tobytes()
    )
    found, changes = eight_bits(image)
    np.testing.assert_array_equal(np.asarray(found), RAMP // 256)
    assert changes == ["scaled to 8 bits"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 32768, 65535]], np.int32), [[0, 128, 255]]),
        (np.array([[-100, 0, 100]], np.int32), [[0, 128, 255]]),
        (np.array([[0.0, 0.2, 1.0]], np.float32), [[0, 51, 255]]),
        (np.array([[0.0, 300.0, 1500.0]], np.float32), [[0, 51, 255]]),
        (np.array([[7.0, 7.0]], np.float32), [[7, 7]]),
        (np.array([[70000, 70000]], np.int32), [[255, 255]]),
    ],
)
def test_integers_and_floats_are_stretched_from_their_range(values, expected):
    np.testing.assert_allclose(np.asarray(eight_bits(Image.fromarray(values))[0]), expected, atol=1)


def test_a_picture_without_a_finite_number_is_unreadable(parts, tmp_path):
    Image.fromarray(np.array([[math.nan, math.nan]], np.float32)).save(tmp_path / "test/a/.x.tif")
    (tmp_path / "test/a/.x.tif").rename(tmp_path / "test/a/0.png")
    source = folders(parts["path"], parts["test_path"])[1]
    assert (
        0
        not in ImageData(whole(source), {"": AS_IT_IS}, 0, "none")
        .batch(np.array([0, 1]), 0)["index"]
        .tolist()
    )


def test_a_16_bit_png_in_a_folder(parts, tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "train/a/9.png")
    train, _ = folders(parts["path"], parts["test_path"])
    np.testing.assert_array_equal(train.image(3), np.repeat((RAMP // 256)[..., None], 3, axis=2))
    assert train.changes(3) == ["scaled to 8 bits"]


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", "jpg"), ("png", "png"), ("webp", "webp")])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_upright(tmp_path, kind, suffix, orientation):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :8] = 255  # a white corner, top left as stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / f"x.{suffix}", kind, exif=exif, quality=100)
    found, changes = read_picture(tmp_path / f"x.{suffix}")
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[
        orientation
    ]  # quarter turns against the clock: 6 is shown turned clockwise
    expected = np.rot90(stored, turns)
    assert np.asarray(found).shape == expected.shape
    assert np.abs(np.asarray(found).astype(int) - expected).max() < 60
    assert changes == (["turned upright"] if orientation != 1 else [])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.info["transparency"] = 0
    image = image.convert(mode) if mode == "LA" else image
    image.save(tmp_path / "x.png")
    found, changes = read_picture(tmp_path / "x.png")
    np.testing.assert_array_equal(np.asarray(found), np.full((8, 8, 3), 255))
    assert changes == ["put on white"]


def test_what_is_changed_in_training_is_told_once(parts, tmp_path, caplog):
    for i in range(2):
        Image.new("I;16", (8, 8), 40000).save(tmp_path / f"train/a/{i}.png")
    found = task(**parts)
    found.train_data(found.build(ModelSpec("linear")), None, 0).batch(np.arange(6), 0)
    assert caplog.text.count("task.data: some training images are scaled to 8 bits") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_changed_is_told_behind_an_evaluation(parts, tmp_path, caplog, monkeypatch, count):
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("a/1.png", "b/1.png"):
        colours(1)[0].save(tmp_path / "test" / name, exif=exif)
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "test/a/2.png")
    ranks = Threads(count)
    ranks.install(monkeypatch)
    # What is told once in a process would be told by whichever thread comes first.
    monkeypatch.setattr(sources, "report_once", reading.report_once.__wrapped__)
    monkeypatch.setattr(distributed, "gather_objects", ranks.exchange)
    monkeypatch.setattr(distributed, "gather_uneven", lambda x: torch.cat(ranks.exchange(x)))

    def job(_):
        found = task(**parts)
        return found.evaluate(found.build(ModelSpec("linear")), CPU)

    ranks.run(job)
    assert (
        "6 images in the test part of task.data; skipped: nothing; changed: 2 turned upright, 1 scaled to 8 bits"
        in (caplog.text)
    )


# ---- arrays
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        (
            np.zeros((3, 4, 4)),
            np.arange(3),
            r"float64, \(3, 4, 4\); the values lie in \[0, 1\]: save \(255 \* image\)",
        ),
        (np.full((3, 4, 4), 200.0), np.arange(3), r"save image\.round\(\)\.astype\('uint8'\)"),
        (np.full((3, 4, 4), -1.0), np.arange(3), "negative: undo the normalisation"),
        (np.full((3, 4, 4), 200), np.arange(3), r"int64, .*save image\.round"),
        (np.full((3, 4, 4), 40000, np.uint16), np.arange(3), r"uint16, .*save \(image >> 8\)"),
        (np.zeros((3, 3, 4, 4), np.uint8), np.arange(3), "move the channels to the end"),
        (np.zeros((3, 4, 4, 4), np.uint8), np.arange(3), "drop the transparency"),
        (np.zeros((3, 4, 4), np.uint8), np.eye(3, dtype=int), "look one-hot: save their argmax"),
        (
            np.zeros((3, 4, 4), np.uint8),
            np.array([0.0, 1.0, 2.0]),
            "labels must be 3 class numbers .* got float64",
        ),
        (np.zeros((3, 4, 4), np.uint8), np.array([0, 1, -1]), "labels must be 3 class numbers"),
        (
            np.zeros((3, 4, 4), np.uint8),
            np.array(["a", "b", "c"]),
            "labels must be 3 class numbers",
        ),
    ],
)
def test_arrays_of_another_kind_are_refused_with_what_to_do(tmp_path, image, label, words):
    np.savez(tmp_path / "x.npz", image=image, label=label)
    with pytest.raises(SteeringError, match=rf"^path: .*x\.npz: .*{words}"):
        arrays(str(tmp_path / "x.npz"), str(tmp_path / "x.npz"))


def test_a_column_of_labels_is_taken(tmp_path):
    np.savez(
        tmp_path / "x.npz",
        image=np.zeros((3, 4, 4), np.uint8),
        label=np.array([[0], [2], [1]], np.uint8),
    )
    np.savez(tmp_path / "y.npz", image=np.zeros((2, 4, 4), np.uint8), label=np.array([0, 4]))
    train, test = arrays(str(tmp_path / "x.npz"), str(tmp_path / "y.npz"))
    assert train.labels.tolist() == [0, 2, 1]
    assert train.classes == test.classes == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip file", b"text", "array", "names"])
def test_a_file_that_is_no_npz_is_one_line(tmp_path, content):
    path = tmp_path / "x.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    else:
        np.savez(path, x=np.zeros(3), y=np.zeros(3))
    with pytest.raises(
        SteeringError, match=r"^path: .*x\.npz is no \.npz with 'image' and 'label'"
    ) as caught:
        arrays(str(path), str(path))
    assert content != "names" or "no 'image' and 'label'; it has x, y" in str(caught.value)


# ---- label files
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "run_12:30/l.npy",
        "run_12:30/l.npz:noisy",
        "l:1.txt",
        "a.npz:b/l.npy",
        "L.NPZ:noisy",
        "p.pt:n:1",
    ],
)
def test_a_colon_in_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    numbers = np.array([3, 0, 2])
    for folder in ("run_12:30", "a.npz:b"):
        Path(folder).mkdir()
        np.save(f"{folder}/l.npy", numbers)
        np.savez(f"{folder}/l.npz", noisy=numbers, other=numbers + 1)
    Path("l:1.txt").write_text("3\n0\n2\n")
    with open("L.NPZ", "wb") as file:
        np.savez(file, noisy=numbers, other=numbers + 1)
    torch.save({"n:1": numbers, "other": numbers + 1}, "p.pt")
    np.testing.assert_array_equal(read_numbers(name, "labels"), numbers)


def test_a_drive_letter_stays_with_its_path():
    with pytest.raises(
        SteeringError, match=r"labels: cannot read numbers from C:.x.l\.npz:noisy: No such file"
    ):
        read_numbers(r"C:\x\l.npz:noisy", "labels")


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "l.npz", noisy=np.arange(3), other=np.arange(3) + 1)
    np.testing.assert_array_equal(read_numbers("~/l.npz:noisy", "labels"), [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"0\n1\n\n2\n", r"line 3: expected an integer >= 0, got ''"),
        (b"# noisy labels\n0\n1\n", r"line 1: expected an integer >= 0, got '# noisy labels'"),
        (b"label\n0\n1\n", r"line 1: .*got 'label'"),
        (b"0\n3.0\n", r"line 2: .*got '3.0'"),
        (b"0\n-1\n", r"line 2: .*got '-1'"),
        (b"0\nnan\n", r"line 2: .*got 'nan'"),
        (b"0 1\n2 3\n", r"line 1: .*got '0 1'"),
        (b"0\n1,\n", r"line 2: .*got '1,'"),
        (b"1_0\n", r"line 1: .*got '1_0'"),
        ("٣\n".encode(), r"line 1"),
        ("0\u2028x\n1\n".encode(), r"line 1"),
        (b"99999999999999999999\n", r"line 1"),
        (b"", "it is empty"),
        (b"\xff\xfe0\x00\n\x00", "codec can't decode"),
    ],
)
def test_a_line_that_is_no_label_is_named(tmp_path, content, words):
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(
        SteeringError, match=rf"^labels: cannot read numbers from .*l\.txt: .*{words}"
    ):
        read_numbers(str(tmp_path / "l.txt"), "labels")


@pytest.mark.parametrize(
    "content", [b"0\n12\n2", b"\xef\xbb\xbf0\n12\n2\n", b"0\r\n12\r\n2\r\n\r\n", b" 0\n+12\n2 \n"]
)
def test_lines_as_editors_write_them(tmp_path, content):
    (tmp_path / "l.txt").write_bytes(content)
    assert read_numbers(str(tmp_path / "l.txt"), "labels").tolist() == [0, 12, 2]


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (np.array([0, 1, -1]), "expected numbers >= 0 in .*, got -1 for example 2"),
        (np.eye(3, dtype=int), r"expected one integer .*int64, \(3, 3\); it looks one-hot"),
        (np.array([0.0, 1.0]), "expected one integer per example .* got float64"),
        (np.array([True, False]), "expected one .* got bool"),
        (np.array(["a"]), "expected one .* got <U1"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path, numbers, words):
    np.save(tmp_path / "l.npy", numbers)
    with pytest.raises(SteeringError, match=f"^labels: {words}"):
        read_numbers(str(tmp_path / "l.npy"), "labels")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two.npz", r"name one of its entries, as two\.npz:KEY; it has x, y"),
        ("two.npz:z", "it has no entry 'z'; it has x, y"),
        ("two.pt", "it has x, y"),
        ("one.npy:x", "it holds one array and no entries; leave out :x"),
        ("dict.npy:x", "it is a pickle, which could run code"),
        ("torn.npz:x", "zip"),
        ("torn.pt:x", ""),
        ("gone.npz:x", "No such file"),
    ],
)
def test_entries_of_files(tmp_path, name, words):
    np.savez(tmp_path / "two.npz", x=np.arange(3), y=np.arange(3))
    torch.save({"x": np.arange(3), "y": np.arange(3)}, tmp_path / "two.pt")
    np.save(tmp_path / "one.npy", np.arange(3))
    np.save(tmp_path / "dict.npy", {"x": np.arange(3)}, allow_pickle=True)
    for kind in ("npz", "pt"):
        (tmp_path / f"torn.{kind}").write_bytes((tmp_path / f"two.{kind}").read_bytes()[:200])
    with pytest.raises(SteeringError, match=f"^labels: cannot read numbers from .*{words}"):
        read_numbers(str(tmp_path / name), "labels")


def test_a_single_entry_needs_no_name(tmp_path):
    np.savez(tmp_path / "l.npz", anything=np.array([[1], [0]]))
    torch.save({"x": torch.tensor([1, 0])}, tmp_path / "l.pt")
    torch.save(torch.tensor([1, 0]), tmp_path / "bare.pt")
    for name in ("l.npz", "l.pt", "bare.pt"):
        assert read_numbers(str(tmp_path / name), "labels").tolist() == [1, 0]


# ---- torchvision
# ------------------------------------------------------------------------------------------------------


def listed(splits, labels="targets", classes=None):
    """A data set class as torchvision writes them: it lists its splits, and keeps two images."""

    class Made:
        asked: ClassVar[list[dict]] = []

        def __init__(self, root, split=splits[0], transform=None, download=False, **rest):  # noqa: ARG002
            if split not in splits:
                raise ValueError(
                    f"Unknown value '{split}' for argument split. Valid values are {{{splits!r}}}."
                )
            if not Path(root).is_dir():
                raise RuntimeError("Dataset not found. You can use download=True to download it")
            self.asked.append({"split": split, **rest})
            numbers = [0, 1] if split == splits[0] else [1, 2]
            setattr(
                self, labels, [("x", n) for n in numbers] if labels.endswith("samples") else numbers
            )
            if classes:
                self.classes = classes

        def __getitem__(self, number):
            return colours(3)[number], 0

    return Made


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test", "extra"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("trainval", "test"), ("trainval", "test")),
        (("train-standard", "train-challenge", "val"), ("train-standard", "val")),
        (("train", "valid", "test"), ("train", "test")),
        (("train", "valid"), ("train", "valid")),
    ],
)
@pytest.mark.parametrize("labels", ["targets", "labels", "_labels", "y", "_samples"])
def test_the_usual_splits_are_found(tmp_path, monkeypatch, splits, expected, labels):
    made = listed(splits, labels)
    monkeypatch.setattr(torchvision.datasets, "Made", made, raising=False)
    train, test = torchvision_sets("Made", str(tmp_path), False)
    assert tuple(asked["split"] for asked in made.asked) == expected
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1, 2])
    assert train.classes == test.classes == ["0", "1", "2"]
    assert train.image(1)[0, 0].tolist() == [20, 235, 90]


def test_a_split_by_name_and_one_that_is_not_there(tmp_path, monkeypatch):
    made = listed(("extra", "train", "test"), classes=[("a", "alpha"), "b", "c"])
    monkeypatch.setattr(torchvision.datasets, "Made", made, raising=False)
    train, _ = torchvision_sets("Made", str(tmp_path), False, {}, {"split": "extra"}, {})
    assert [asked["split"] for asked in made.asked] == ["extra", "test"]
    assert train.classes == ["a, alpha", "b", "c"]
    with pytest.raises(
        SteeringError,
        match=r"^test_options\.split: Unknown value 'vaal' .*'extra', 'train', 'test'",
    ):
        torchvision_sets("Made", str(tmp_path), False, {}, {}, {"split": "vaal"})
    with pytest.raises(
        SteeringError,
        match=r"^dataset: the splits of torchvision's Made are extra, train, test; name one",
    ):
        torchvision_sets("Made", str(tmp_path), False, {"split": "train"})
    with pytest.raises(
        SteeringError,
        match=r"path: cannot read torchvision's Made in .*gone with split=train: Dataset not",
    ):
        torchvision_sets("Made", str(tmp_path / "gone"), False)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "EMNIST",
            {},
            r"^dataset: torchvision's EMNIST needs options\.split, one of byclass, bymerge, balanced, letters",
        ),
        ("EMNIST", {"split": "leters"}, r"^options\.split: Unknown value 'leters'"),
        (
            "CIFAR10",
            {"splt": "x"},
            r"^options\.splt: no option of torchvision's CIFAR10; it has train$",
        ),
        ("MNIST", {"root": "x"}, r"^options\.root: no option"),
        (
            "Caltech101",
            {},
            "^dataset: torchvision.datasets.Caltech101 has no training and test parts",
        ),
        ("EuroSAT", {}, "^dataset: .*no training and test parts"),
    ],
)
def test_errors_name_the_key_that_is_wrong(tmp_path, name, options, words):
    with pytest.raises(SteeringError, match=words):
        torchvision_sets(name, str(tmp_path), False, options)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("ImageNet", ("train", None)),
        ("SVHN", ("train", None)),
        ("OxfordIIITPet", ("trainval", None)),
        ("Places365", ("train-standard", None)),
        ("Flowers102", ("train", None)),
        ("FGVCAircraft", ("train", None)),
        ("GTSRB", ("train", None)),
        ("StanfordCars", ("train", None)),
        ("DTD", ("train", None)),
        ("Food101", ("train", None)),
    ],
)
def test_real_classes_of_torchvision_are_asked_for_a_split_that_they_have(tmp_path, name, parts):
    with pytest.raises(SteeringError) as caught:
        torchvision_sets(name, str(tmp_path), False)
    assert f"with split={parts[0]}: " in str(caught.value)
    assert "Unknown value" not in str(caught.value)


class Loaded:
    """Keeps paths and loads them with a `loader`, as Food101 does; takes anything else."""

    classes = ("a", "b")

    def __init__(self, root, split="train", loader=None, **rest):
        self.root, self.targets, self.loader, self.rest = root, [0, 1], loader, rest
        if split not in ("train", "test"):
            raise ValueError(
                f"Unknown value '{split}' for argument split. Valid values are {{'train', 'test'}}."
            )

    def __getitem__(self, number):
        return self.loader(f"{self.root}/{number}.png"), number


def test_what_torchvision_loads_is_decoded_by_us(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, "Loaded", Loaded, raising=False)
    Image.fromarray(RAMP).save(tmp_path / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "1.png", exif=exif)
    train, _ = torchvision_sets("Loaded", str(tmp_path), False, {"anything": 1})
    np.testing.assert_array_equal(train.image(0)[..., 1], RAMP // 256)
    assert train.image(1).shape == (8, 4, 3)
    assert [train.changes(0), train.changes(1)] == [["scaled to 8 bits"], ["turned upright"]]


def test_emnist_letters(tmp_path):
    raw = tmp_path / "EMNIST/raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 5), ("test", 3)):
        images = np.arange(n * 784, dtype=np.uint8).reshape(n, 28, 28)
        sizes = np.array([n, 28, 28], dtype=">i4").tobytes()
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(
            b"\0\0\x08\x03" + sizes + images.tobytes()
        )
        head = b"\0\0\x08\x01" + np.array([n], dtype=">i4").tobytes()
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(
            head + np.arange(1, n + 1, dtype=np.uint8).tobytes()
        )
    found = task(
        source="torchvision", dataset="EMNIST", path=str(tmp_path), options={"split": "letters"}
    )
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([1, 2, 3, 4, 5], [1, 2, 3])
    assert found.classes[1:3] == ["a", "b"]


def test_options_are_for_torchvision_alone():
    with pytest.raises(
        SteeringError, match=r"^options: for source 'torchvision' alone, got source 'digits'"
    ):
        task(options={"split": "x"})


@pytest.mark.parametrize("labels", [[0, -1], [None, None], [[0, 1], [1, 0]]])
def test_labels_that_are_no_class_numbers(tmp_path, monkeypatch, labels):
    made = listed(("train", "test"))
    monkeypatch.setattr(torchvision.datasets, "Made", made, raising=False)
    monkeypatch.setattr(
        made, "targets", property(lambda _: labels, lambda _, __: None), raising=False
    )
    with pytest.raises(
        SteeringError,
        match=r"^dataset: torchvision.datasets.Made has no class number for each image",
    ):
        torchvision_sets("Made", str(tmp_path), False)


# ---- groups
# -----------------------------------------------------------------------------------------------------------


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_exponentiated_gradient_over_the_groups_that_there_are():
    # exp(L) = (2, ·, 6) from uniform over the two: q = (2, 0, 6)/8, whatever stands at the third.
    weights = GroupWeights(3)
    weights.without([1])
    torch.testing.assert_close(weights.log_q.exp(), rows(0.5, 0, 0.5))
    q = weights.update(rows(math.log(2), math.nan, math.log(6)), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(q, rows(0.25, 0, 0.75))
    torch.testing.assert_close(weights.mean, rows(0.25, 0, 0.75))
    loss = weights(rows(math.log(2), 0, math.log(6)), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(loss, rows(0.1 * math.log(2) + 0.9 * math.log(6))[0])  # q ∝ (4, 36)


def test_smoothing_and_a_penalty_leave_it_without_weight_too():
    smooth = GroupWeights(3, smoothing=0.2, prior=rows(1, 5, 3))
    smooth.without([1])
    q = smooth.update(rows(0, 0, math.log(3)), torch.tensor([1, 0, 1]))
    torch.testing.assert_close(q, 0.8 * rows(1, 0, 9) / 10 + 0.2 * rows(1, 0, 3) / 4)
    pulled, losses = (
        GroupWeights(3, step=2.0, penalty=0.7, prior=rows(1, 5, 3)),
        rows(0.3, 9.0, 1.2),
    )
    pulled.without([1])
    for _ in range(200):
        q = pulled.update(losses, torch.tensor([1, 0, 1]))
    rest = worst_case(
        losses, "kl", penalty=0.7, prior=rows(1, 5, 3), mask=torch.tensor([True, False, True])
    ).weights
    torch.testing.assert_close(q, rest, rtol=1e-6, atol=1e-9)


def test_state_goes_through_a_checkpoint():
    first, second = GroupWeights(3), GroupWeights(3)
    for weights in (first, second):
        weights.without([0])
    first.update(rows(0, 1, 2), torch.tensor([0, 1, 1]))
    second.load_state_dict(first.state_dict())
    after = [weights.update(rows(0, 1, 2), torch.tensor([0, 1, 1])) for weights in (first, second)]
    torch.testing.assert_close(*after)
    GroupWeights(3).load_state_dict(first.state_dict())  # nothing of it is new in the file


@pytest.mark.parametrize("groups", [[3], [-1], [0, 1, 2]])
def test_groups_that_cannot_be_left_out(groups):
    with pytest.raises(ValueError, match="groups must be numbers"):
        GroupWeights(3).without(groups)


@pytest.mark.parametrize("name", ["group_dro", "doremi"])
@pytest.mark.parametrize("empty", [[1], [0, 2]])
def test_every_method_of_groups_gives_an_empty_group_no_weight(name, empty, caplog):
    counts = [0 if g in empty else 5 for g in range(4)]
    method = build_method(
        name, find_method(name).options(), 10, ("w", "x", "y", "z"), group_counts=counts
    )
    left = 4 - len(empty)
    torch.testing.assert_close(
        method.weights.log_q.exp(), rows(*(0 if g in empty else 1 / left for g in range(4)))
    )
    named = ", ".join("wxyz"[g] for g in empty)
    assert (
        f"method ({name}): no training example belongs to group {named}; it gets no weight"
        in caplog.text
    )


def test_an_outsiders_method_that_cannot_leave_groups_out_is_refused(monkeypatch):
    from steering.methods.erm import Erm, ErmOptions

    entry = registry.Entry("mine", ErmOptions, Erm, "Mine.", groups=True)
    monkeypatch.setitem(registry._REGISTRY, "mine", entry)
    build_method("mine", ErmOptions(), 10, ("x", "y"), group_counts=[5, 5])
    build_method("mine", ErmOptions(), 10, ("x", "y"))
    with pytest.raises(
        ConfigError, match=r"method \(mine\): no training example belongs to group y$"
    ):
        build_method("mine", ErmOptions(), 10, ("x", "y"), group_counts=[5, 0])


def test_data_count_their_groups_or_say_that_they_do_not_know(tmp_path):
    np.save(tmp_path / "g.npy", np.array([0, 0, 3, 3, 3, 0]))
    np.save(tmp_path / "t.npy", np.array([0, 1, 0]))
    for name, n in (("train", 6), ("test", 3)):
        np.savez(
            tmp_path / f"{name}.npz", image=np.zeros((n, 8, 8), np.uint8), label=np.arange(n) % 3
        )
    found = task(
        source="arrays",
        path=str(tmp_path / "train.npz"),
        test_path=str(tmp_path / "test.npz"),
        groups=str(tmp_path / "g.npy"),
        test_groups=str(tmp_path / "t.npy"),
    )
    data = found.train_data(found.build(ModelSpec("linear")), None, 0)
    assert data.group_counts(len(found.groups)).tolist() == [3, 0, 0, 3]
    assert IndexedData.group_counts(data, 4) is None


@pytest.mark.parametrize("method", ["group_dro", "doremi"])
@pytest.mark.parametrize("lost", ["a gap", "class_shares"])
def test_a_run_weights_the_groups_that_have_examples(tmp_path, method, lost, caplog):
    n = 24
    labels = np.arange(n) % 3
    for part in ("train", "test"):
        np.savez(tmp_path / f"{part}.npz", image=np.zeros((n, 8, 8), np.uint8), label=labels)
    data = {
        "source": "arrays",
        "path": f"{tmp_path}/train.npz",
        "test_path": f"{tmp_path}/test.npz",
        "groups": "class",
    }
    if lost == "a gap":
        np.save(tmp_path / "g.npy", np.where(labels == 1, 2, labels))
        data |= {"groups": f"{tmp_path}/g.npy", "test_groups": f"{tmp_path}/g.npy"}
    else:
        data |= {"class_shares": {1: 1e-9}}
    (tmp_path / "run.yaml").write_text(
        f"name: r\noutput: {tmp_path}/out\ndevice: cpu\ntask: {{name: classification, data: {json.dumps(data)}}}\n"
        f"target: linear\nreference: linear\nmethod: {method}\ntrain: {{samples: 32, batch_size: 8}}\n".replace(
            '"1"', "1"
        )
    )
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    summary = json.loads((tmp_path / f"out/r/{method}-seed0/record.json").read_text())["summary"]
    (weights,) = summary.values()
    assert weights["1"] == 0
    assert sum(weights.values()) == pytest.approx(1)
    assert (
        f"method ({method}): no training example belongs to group 1; it gets no weight"
        in caplog.text
    )


def test_the_worst_group_is_one_of_the_test_part(tmp_path, caplog):
    """Groups that training has not are measured; groups that the test part has not are told."""
    for part, n in (("train", 6), ("test", 4)):
        np.savez(
            tmp_path / f"{part}.npz", image=np.zeros((n, 8, 8), np.uint8), label=np.arange(n) % 2
        )
    np.save(tmp_path / "g.npy", np.array([0, 0, 0, 1, 1, 1]))
    np.save(tmp_path / "t.npy", np.array([2, 0, 0, 0]))
    names = {"path": f"{tmp_path}/train.npz", "test_path": f"{tmp_path}/test.npz"}
    found = task(
        source="arrays", groups=f"{tmp_path}/g.npy", test_groups=f"{tmp_path}/t.npy", **names
    )
    model = found.build(ModelSpec("linear"))
    with (
        torch.no_grad()
    ):  # always class 1: labels 0 1 0 1, so group 2 is 0 right of 1, group 0 is 2 of 3
        model.module.layers[1].weight.zero_()
        model.module.layers[1].bias.copy_(torch.tensor([0.0, 5.0]))
    assert found.evaluate(model, CPU).values()["test/worst_group_accuracy"] == 0
    assert "task.data: group 2 has no training example" in caplog.text
    assert (
        "task.data: group 1 has no test example, so worst_group_accuracy says nothing of it"
        in caplog.text
    )


# ---- home folders
# -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("parts")
def test_every_path_of_the_task_may_start_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "g.npy", np.arange(6) % 2)
    home = {"source": "folder", "path": "~/train", "test_path": "~/test", "labels": "~/g.npy"}
    found = task(**home, groups="~/g.npy", test_groups="~/g.npy")
    assert len(found.train) == 6
    model = found.build(ModelSpec("linear"))
    from steering.weights import save_weights

    save_weights(tmp_path / "model.safetensors", model.module, {})
    again = found.build(ModelSpec("linear", checkpoint="~/model.safetensors"))
    assert torch.equal(again.module.layers[1].weight, model.module.layers[1].weight)
    assert torch.equal(
        found.build(ModelSpec("linear", pretrained="~/model.safetensors")).module.layers[1].weight,
        model.module.layers[1].weight,
    )
    np.savez(tmp_path / "x.npz", image=np.zeros((2, 4, 4), np.uint8), label=np.arange(2))
    assert len(arrays("~/x.npz", "~/x.npz")[0]) == 2
    with pytest.raises(
        SteeringError, match=f"cannot read torchvision's CIFAR10 in {tmp_path}/none"
    ):
        torchvision_sets("CIFAR10", "~/none", False)


def test_pillow_meets_the_formats_of_the_task_alone(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(Exception, match="none of JPEG, PNG"):
        read_picture(tmp_path / "x.png")
