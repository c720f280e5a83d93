"""Image–text data as people have them: names with dots, deep and turned images, several captions,
tables of all kinds."""

from __future__ import annotations

import csv
import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from toys import Lookup

from steering.errors import SteeringError
from steering.reading import report_once, user_path
from steering.task import ModelSpec
from steering_tasks.classification.sources import folders
from steering_tasks.clip.data import shards
from steering_tasks.clip.data.held_out import ClassFolder, source_retrieval
from steering_tasks.clip.data.pairs import PairData, View
from steering_tasks.clip.data.shards import ShardSource, expand_pattern
from steering_tasks.clip.data.source import Unreadable, decode_image
from steering_tasks.clip.data.table import TableSource
from steering_tasks.clip.evaluation import RetrievalSet, image_ranks, retrieve, text_ranks
from steering_tasks.clip.figures import RIGHT, retrieved_captions
from steering_tasks.clip.models import ClipInputs, build_clip
from steering_tasks.clip.task import ClipData, ClipOptions, ClipTask, open_held_out
from steering_tasks.pictures import SCALED, TURNED, changes

Files = list[tuple[str, bytes]]
RAMP = np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64  # 0 .. 65472


@pytest.fixture(autouse=True)
def _fresh_reports() -> None:
    report_once.cache_clear()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def dot(number: int) -> Image.Image:
    return Image.new("RGB", (3, 2), (number, 0, 0))


def png(number: int) -> bytes:
    return encoded(dot(number))


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def shard(folder: Path, files: Files, name: str = "a.tar") -> Path:
    with tarfile.open(folder / name, "w") as tar:
        for member, data in files:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return folder / name


def opened(folder: Path, files: Files) -> ShardSource:
    return ShardSource(str(shard(folder, files)), folder / "index")


# Names of members of a shard.


def test_names_with_dots_are_pairs(tmp_path: Path) -> None:
    names = ["0", "photo.v1", "a.b.c", "2024.01.02/x", "Dr. No", "x..y"]
    files = [
        f
        for i, name in enumerate(names)
        for f in ((f"{name}.png", png(i)), (f"{name}.txt", name.encode()))
    ]
    found = opened(tmp_path, files)
    assert found.captions() == names
    assert [int(pixels(found.pair(i)[0])[0, 0, 0]) for i in range(6)] == list(range(6))
    assert found.skipped == {}


@pytest.mark.parametrize(
    ("names", "captions", "skipped"),
    [
        (["a.jpg", "a.txt", "a.v2.jpg"], ["a.txt"], {"no caption": 1}),
        (["a.jpg", "a.txt", "a.v2.jpg", "a.v2.txt"], ["a.txt", "a.v2.txt"], {}),
        (
            ["k.jpg", "k.txt", "k.seg.png", "k.depth.png", "k.meta.json"],
            ["k.txt"],
            {"no caption": 2},
        ),
        (["k.jpg", "k.txt", "k.seg.npy", "k.cls", "k.json"], ["k.txt"], {}),
        (
            ["000.0.jpg", "000.1.jpg", "000.txt", "z.jpg", "z.txt"],
            ["z.txt"],
            {"no image": 1, "no caption": 1},
        ),
        (["z.jpg", "z.txt", "a.image.jpg", "a.caption.txt"], ["z.txt"], {"no image": 1}),
        (["z.jpg", "z.txt", "a.one.jpg", "b.two.txt"], ["z.txt"], {"no image": 1, "no caption": 1}),
        (["z.jpg", "z.png", "z.webp", "z.txt"], ["z.txt"], {"further image of one name": 2}),
        (
            ["z.jpg", "z.txt", "a.JPG", "a.TXT", "b.heic", "b.txt"],
            ["z.txt", "a.TXT"],
            {"image in another format": 1},
        ),
        (["z.jpg", "z.txt", "a.jpg", "a.txt.gz"], ["z.txt"], {"compressed by itself": 1}),
        (
            ["z.jpg", "z.txt", "._z.jpg", "._z.txt", "__MACOSX/y.jpg", "__MACOSX/y.txt"],
            ["z.txt"],
            {},
        ),
        ([".data/z.jpg", ".data/z.txt", ".ipynb_checkpoints/z.jpg"], [".data/z.txt"], {}),
    ],
)
def test_what_is_no_pair_is_counted(
    tmp_path: Path, names: list[str], captions: list[str], skipped: dict[str, int]
) -> None:
    def data(name: str) -> bytes:
        return (
            b'{"url": "x"}'
            if name.endswith("json")
            else png(1)
            if name[-3:].lower() != "txt"
            else name.encode()
        )

    path = shard(tmp_path, [(name, data(name)) for name in names])
    for _ in range(2):  # scanned, then from the cache
        found = ShardSource(str(path), tmp_path / "index")
        assert (found.captions(), found.skipped) == (captions, skipped)
    hidden = sum("._" in name or "__MACOSX" in name or ".ipynb" in name for name in names)
    assert (f"passed over: {hidden} hidden files" in found.describe()) == (hidden > 0)


@pytest.mark.parametrize("suffix", ["bmp", "gif", "tif", "tiff", "ppm", "PNG", "Jpeg", "jfif"])
def test_images_of_every_suffix_that_is_decoded(tmp_path: Path, suffix: str) -> None:
    kind = {"tif": "TIFF", "jfif": "JPEG"}.get(suffix, suffix.upper())
    found = opened(
        tmp_path,
        [(f"0.{suffix}", encoded(Image.new("RGB", (8, 8), "white"), kind)), ("0.txt", b"x")],
    )
    assert (pixels(found.pair(0)[0]) == 255).all()


def test_links_are_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in [("0.png", png(0)), ("0.txt", b"x"), ("1.txt", b"y")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind in (("1.png", tarfile.LNKTYPE), ("2.png", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "0.png"
            tar.addfile(info)
    found = ShardSource(str(tmp_path / "a.tar"), tmp_path / "index")
    assert (found.captions(), found.skipped) == (["x"], {"link or sparse file": 2})


def test_an_index_of_the_old_rules_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [("0.png", png(0)), ("0.txt", b"x"), ("a.b.png", png(1)), ("a.b.txt", b"y")]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "CACHE_FORMAT", 1)
        path = shard(tmp_path, files)
        source = ShardSource(str(path), tmp_path / "index")
        [entry] = (tmp_path / "index").iterdir()
    assert len(ShardSource(str(path), tmp_path / "index")) == len(source) == 2
    assert len(list((tmp_path / "index").iterdir())) == 2
    assert entry.exists()


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ('{"caption": null}', "no caption"),
        ("[]", "no caption"),
        ('"words"', "no caption"),
        ("{}", "no caption"),
        ('{"caption": ""}', "no caption"),
        ('{"caption": 7}', "caption that is no text"),
        ('{"caption": false}', "caption that is no text"),
        ('{"caption": ["a", "b"]}', "caption that is no text"),
        ('{"caption": {"en": "a"}}', "caption that is no text"),
        ('{"caption": "\\ud800"}', "unreadable caption"),
    ],
)
def test_a_json_caption_that_is_no_text_is_counted(
    tmp_path: Path, caption: str, reason: str
) -> None:
    good = "\ufeff" + json.dumps({"caption": "good"})
    files = [
        ("0.png", png(0)),
        ("0.json", good.encode()),
        ("1.png", png(1)),
        ("1.json", caption.encode()),
    ]
    found = opened(tmp_path, files)
    assert (found.captions(), found.skipped) == (["good"], {reason: 1})


# Pixels.


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (RAMP, "PNG", RAMP >> 8),
        (RAMP, "TIFF", RAMP >> 8),
        (RAMP.astype(">u2"), "TIFF", RAMP >> 8),
        (RAMP.astype(np.int32), "PPM", RAMP >> 8),
        (RAMP.astype(np.int32), "TIFF", RAMP >> 8),
        (RAMP.astype(np.int32) // 257, "TIFF", RAMP // 257),  # 8-bit numbers in 32 bits
        (RAMP.astype(np.int32) * 4 - 70000, "TIFF", np.rint(RAMP / 65472 * 255)),
        (
            RAMP.astype(np.float32),
            "TIFF",
            np.rint(RAMP / 65472 * 255),
        ),  # floats have no range but their own
        (RAMP.astype(np.float32) / 65472, "TIFF", np.rint(RAMP / 65472 * 255)),
        (RAMP.astype(np.float32) * 3.5 - 9.25, "TIFF", np.rint(RAMP / 65472 * 255)),
        ((RAMP % 256).astype(np.float32), "TIFF", RAMP % 256),
    ],
)
def test_deep_grey_is_scaled(
    tmp_path: Path, values: np.ndarray, kind: str, expected: np.ndarray
) -> None:
    data = encoded(Image.fromarray(values), kind)
    found = decode_image(data, "x")
    assert np.abs(pixels(found).astype(int) - expected.astype(int)[..., None]).max() <= (
        1 if values.min() < 0 else 0
    )
    assert changes(found) == (() if values.max() < 256 and values.max() > 1 else (SCALED,))
    (tmp_path / "c").mkdir()
    (tmp_path / f"c/0.{kind.lower()}").write_bytes(data)
    np.testing.assert_array_equal(folders(str(tmp_path), str(tmp_path))[0].image(0), pixels(found))


def test_what_is_not_finite_is_the_end_of_the_range_or_unreadable() -> None:
    values = np.array([[np.nan, 0.0, 0.5, 1.0, np.inf, -np.inf]], dtype=np.float32)
    assert pixels(decode_image(encoded(Image.fromarray(values), "TIFF"), "x"))[0, :, 0].tolist() == [
        0, 0, 128, 255, 255, 0
    ]  # fmt: skip
    with pytest.raises(Unreadable, match=r"x: cannot decode .*finite"):
        decode_image(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "x")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16"])
def test_other_modes_and_transparency(mode: str) -> None:
    # Black, white, and (where the mode can) a hidden black that must come out white.
    if mode == "I;16":
        data = encoded(Image.fromarray(np.array([[0, 65535, 7]], dtype=np.uint16)), transparency=7)
    else:
        image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
        image.putpixel((1, 0), (255, 255, 255, 255))
        image.putpixel(
            (2, 0), (0, 0, 0, 0) if mode in ("LA", "PA", "RGBA") else (255, 255, 255, 255)
        )
        if mode == "PA":
            data = encoded(image.convert("P"))
        elif mode == "P":
            data = encoded(image.convert("RGB").convert("P"))
        else:
            data = encoded(image.convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert pixels(decode_image(data, "x"))[0].tolist() == [[0] * 3, [255] * 3, [255] * 3]


# Where pixel (row, column) of the upright 2 × 3 picture lies in the file, by the EXIF standard's
# table of orientations.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[::-1],
    7: lambda a: a.T[::-1, ::-1],
    8: lambda a: a.T[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_photos_stand_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    stored = np.kron(STORED[orientation](upright), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(stored).convert("RGB"), kind, exif=exif, **options)
    found = decode_image(data, "x")
    error = pixels(found)[8::16, 8::16].astype(int) - upright[..., None]
    assert np.abs(error).max() <= (3 if kind == "JPEG" else 0)
    assert changes(found) == ((TURNED,) if orientation > 1 else ())
    (tmp_path / "c").mkdir()
    (tmp_path / f"c/0.{kind.lower()}").write_bytes(data)
    np.testing.assert_array_equal(folders(str(tmp_path), str(tmp_path))[0].image(0), pixels(found))


def test_an_orientation_in_a_deep_image_and_a_broken_exif_block() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_image(encoded(Image.fromarray(RAMP[:2]), exif=exif), "x")
    np.testing.assert_array_equal(pixels(found)[..., 0], (RAMP[:2] >> 8)[::-1].T)
    assert changes(found) == (SCALED, TURNED)
    for broken in (
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0" + b"\xff" * 40,
    ):
        assert decode_image(encoded(dot(9), "JPEG", exif=broken, quality=100), "x").size == (3, 2)


def inputs(numbers: bool = True) -> ClipInputs:
    """An image is the red of its corner; a caption the number that it ends in."""

    def see(image: Image.Image) -> Tensor:
        return torch.tensor(pixels(image)[0, 0, 0] if numbers else 0).float().expand(3, 1, 1)

    def tokens(texts: list[str]) -> Tensor:
        return torch.tensor([[int(text.split()[-1])] for text in texts])

    return ClipInputs(see, see, tokens, (1, 1), (0.0,) * 3, (1.0,) * 3)


def test_an_evaluation_counts_what_it_changed_and_a_training_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    images = [
        encoded(Image.fromarray(RAMP)),
        png(1),
        encoded(dot(2), exif=exif),
        encoded(Image.fromarray(RAMP), "TIFF"),
    ]
    source = opened(
        tmp_path,
        [f for i, d in enumerate(images) for f in ((f"{i}.png", d), (f"{i}.txt", b"%d" % i))],
    )
    list(source_retrieval(source, "task.retrieval.mine").images(inputs()))
    assert f"task.retrieval.mine: of 4 images, changed: 2 {SCALED}, 1 {TURNED}" in caplog.text
    caplog.clear()
    view = View(lambda _: torch.zeros(1), lambda texts: torch.zeros(len(texts), 1))
    PairData(source, {"": view}, 0, False).batch(np.arange(4), 0)
    assert [record.getMessage().split(",")[0] for record in caplog.records] == [
        f"example 0: the image is {SCALED}",
        f"example 2: the image is {TURNED}",
    ]


# Several captions of one image.


def naive(scores: np.ndarray, right: list[set[int]], k: int) -> float:
    """Share of rows with a right column among the best k; of columns that tie, the wrong ones come
    first."""
    hits = 0
    for row, good in zip(scores.tolist(), right, strict=True):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j in good))
        wrong_before = 0
        for j in order:
            if j in good:
                break
            wrong_before += 1
        hits += wrong_before < k
    return hits / len(right)


@pytest.mark.parametrize("kind", ["path", "bytes", "shard"])
@pytest.mark.parametrize("seed", range(3))
def test_recall_with_several_captions_is_the_naive_one(
    tmp_path: Path, kind: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    rows = [
        (image, caption) for image in range(12) for caption in range(30) if random.random() < 0.15
    ]
    rows += [(image, 30 + image) for image in range(12)]  # each has one of its own, as well
    random.shuffle(rows)
    if kind == "shard":
        files = [
            f
            for i, (x, y) in enumerate(rows)
            for f in ((f"{i}.png", png(x)), (f"{i}.txt", f"{y}".encode()))
        ]
        source = opened(tmp_path, files)
    else:
        for i, (image, _) in enumerate(rows):
            name = f"{image}" if kind == "path" else f"row{i}"
            (tmp_path / f"{name}.png").write_bytes(png(image))
        names = [f"{x}" if kind == "path" else f"row{i}" for i, (x, _) in enumerate(rows)]
        lines = [f"{'./' * (i % 2)}{name}.png,{rows[i][1]}\n" for i, name in enumerate(names)]
        (tmp_path / "t.csv").write_text("image,caption\n" + "".join(lines))
        source = TableSource(tmp_path / "t.csv", tmp_path)
    held_out = source_retrieval(source, "x")
    assert held_out.count == 12
    assert len(source) == len(rows)  # a training set keeps its pairs
    # Coarse features make many ties.
    images, texts = (
        torch.from_numpy(random.integers(-1, 2, (n, 4)).astype(np.float32)) for n in (12, 42)
    )
    images[:, 3], texts[:, 3] = 3, 3
    found = retrieve(Lookup(images, texts), inputs(), held_out, torch.device("cpu"), (1, 3, 5))
    unit = [nn.functional.normalize(side, dim=-1) for side in (images, texts)]
    scores = (unit[0] @ unit[1].T).numpy()
    shown = sorted({caption for _, caption in rows})
    captions_of = [{shown.index(y) for x, y in rows if x == image} for image in range(12)]
    images_of = [{x for x, y in rows if y == caption} for caption in shown]
    scores = scores[:, shown]
    expected = {f"image_to_text_R@{k}": naive(scores, captions_of, k) for k in (1, 3, 5)}
    expected |= {f"text_to_image_R@{k}": naive(scores.T, images_of, k) for k in (1, 3, 5)}
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(expected.values())) > 3


def test_ranks_of_one_caption_an_image_are_those_of_the_column() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randint(-1, 2, (n, 3), generator=generator).float() for n in (40, 17))
    own = torch.randint(0, 17, (40,), generator=generator)
    scores = image @ text.T
    assert image_ranks(image, text, own).equal(
        (scores >= scores.gather(1, own[:, None])).sum(1) - 1
    )
    padded = torch.stack([own, torch.full_like(own, -1)], dim=1)
    assert image_ranks(image, text, padded).equal(image_ranks(image, text, own))
    assert text_ranks(image, text, padded).equal(text_ranks(image, text, own))


def test_copies_of_a_whole_pair_stay(tmp_path: Path) -> None:
    # Equal bytes and equal captions in two files: two images of one caption, no rivals of each
    # other.
    files = [
        f for i in range(4) for f in ((f"{i}.png", png(i // 2)), (f"{i}.txt", f"{i // 2}".encode()))
    ]
    found = source_retrieval(opened(tmp_path, files), "x")
    assert (found.count, found.answers) == (4, None)
    assert retrieve(
        Lookup(torch.eye(2), torch.eye(2)), inputs(), found, torch.device("cpu"), (1,)
    ) == {
        "image_to_text_R@1": 1.0,
        "text_to_image_R@1": 1.0,
    }


def test_images_and_captions_are_told_and_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(3):
        dot(i).save(tmp_path / f"{i}.png")
    rows = [f"{i}.png,caption {k} of {3 * k + i}\n" for k in range(2) for i in range(3)]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(rows))
    task = ClipTask(
        ClipOptions(retrieval={"coco": str(tmp_path / "t.csv")}, data=ClipData("table", "x"))
    )
    with caplog.at_level(logging.INFO, "steering"):
        sets, _ = task._held_out()
    assert "task.retrieval.coco: 3 images and 6 different captions" in caplog.text
    figure = retrieved_captions(
        Lookup(torch.eye(3), torch.eye(3).repeat(2, 1)), inputs(), sets["coco"], torch.device("cpu")
    )
    green = [text for axes in figure.axes for text in axes.texts if text.get_color() == RIGHT]
    assert len(green) == 2 * 2 * 3  # both captions of three images, each a score and a text


def test_an_unreadable_image_with_several_captions_is_left_out_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "1.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text("image,caption\n0.png,0\n0.png,1\n1.png,2\n1.png,3\n")
    held_out = source_retrieval(TableSource(tmp_path / "t.csv", tmp_path), "x")
    [(images, labels, numbers)] = held_out.images(inputs())
    assert (len(images), held_out.right(labels).tolist()) == (1, [[0, 1]])
    assert numbers.tolist() == [0]
    assert "x: 1 of 2 images cannot be read" in caplog.text


def test_a_set_made_by_hand_still_takes_caption_numbers() -> None:
    data = RetrievalSet(
        ["0", "1"],
        lambda _: iter([(torch.zeros(2, 3, 1, 1), torch.tensor([1, 0]), torch.arange(2))]),
    )
    assert data.right(torch.tensor([1, 0])).tolist() == [[1], [0]]


# Folders of classes.


def test_every_image_that_is_listed_is_read_and_the_hidden_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp", "gif", "PNG"]
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for kind in kinds:
            dot(1).convert("L" if kind == "pgm" else "RGB").save(
                tmp_path / label / f"{kind.lower()}{kind}.{kind}"
            )
    for junk in (".ipynb_checkpoints", "__MACOSX", ".git"):
        (tmp_path / junk).mkdir()
        dot(1).save(tmp_path / junk / "0.png")
    (tmp_path / "a/._png.png").write_bytes(b"Mac OS X")
    (tmp_path / "a/.ipynb_checkpoints").mkdir()
    dot(1).save(tmp_path / "a/.ipynb_checkpoints/0.png")
    (tmp_path / "a/notes.txt").write_text("words")
    dot(1).save(tmp_path / "loose.png")
    (tmp_path / "c").symlink_to(tmp_path / "b")
    found = ClassFolder(tmp_path, None)
    assert found.classes == ["a", "b", "c"]
    [(images, labels, _)] = found.batches(inputs())
    assert labels.bincount().tolist() == [len(kinds)] * 3
    [record] = caplog.records
    for words in (
        f"task.zero_shot.path: {3 * len(kinds)} images in ",
        "1 hidden folder (.ipynb_checkpoints)",
        "1 hidden folder (__MACOSX)",
        "1 hidden folder (.git)",
        "2 hidden file",
        "1 no image by its suffix",
        "1 image outside the class folders",
    ):
        assert words in record.getMessage()
    assert len(images) == 3 * len(kinds)
    with pytest.raises(SteeringError, match=r"2 names for 3 folders in .*: a, b, c"):
        ClassFolder(tmp_path, ["x", "y"])
    with pytest.raises(
        SteeringError, match=r"task.zero_shot.path: .*loose.png is a file; expected a folder"
    ):
        ClassFolder(tmp_path / "loose.png", None)


# Paths.


def test_paths_from_home(home: Path) -> None:
    (home / "my data: x").mkdir()
    for name in ("000.tar", "001.tar"):
        shard(home / "my data: x", [(f"{name}.png", png(1)), (f"{name}.txt", name.encode())], name)
    for pattern in (
        "~/my data: x/{000..001}.tar",
        "~/my data: x/*.tar",
        "~/my data: x/000.tar::~/my data: x/001.tar",
        "{~,~}/my data: x/00{0,1}.tar",
    ):
        assert {path.name for path in expand_pattern(pattern)} == {"000.tar", "001.tar"}
    assert len(ShardSource("~/my data: x/*.tar", "~/index")) == 2
    assert (home / "index").is_dir()
    (home / "~old.tar").write_bytes((home / "my data: x/000.tar").read_bytes())
    assert expand_pattern("~old.tar") == [Path("~old.tar")]  # nobody's home
    (home / "a::b.tar").write_bytes((home / "my data: x/000.tar").read_bytes())
    assert expand_pattern("a::b.tar") == [Path("a::b.tar")]
    with pytest.raises(
        SteeringError, match=r"my data: x: is a folder; expected tar files, perhaps '.*/\*\.tar'"
    ):
        expand_pattern("~/my data: x")
    assert user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


def test_tables_from_home(home: Path) -> None:
    (home / "images").mkdir()
    dot(1).save(home / "images/0.png")
    dot(2).save(home / "1.png")
    dot(3).save(home / "images/~2.png")
    (home / "t.csv").write_text("image,caption\n0.png,a\n~/1.png,b\n~2.png,c\n~/gone.png,d\n")
    for source in (
        TableSource("~/t.csv", "~/images"),
        open_held_out("~/t.csv", ClipData("table", "x", root="~/images")),
    ):
        assert (source.captions(), source.skipped) == (["a", "b", "c"], {"no image": 1})
        assert [int(pixels(source.pair(i)[0])[0, 0, 0]) for i in range(3)] == [1, 2, 3]
    assert (
        len(open_held_out("~/t.csv", ClipData("shards", "x"))) == 1
    )  # beside the table lies ~/1.png alone
    assert ClassFolder(Path("~"), None).classes == ["images"]
    (home / "d.csv").mkdir()
    with pytest.raises(
        SteeringError, match=r"d\.csv: is a folder; expected a \.tsv or \.csv table"
    ):
        TableSource("~/d.csv", "~/images")
    with pytest.raises(
        SteeringError, match=r"t\.csv: is a file; expected the folder with the images"
    ):
        TableSource("~/t.csv", "~/t.csv")


def model_json(path: Path, **top: object) -> Path:
    bpe = Path(__file__).parents[2] / "configs/clip/models/glyphs.bpe.gz"
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 2014, "width": 32, "heads": 2, "layers": 1}
    config = {
        "embed_dim": 16,
        "vision_cfg": vision,
        "text_cfg": text | {"tokenizer_kwargs": {"bpe_path": str(bpe)}},
    }
    path.write_text(json.dumps(config | top))
    return path


def test_models_from_home(home: Path) -> None:
    model_json(home / "m.json")
    built = build_clip(ModelSpec("~/m.json"))
    torch.save(built.module.state_dict(), home / "w.pt")
    assert (
        build_clip(ModelSpec("~/m.json", pretrained="~/w.pt")).inputs_fingerprint
        == built.inputs_fingerprint
    )
    with pytest.raises(SteeringError, match=f"checkpoint: no such file: {home}/gone"):
        ClipTask(ClipOptions()).build(ModelSpec("~/m.json", checkpoint="~/gone.safetensors"))
    with pytest.raises(SteeringError, match=r"checkpoint: .* is a folder"):
        ClipTask(ClipOptions()).build(ModelSpec("~/m.json", checkpoint="~"))
    with pytest.raises(SteeringError, match=f"'local-dir:{home}/gone'"):
        build_clip(ModelSpec("local-dir:~/gone"))


# Tables.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(4):
        dot(i).save(tmp_path / f"{i}.png")
    return tmp_path


def table(folder: Path, text: str, name: str = "t.tsv", **columns: str) -> TableSource:
    (folder / name).write_text(text)
    return TableSource(folder / name, folder, **columns)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.tab"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_header_shows_the_delimiter(pictures: Path, delimiter: str, name: str) -> None:
    text = f"filepath{delimiter}title\n0.png{delimiter}a red square\n1.png{delimiter}a door\n"
    found = table(pictures, text, name, image_column="filepath", caption_column="title")
    assert found.captions() == ["a red square", "a door"]
    usual = delimiter == ("," if name == "t.csv" else "\t")
    assert ("cells separated by" in found.describe()) != usual
    with pytest.raises(
        SteeringError,
        match=r"no column 'image'; its columns: filepath, title.*; set task.data.image_co",
    ):
        table(pictures, text, name)


# (rows of a TSV file, captions)
UNQUOTED = [
    ('0.png\t"Hello" he said\n1.png\tb\n', ['"Hello" he said', "b"]),
    ('0.png\t"unbalanced\n1.png\tb\n2.png\tc\n', ['"unbalanced', "b", "c"]),
    ('0.png\t"unbalanced\n1.png\tb"\n2.png\tc\n', ['"unbalanced', 'b"', "c"]),
    ('0.png\t"opens\n1.png\t"\n2.png\tc\n', ['"opens', '"', "c"]),
    ('0.png\ta\n1.png\tb\n2.png\t"', ["a", "b", '"']),
    ('0.png\t5" nail\n1.png\t""so called"" door\n', ['5" nail', '""so called"" door']),
    ('0.png\t"' + "long " * 40000 + "\n1.png\tb\n", ['"' + "long " * 40000, "b"]),
]


@pytest.mark.parametrize(("rows", "captions"), UNQUOTED)
def test_a_tsv_without_quoting_loses_and_merges_nothing(
    pictures: Path, rows: str, captions: list[str]
) -> None:
    for end in ("\n", "\r\n"):
        (pictures / "t.tsv").write_bytes(
            ("\ufeffimage\tcaption\n" + rows).replace("\n", end).encode()
        )
        found = TableSource(pictures / "t.tsv", pictures)
        assert (found.captions(), found.skipped) == (captions, {})
        assert "quotes taken as they stand" in found.describe()
        assert len(found.describe().splitlines()) == 1


def test_quotes_that_would_join_cells_are_none(pictures: Path) -> None:
    found = table(pictures, 'image\tcaption\tsource\n0.png\t"a door\tthe web"\n1.png\tb\tc\n')
    assert found.captions() == ['"a door', "b"]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_what_a_csv_writer_writes_is_read_as_it_was(
    pictures: Path, delimiter: str, quoting: int
) -> None:
    captions = ['"Hello" he said', 'two\nlines, "quoted"', "tab\there, and\r\n\ta comma", '"']
    with (pictures / "t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
        writer.writerows(
            [["caption", "image"], *([caption, f"{i}.png"] for i, caption in enumerate(captions))]
        )
    found = TableSource(pictures / "t.csv", pictures)
    assert (found.captions(), found.skipped) == (captions, {})


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('0.png,a\n1.png,"Hello" he said\n2.png,c\n', 3),
        ('0.png,"unbalanced\n1.png,b\n', 2),
        ('0.png,a\n1.png,"unbalanced\n2.png,b"\n3.png,c\n', 3),  # to csv one caption of two lines
        ('0.png,"opens\n1.png,b\n2.png,closes"\n', 2),
    ],
)
def test_a_csv_row_never_swallows_the_next_one(pictures: Path, rows: str, line: int) -> None:
    with pytest.raises(SteeringError, match=rf"t\.csv, line {line}: cannot be parsed"):
        table(pictures, "image,caption\n" + rows, "t.csv")
