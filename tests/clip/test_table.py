"""Tables of captions beside a folder of images: what is read, skipped, refused."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steering.errors import SteeringError
from steering_tasks.clip.data.source import Unreadable
from steering_tasks.clip.data.table import TableSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for n in range(4):
        Image.new("RGB", (3, 3), (n, 0, 0)).save(folder / "sub" / f"{n}.png")
    return folder


def write(path: Path, *rows: list[str], header: tuple[str, ...] = ("image", "caption")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t").writerows(
            [list(header), *rows]
        )
    return path


def number(image: Image.Image) -> int:
    assert image.mode == "RGB"
    return int(np.asarray(image)[0, 0, 0])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "T.TSV"])
def test_rows_in_order_whatever_the_captions_hold(tmp_path: Path, root: Path, name: str) -> None:
    captions = ['a "quoted", caption', "tab\there", "línea uno\nlínea dos", " kept as written "]
    order = [2, 0, 3, 1]
    rows = [[f"sub/{n}.png", caption] for n, caption in zip(order, captions, strict=True)]
    pairs = TableSource(write(tmp_path / name, *rows), root)
    assert len(pairs) == 4
    assert pairs.captions() == captions == [pairs.caption(i) for i in range(4)]
    assert [number(pairs.pair(i)[0]) for i in (3, 1, 0, 2)] == [1, 0, 2, 3]
    assert pairs.pair(2)[1] == captions[2]
    assert pairs.skipped == {}
    assert pairs.describe() == f"4 pairs in {tmp_path / name}; skipped: nothing"
    for i in (-1, 4):
        with pytest.raises(IndexError):
            pairs.pair(i)


def test_columns_are_named(tmp_path: Path, root: Path) -> None:
    table = write(
        tmp_path / "t.csv", ["x", "words", "sub/1.png"], header=("id", "title", "filepath")
    )
    pairs = TableSource(table, root, image_column="filepath", caption_column="title")
    assert (number(pairs.pair(0)[0]), pairs.caption(0)) == (1, "words")
    with pytest.raises(
        SteeringError, match=r"t\.csv: no column 'image'; its columns: id, title, filepath"
    ):
        TableSource(table, root)
    with pytest.raises(SteeringError, match=r"t\.csv: no column 'text'"):
        TableSource(table, root, image_column="filepath", caption_column="text")


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path, root: Path) -> None:
    (tmp_path / "t.csv").write_bytes("\ufeffimage,caption\r\n\r\nsub/1.png,é\r\n\r\n".encode())
    pairs = TableSource(tmp_path / "t.csv", root)
    assert (pairs.captions(), pairs.skipped) == (["é"], {})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (["sub/2.png", ""], "no caption"),
        (["sub/2.png", " \t "], "no caption"),
        (["sub/2.png"], "no caption"),
        (["sub/9.png", "words"], "no image"),
        (["", "words"], "no image"),
        (["sub", "words"], "no image"),
        (["sub/2.png\0", "words"], "no image"),
        (["sub/2.png", "words", " with a delimiter"], "more cells than columns"),
    ],
)
def test_skips_are_counted(tmp_path: Path, root: Path, row: list[str], reason: str) -> None:
    pairs = TableSource(
        write(tmp_path / "t.tsv", ["sub/0.png", "zero"], row, ["sub/1.png", "one"]), root
    )
    assert pairs.skipped == {reason: 1}
    assert f"skipped: 1 {reason}" in pairs.describe()
    assert pairs.captions() == ["zero", "one"]
    assert [number(pairs.pair(i)[0]) for i in range(2)] == [0, 1]


def test_no_usable_row(tmp_path: Path, root: Path) -> None:
    table = write(
        tmp_path / "t.tsv",
        ["nothere.png", "words"],
        ["sub/1.png", ""],
        ["nothere/either.png", "words"],
    )
    with pytest.raises(
        SteeringError, match=r"t\.tsv: none of its rows .* 2 no image, 1 no caption; .*images"
    ):
        TableSource(table, root)
    with pytest.raises(
        SteeringError, match=r"t\.tsv: none of its rows can be used; skipped: nothing"
    ):
        TableSource(write(tmp_path / "t.tsv"), root)


def test_bad_files(tmp_path: Path, root: Path) -> None:
    with pytest.raises(SteeringError, match=r"t\.tsv: no such file"):
        TableSource(tmp_path / "t.tsv", root)
    with pytest.raises(SteeringError, match=r"nothere: no such folder"):
        TableSource(write(tmp_path / "t.tsv"), tmp_path / "nothere")
    (tmp_path / "t.tsv").write_bytes(b"")
    with pytest.raises(SteeringError, match=r"t\.tsv: no column 'image'; its columns: none"):
        TableSource(tmp_path / "t.tsv", root)
    (tmp_path / "t.tsv").write_bytes(b"image\tcaption\nsub/1.png\t\xff\n")
    with pytest.raises(SteeringError, match=r"t\.tsv: not UTF-8"):
        TableSource(tmp_path / "t.tsv", root)
    with pytest.raises(
        SteeringError, match=r"t\.json: unknown kind of table; expected one of \.csv, \.tsv"
    ):
        TableSource(write(tmp_path / "t.json"), root)


@pytest.mark.parametrize("text", ['sub/0.png,"a\nsub/1.png,b\n', 'sub/0.png,"a" b\nsub/1.png,b\n'])
def test_a_stray_quote_swallows_no_rows(tmp_path: Path, root: Path, text: str) -> None:
    (tmp_path / "t.csv").write_text("image,caption\n" + text)
    with pytest.raises(SteeringError, match=r"t\.csv, line \d: cannot be parsed"):
        TableSource(tmp_path / "t.csv", root)


def test_an_unreadable_image_says_where_and_why(tmp_path: Path, root: Path) -> None:
    pairs = TableSource(
        write(tmp_path / "t.tsv", ["sub/0.png", "zero"], ["sub/1.png", "one"]), root
    )
    (root / "sub/0.png").write_bytes((root / "sub/0.png").read_bytes()[:40])
    (root / "sub/1.png").unlink()
    with pytest.raises(Unreadable, match=r"sub/0\.png: cannot decode the image"):
        pairs.pair(0)
    with pytest.raises(Unreadable, match=r"sub/1\.png: cannot be read: No such file"):
        pairs.pair(1)


def test_fingerprint_is_of_the_content(tmp_path: Path, root: Path) -> None:
    rows = [["sub/0.png", "zero"], ["sub/1.png", "one"]]
    table = write(tmp_path / "t.tsv", *rows)
    base = TableSource(table, root).fingerprint()
    assert len(base) == 64
    # Another place, another kind of file, other spellings of the paths, a skipped row: the same
    # pairs.
    moved = root.rename(tmp_path / "elsewhere")
    same = [
        write(tmp_path / "u.csv", *rows),
        write(tmp_path / "v.tsv", ["./sub//0.png", "zero"], [str(moved / "sub/1.png"), "one"]),
        write(tmp_path / "w.tsv", rows[0], ["nothere.png", "words"], rows[1]),
    ]
    assert {TableSource(path, moved).fingerprint() for path in [table, *same]} == {base}
    others = [
        write(tmp_path / "a.tsv", rows[1], rows[0]),
        write(tmp_path / "b.tsv", rows[0]),
        write(tmp_path / "c.tsv", rows[0], ["sub/1.png", "uno"]),
        write(tmp_path / "d.tsv", rows[0], ["sub/2.png", "one"]),
    ]
    assert len({base, *(TableSource(path, moved).fingerprint() for path in others)}) == 5
    Image.new("RGB", (90, 90), (1, 2, 3)).save(moved / "sub/1.png")
    assert TableSource(table, moved).fingerprint() != base


def test_pickles(tmp_path: Path, root: Path) -> None:
    pairs = pickle.loads(
        pickle.dumps(TableSource(write(tmp_path / "t.tsv", ["sub/3.png", "trois"]), root))
    )
    assert (number(pairs.pair(0)[0]), pairs.captions()) == (3, ["trois"])
