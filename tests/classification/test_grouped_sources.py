"""Sources with a spurious feature: digits on photographs, tables that name files and groups."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering.errors import SteeringError
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.idx import mnist
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.photographs import digits_on_photographs
from steering_tasks.classification.table import table

SHARED = Path(__file__).parents[2].parent / "shared/data/image_cls"


def task(**data):
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**data)))


@pytest.fixture
def photographs(tmp_path):
    """Photographs of one colour: class n has the grey 10·n."""
    for name, n in (("train", 40), ("test", 20)):
        label = np.arange(n) % 10
        image = np.broadcast_to(10 * label[:, None, None, None], (n, 32, 32, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", image=image, label=label)
    return str(tmp_path / "train.npz"), str(tmp_path / "test.npz")


def test_the_background_disagrees_as_often_as_it_is_told_to(photographs):
    train, test = digits_on_photographs(*photographs, {"minority": 0.2})
    assert abs(train.groups.mean() - 0.2) < 0.04
    assert abs(test.groups.mean() - 0.5) < 0.06
    for number in range(60):
        kind = (0, 80) if (train.labels[number] ^ train.groups[number]) == 0 else (40, 60)
        assert train.image(number)[0, 0, 0] in kind
    digit, _ = digits_on_photographs(*photographs, {"minority": 0.2, "label": "digit"})
    assert np.array_equal(digit.labels >= 5, train.labels == 1)
    assert np.array_equal(digit.image(3), train.image(3))
    assert digit.fingerprint() != train.fingerprint()
    few, _ = digits_on_photographs(*photographs, {"count": 50})
    assert len(few) == 50


def test_ink_is_blended_by_its_opacity(photographs):
    """8×8 digits are enlarged four times to fill 32×32 pixels."""
    bare, _ = digits_on_photographs(*photographs, {"opacity": 0.0})
    half, _ = digits_on_photographs(*photographs, {"opacity": 0.5})
    grey = np.kron(half.ink.image(int(half.rows[7]))[..., 0] / 255, np.ones((4, 4)))
    behind = float(bare.image(7)[0, 0, 0])
    expected = behind * (1 - 0.5 * grey) + 255 * 0.5 * grey
    np.testing.assert_allclose(half.image(7)[..., 1], expected, atol=0.51)
    assert np.ptp(bare.image(7)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opacity": 2}, "opacity: expected a number in"),
        ({"label": "shape"}, "label: expected one of half, digit"),
        ({"kinds": [[0]]}, "kinds: expected two lists"),
        ({"kinds": [[0], [11]]}, r"no photograph of the classes \[11\]"),
        ({"ink": 1}, "unexpected keyword argument 'ink'"),
        ({"digits": "/nowhere"}, "task.data.options.digits: no train-images-idx3-ubyte"),
    ],
)
def test_photographs_that_cannot_be(photographs, options, message):
    with pytest.raises(SteeringError, match=message):
        digits_on_photographs(*photographs, options)


def test_idx_files_packed_or_not(tmp_path):
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    head = bytes([0, 0, 8, 3]) + np.array([3, 4, 4], ">u4").tobytes()
    labels = bytes([0, 0, 8, 1]) + np.array([3], ">u4").tobytes() + bytes([7, 0, 2])
    for part in ("train", "t10k"):
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    train, _ = mnist(str(tmp_path), "here")
    assert train.labels.tolist() == [7, 0, 2]
    assert np.array_equal(train.images[..., 0], images)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x0d\x03" + head[4:])
    with pytest.raises(SteeringError, match="here: cannot read"):
        mnist(str(tmp_path), "here")


@pytest.mark.shared_data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data sets in {SHARED}")
def test_real_digits_on_real_photographs():
    paths = [str(SHARED / f"cifar10/cifar10_{part}.npz") for part in ("train", "test")]
    train, test = digits_on_photographs(*paths, {"digits": str(SHARED / "mnist"), "count": 400})
    assert (len(train), len(test)) == (400, 10_000)
    photograph = train.photographs.image(int(train.behind[5])).astype(int)
    found, ink = train.image(5).astype(int), train.ink.image(int(train.rows[5]))[..., 0]
    assert np.array_equal(found[:2], photograph[:2])  # 28 rows in the middle of 32
    inked = np.pad(ink, 2) > 200
    assert (found[inked] >= photograph[inked]).all()
    assert found[inked].mean() > 180


COLUMNS = ("img_id", "img_filename", "y", "split", "place")


def waterbirds(folder, rows=None, columns=COLUMNS):
    """A table in the layout of Waterbirds, and its pictures."""
    rows = rows or [(n, f"{n % 2}/{n}.jpg", n % 2, n % 3, (n // 4) % 2) for n in range(24)]
    for number, name, *_ in rows:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * int(number) % 256, 0, 0)).save(path)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(folder / "metadata.csv")


def test_the_layout_of_waterbirds(tmp_path, caplog):
    file = waterbirds(tmp_path)
    train, test = table(file, {"spurious": "place"})
    numbers = np.arange(24)
    for part, split in ((train, 0), (test, 2)):
        mine = numbers[numbers % 3 == split]
        assert np.array_equal(part.labels, mine % 2)
        assert np.array_equal(part.groups, (mine % 2 != (mine // 4) % 2).astype(int))
        assert abs(int(part.image(1)[0, 0, 0]) - 10 * int(mine[1])) < 4
    assert train.group_names == ("agrees", "disagrees")
    assert "16 images in" in caplog.text
    assert "8 in other parts" in caplog.text
    by_place, _ = table(file, {"group": "place", "train": ["0", "1"]})
    assert (len(by_place), by_place.group_names) == (16, ("0", "1"))
    found = task(source="table", path=file, options={"spurious": "place"}, groups="source")
    assert found.groups == ("agrees", "disagrees")
    assert np.array_equal(found.part.groups, train.groups)
    assert np.array_equal(found.test_part.groups, test.groups)


def test_values_that_go_with_several_labels_in_a_table_with_tabs(tmp_path):
    """As of emoji: a vendor's style goes with some of Unicode's groups."""
    rows = [(n, f"{n}.png", "abc"[n % 3], n % 2, "xy"[(n // 3) % 2]) for n in range(12)]
    file = Path(waterbirds(tmp_path, rows, ("key", "name", "group", "part", "vendor")))
    text = file.read_text().replace(",", "\t").replace("\r", "").replace("\t0.png", '\t"0.png')
    (tmp_path / "index.tsv").write_text(text)  # a quote means nothing beside tabs
    options = {
        "image": "name",
        "label": "group",
        "split": "part",
        "train": "0",
        "test": "1",
        "spurious": "vendor",
    }
    goes_with = {"x": ["a", "b"], "y": ["c"]}
    train, test = table(str(tmp_path / "index.tsv"), {**options, "goes_with": goes_with})
    assert train.files[0].name == '"0.png'
    for part, first in ((train, 0), (test, 1)):
        for n, (label, group) in enumerate(zip(part.labels, part.groups, strict=True)):
            _, _, name, _, vendor = rows[first + 2 * n]
            assert part.classes[label] == name
            assert group == (name not in goes_with[vendor])
    for wrong, message in (
        ({"x": ["a"]}, "vendor has the value y, which goes_with does not name; expected x"),
        ({"x": ["a"], "y": ["d"]}, "options.goes_with: no label d; labels are a, b, c"),
    ):
        with pytest.raises(SteeringError, match=message):
            table(str(tmp_path / "index.tsv"), {**options, "goes_with": wrong})


def test_the_layout_of_wilds_with_names_made_of_columns(tmp_path):
    """As camelyon17 has it: no file names, the parts and classes by name."""
    columns = ("", "patient", "node", "tumor", "split", "center")
    rows = [
        (
            n,
            f"{n % 5:03}",
            n % 4,
            "tumor" if n % 2 else "normal",
            ("train", "val", "test")[n % 3],
            n % 2,
        )
        for n in range(12)
    ]
    (tmp_path / "patches").mkdir()
    for _, patient, node, *_ in rows:
        Image.new("RGB", (8, 8)).save(tmp_path / f"patches/patient_{patient}_node_{node}.png")
    file = tmp_path / "metadata.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    options = {
        "image": "patches/patient_{patient}_node_{node}.png",
        "label": "tumor",
        "group": "center",
        "test": "val",
    }
    train, test = table(str(file), options)
    assert train.classes == ["normal", "tumor"]
    assert train.labels.tolist() == [0, 1, 0, 1]
    assert len(test) == 4
    assert train.files[1].name == "patient_003_node_3.png"
    assert train.image(1).shape == (8, 8, 3)
    with pytest.raises(SteeringError, match="center has the value 0, which is no label"):
        table(
            str(file), {**{k: v for k, v in options.items() if k != "group"}, "spurious": "center"}
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "class"}, "the table has no column class; it has img_id, img_filename"),
        ({"image": "{folder}/{img_id}.jpg"}, "no column folder"),
        ({"train": ["a"]}, "has no row whose split is a; it has 0, 1, 2"),
        ({"group": "y", "spurious": "place"}, "expected one of them"),
        ({"colour": "y"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_tables_that_cannot_be(tmp_path, options, message):
    with pytest.raises(SteeringError, match=message):
        table(waterbirds(tmp_path), options)


def test_a_row_that_ends_early_is_named(tmp_path):
    rows = ["img_filename,y,split", "a.png,0,0", "b.png,1", "c.png,1,2"]
    (tmp_path / "short.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(SteeringError, match="row 3 of the table has no split"):
        table(str(tmp_path / "short.csv"), {})


def test_a_table_without_groups_and_without_rows(tmp_path):
    file = waterbirds(tmp_path)
    with pytest.raises(SteeringError, match=r"name a column in options\.group"):
        task(source="table", path=file, groups="source")
    Path(file).write_text("img_filename,y,split\n")
    with pytest.raises(SteeringError, match="has no rows"):
        table(file, {})
    with pytest.raises(SteeringError, match="cannot read the table"):
        table(str(tmp_path / "none.csv"), {})
