"""Tar shards: what is found, in which order, what is skipped, and that a broken tar never passes
for a shorter one."""

from __future__ import annotations

import csv
import io
import os
import pickle
import shutil
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from steering.errors import SteeringError
from steering_tasks.clip.data import shards, source
from steering_tasks.clip.data.shards import ShardSource, expand_pattern
from steering_tasks.clip.data.source import Unreadable

Members = list[tuple[str, bytes]]
EMOJI = Path(__file__).parents[2].parent / "shared/data/image_text/emoji"


def picture(number: int, size: int = 5) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int, size: int = 5) -> bytes:
    stream = io.BytesIO()
    picture(number, size).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples(*numbers: int) -> Members:
    return [
        m
        for n in numbers
        for m in ((f"{n:05}.png", png(n)), (f"{n:05}.txt", f"caption {n}\n".encode()))
    ]


def open_source(path: Path | str, tmp_path: Path) -> ShardSource:
    return ShardSource(str(path), tmp_path / "cache")


def assert_pair(found: tuple[Image.Image, str], number: int) -> None:
    assert found[1] == f"caption {number}"
    assert found[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(picture(number)))


def test_reads_what_webdataset_writes_and_as_webdataset_reads_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tar")
    with webdataset.TarWriter(path) as writer:
        for n in range(7):
            caption = (
                {"txt": f"caption {n}"}
                if n % 2
                else {"json": {"caption": f"caption {n}", "url": "x"}}
            )
            writer.write({"__key__": f"{n:05}", "png": picture(n), **caption})
    pairs = open_source(path, tmp_path)
    with open(path, "rb") as stream:
        files = webdataset.tariterators.tar_file_iterator(stream)
        sequential = [
            s["png"]
            for s in webdataset.tariterators.group_by_keys({**f, "__url__": path} for f in files)
        ]
    assert len(pairs) == len(sequential) == 7
    for n in [6, 0, 3, 3, 1, 5, 2, 4]:
        assert_pair(pairs.pair(n), n)
        np.testing.assert_array_equal(
            np.asarray(pairs.pair(n)[0]),
            np.asarray(Image.open(io.BytesIO(sequential[n])).convert("RGB")),
        )
    assert (
        pairs.captions()
        == [pairs.caption(n) for n in range(7)]
        == [f"caption {n}" for n in range(7)]
    )
    assert pairs.skipped == {}
    assert pairs.describe() == "7 pairs in 1 tar shards (a.tar); skipped: nothing"


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_image_suffixes(tmp_path: Path, suffix: str) -> None:
    pairs = open_source(
        write_tar(tmp_path / "a.tar", [(f"0.{suffix}", png(0)), ("0.txt", b"caption 0")]), tmp_path
    )
    assert_pair(pairs.pair(0), 0)


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        ({"txt": b"of txt", "json": b'{"caption": "of json"}'}, "of txt"),
        ({"json": b'{"caption": "of json"}', "txt": b"of txt"}, "of txt"),
        ({"json": b'{"caption": " \\u00e9 \\n"}'}, " é "),
        ({"txt": "\ufeffnaïve\r\n".encode()}, "naïve"),
    ],
)
def test_caption_of_txt_or_json(tmp_path: Path, captions: dict[str, bytes], expected: str) -> None:
    members = [("0.png", png(0)), *((f"0.{suffix}", data) for suffix, data in captions.items())]
    assert open_source(write_tar(tmp_path / "a.tar", members), tmp_path).caption(0) == expected


def test_order_is_that_of_the_pattern_then_of_the_file(tmp_path: Path) -> None:
    for name, content in {"b": (5, 1), "a": (9,), "c": (2, 7, 0)}.items():
        write_tar(tmp_path / f"{name}.tar", samples(*content))
    order: dict[str, list[int]] = {
        "{c,a}.tar": [2, 7, 0, 9],
        "*.tar": [9, 5, 1, 2, 7, 0],
        "b.tar::{a..c..2}.tar": [5, 1, 9, 2, 7, 0],
    }
    for pattern, numbers in order.items():
        where = "::".join(str(tmp_path / part) for part in pattern.split("::"))
        pairs = open_source(where, tmp_path)
        assert pairs.captions() == [f"caption {number}" for number in numbers]
        for i, number in enumerate(numbers):
            assert_pair(pairs.pair(i), number)


def test_members_of_a_sample_need_not_be_neighbours(tmp_path: Path) -> None:
    members = samples(3, 1, 2)
    scattered = [
        ("./", b""),
        *[(f"./x/{name}", data) for name, data in members[::2] + members[::-2]],
    ]
    pairs = open_source(write_tar(tmp_path / "a.tar", scattered), tmp_path)
    for i, number in enumerate([3, 1, 2]):
        assert_pair(pairs.pair(i), number)


def test_a_file_that_exists_is_meant_literally(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a[1]{2}.tar", samples(4))
    assert expand_pattern(str(path)) == [path]


def test_long_names_and_a_pax_header(tmp_path: Path) -> None:
    key = "ü" * 150
    pairs = open_source(
        write_tar(tmp_path / "a.tar", [(f"{key}.png", png(1)), (f"{key}.txt", b"caption 1")]),
        tmp_path,
    )
    assert_pair(pairs.pair(0), 1)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("x.png", png(0))], "no caption"),
        ([("x.png", png(0)), ("x.txt", b" \n")], "no caption"),
        ([("x.png", png(0)), ("x.json", b'{"caption": null}')], "no caption"),
        ([("x.png", png(0)), ("x.json", b'["caption"]')], "no caption"),
        ([("x.png", png(0)), ("x.json", b'{"caption": "cut')], "unreadable caption"),
        ([("x.png", png(0)), ("x.json", b'{"caption": "\\ud800"}')], "unreadable caption"),
        ([("x.png", png(0)), ("x.json", b"[" * 100_000)], "unreadable caption"),
        ([("x.png", png(0)), ("x.txt", b"\xff\xfe")], "unreadable caption"),
        ([("x.txt", b"words")], "no image"),
        ([("x.seg.png", png(0)), ("x.txt", b"words")], "no image"),
        ([("00001.png", png(0))], "repeated name"),
    ],
)
def test_skips_are_counted(tmp_path: Path, members: Members, reason: str) -> None:
    path = write_tar(
        tmp_path / "a.tar",
        [*samples(1), *members, *samples(2), ("._x.png", b""), ("notes.md", b"")],
    )
    for _ in range(2):  # scanned, then from the cache
        pairs = open_source(path, tmp_path)
        assert pairs.skipped == {reason: 1}
        assert f"1 {reason}" in pairs.describe()
        assert len(pairs) == 2
        assert_pair(pairs.pair(1), 2)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"nothere\.tar: no such file"):
        open_source(tmp_path / "nothere.tar", tmp_path)
    write_tar(tmp_path / "0.tar", samples(0))
    with pytest.raises(SteeringError, match=r"1\.tar: no such file"):
        open_source(tmp_path / "{0..1}.tar", tmp_path)
    with pytest.raises(SteeringError, match=r"x-\*\.tar': matches no file"):
        open_source(tmp_path / "x-*.tar", tmp_path)
    with pytest.raises(SteeringError, match=r"is a folder; expected tar files"):
        open_source(tmp_path, tmp_path)
    with pytest.raises(SteeringError, match=r"Unbalanced braces"):
        open_source(tmp_path / "{0..1.tar", tmp_path)
    with pytest.raises(SteeringError, match=r"shard pattern ''"):
        open_source("", tmp_path)


@pytest.mark.parametrize("data", [b"", b"hello", b"hello" * 1000])
def test_not_a_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SteeringError, match=r"a\.tar: not a plain, uncompressed tar"):
        open_source(tmp_path / "a.tar", tmp_path)


def test_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("x.png"))
    with pytest.raises(SteeringError, match=r"a\.tar: not a plain, uncompressed tar"):
        open_source(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("members", [[], [("README.md", b"hello"), ("x.cls", b"3")]])
def test_no_samples(tmp_path: Path, members: Members) -> None:
    good, empty = write_tar(tmp_path / "a.tar", samples(1)), write_tar(tmp_path / "b.tar", members)
    with pytest.raises(SteeringError, match=r"b\.tar: no samples"):
        open_source(f"{good}::{empty}", tmp_path)


def test_no_usable_sample(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("x.png", png(0)), ("y.png", png(1)), ("z.txt", b"words")]
    )
    with pytest.raises(
        SteeringError, match=r"a\.tar: no sample has both .* 2 no caption, 1 no image"
    ):
        open_source(path, tmp_path)


# The last member's header is at `start`, its 700 bytes from start + 512, padding from start + 1212
# to start + 1536.
@pytest.mark.parametrize(
    "cut", [-512, -511, -212, 0, 1, 100, 511, 512, 513, 1000, 1211, 1212, 1300, 1535, 1536, 1700]
)
def test_a_tar_cut_short_is_noticed(tmp_path: Path, cut: int) -> None:
    path = write_tar(tmp_path / "a.tar", [*samples(1, 2), ("3.png", png(3)), ("3.txt", b"x" * 700)])
    with tarfile.open(path) as tar:
        start = tar.getmember("3.txt").offset
    path.write_bytes(path.read_bytes()[: start + cut])
    with pytest.raises(SteeringError, match=r"a\.tar: the tar is cut short"):
        open_source(path, tmp_path)
    assert not list((tmp_path / "cache").glob("*"))


def test_a_single_member_cut_short_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("3.txt", b"x" * 700)])
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(SteeringError, match=r"a\.tar: the tar is cut short"):
        open_source(path, tmp_path)


def test_a_damaged_header_and_joined_tars_are_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    with tarfile.open(path) as tar:
        start = tar.getmember("00002.png").offset
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + b"garbage" + whole[start + 7 :])
    with pytest.raises(SteeringError, match=rf"a\.tar: the tar is damaged, .* at byte {start}"):
        open_source(path, tmp_path)
    path.write_bytes(whole + whole)
    with pytest.raises(SteeringError, match=r"a\.tar: the tar is damaged, or several in one"):
        open_source(path, tmp_path)


def test_cache_saves_the_scan_until_the_shard_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned: list[Path] = []
    scan = shards._scan

    def spy(path: Path) -> shards._Index:
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(shards, "_scan", spy)
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    first, second = open_source(path, tmp_path), open_source(path, tmp_path)
    assert scanned == [path]
    assert first.fingerprint() == second.fingerprint()
    assert_pair(second.pair(1), 2)
    assert [entry.suffix for entry in (tmp_path / "cache").iterdir()] == [".npz"]
    write_tar(path, samples(3, 4))  # the same size
    os.utime(path, ns=(0, 0))
    assert_pair(open_source(path, tmp_path).pair(0), 3)
    assert scanned == [path, path]


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "flipped", "other", "pickle"])
def test_a_broken_cache_entry_is_rebuilt(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    fingerprint = open_source(path, tmp_path).fingerprint()
    (entry,) = (tmp_path / "cache").iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"00002")] ^= 1
    other = io.BytesIO()
    np.savez(other, keys=np.zeros(2))
    broken = {
        "empty": b"",
        "garbage": b"garbage" * 99,
        "half": whole[: len(whole) // 2],
        "flipped": bytes(flipped),
        "other": other.getvalue(),
        "pickle": pickle.dumps([1]),
    }
    entry.write_bytes(broken[damage])
    pairs = open_source(path, tmp_path)
    assert_pair(pairs.pair(1), 2)
    assert pairs.fingerprint() == fingerprint
    assert "scanning the shard again" in caplog.text
    assert entry.read_bytes() == whole


def test_works_without_a_writable_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert_pair(open_source(write_tar(tmp_path / "a.tar", samples(1)), tmp_path).pair(0), 1)
    assert "cannot be cached" in caplog.text


def test_a_shard_that_changes_or_goes_after_indexing_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(1, 2))
    pairs = open_source(path, tmp_path)
    write_tar(path, samples(1))
    with pytest.raises(SteeringError, match=r"a\.tar: has changed since it was indexed"):
        pairs.pair(0)
    path.unlink()
    with pytest.raises(SteeringError, match=r"a\.tar: cannot be opened any more"):
        pairs.caption(0)


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", png(1)[:-40], b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"],
)
def test_an_undecodable_image_says_where_and_why(tmp_path: Path, data: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [*samples(1), ("bad.png", data), ("bad.txt", b"words")])
    pairs = open_source(path, tmp_path)
    assert pairs.caption(1) == "words"
    with pytest.raises(Unreadable, match=r"a\.tar: bad: cannot decode") as caught:
        pairs.pair(1)
    assert caught.value.where == f"{path}: bad"
    assert "cannot decode the image" in caught.value.why


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK"])
def test_every_mode_becomes_rgb_and_transparent_becomes_white(tmp_path: Path, mode: str) -> None:
    stream = io.BytesIO()
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    image.convert(mode).save(stream, "TIFF" if mode == "CMYK" else "PNG")
    pairs = open_source(
        write_tar(tmp_path / "a.tar", [("0.png", stream.getvalue()), ("0.txt", b"x")]), tmp_path
    )
    found = pairs.pair(0)[0]
    assert found.mode == "RGB"
    assert found.getpixel((0, 0)) == (0, 0, 0)
    if mode in ("RGBA", "LA", "P"):
        assert found.getpixel((1, 0)) == (255, 255, 255)


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    def fingerprint(*tars: Members) -> str:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for i, members in enumerate(tars):
            write_tar(folder / f"{i}.tar", members)
        return open_source(folder / "*.tar", tmp_path).fingerprint()

    base = fingerprint(samples(1, 2, 3))
    assert len(base) == 64
    assert int(base, 16)
    # Another place, another cut into shards, something skipped beside it: the same pairs.
    assert fingerprint(samples(1, 2, 3)) == base
    assert fingerprint(samples(1), samples(2, 3)) == base
    assert fingerprint([*samples(1, 2), ("x.txt", b"words"), *samples(3)]) == base
    others = [
        samples(1, 3, 2),
        samples(1, 2),
        [*samples(1, 2), ("00003.png", png(3)), ("00003.txt", b"caption 4")],
        [*samples(1, 2), ("00003.png", png(3) + b"\0"), ("00003.txt", b"caption 3")],
        [*samples(1, 2), ("00004.png", png(3)), ("00004.txt", b"caption 3")],
    ]
    assert len({base, *map(fingerprint, others)}) == 1 + len(others)


def test_numbers_outside_are_refused(tmp_path: Path) -> None:
    pairs = open_source(write_tar(tmp_path / "a.tar", samples(1, 2)), tmp_path)
    for i in (-1, 2):
        with pytest.raises(IndexError):
            pairs.pair(i)


def test_pickles_small_and_reads_after(tmp_path: Path) -> None:
    pairs = open_source(write_tar(tmp_path / "a.tar", samples(*range(50))), tmp_path)
    assert_pair(pairs.pair(1), 1)  # with the file open
    data = pickle.dumps(pairs)
    assert b"caption 7" not in data
    assert_pair(pickle.loads(data).pair(49), 49)


def test_many_shards_keep_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_open", lru_cache(maxsize=2)(source._open.__wrapped__))
    for n in range(6):
        write_tar(tmp_path / f"{n}.tar", samples(n))
    pairs = open_source(tmp_path / "*.tar", tmp_path)
    before = len(os.listdir("/dev/fd"))
    for n in [0, 1, 2, 3, 4, 5, 0, 3, 5]:
        assert_pair(pairs.pair(n), n)
    assert len(os.listdir("/dev/fd")) - before == 2


@pytest.mark.shared_data
def test_real_emoji_shards(tmp_path: Path) -> None:
    if not (EMOJI / "index.tsv").is_file():
        pytest.skip(f"needs the emoji shards in {EMOJI}")
    with (EMOJI / "index.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, dialect="excel-tab"))
    vendors = "{twemoji-{000..001},noto-{000..001},openmoji-{000..002}}.tar"
    pairs = open_source(EMOJI / vendors, tmp_path)
    assert len(pairs) == 5929
    assert pairs.skipped == {}
    by_key = {row["key"]: row["caption"] for row in rows}
    keys = [key.decode() for _, index in pairs._shards for key in index.keys]
    assert pairs.captions() == [by_key[key] for key in keys]
    assert sorted(keys) == sorted(by_key)
    assert {pairs.pair(i)[0].size for i in range(0, 5929, 97)} == {(64, 64)}
    shutil.copy(EMOJI / "noto-001.tar", tmp_path / "cut.tar")
    os.chmod(tmp_path / "cut.tar", 0o644)
    os.truncate(tmp_path / "cut.tar", 3_000_001)
    with pytest.raises(SteeringError, match=r"cut\.tar: the tar is cut short"):
        open_source(tmp_path / "cut.tar", tmp_path)
