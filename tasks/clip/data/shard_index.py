"""The index of one tar shard: which members make a sample, where their bytes lie, and what was left
out and why.

The name of a member is split at its last dot, so `a.b.jpg` and `a.b.txt` are a pair. Where the name
has one dot this is webdataset's own rule (split at the first). Where it has more, webdataset sees a
further field of sample `a`: `k.seg.png` beside `k.jpg` and `k.txt` is no pair here either, as it
has no caption of its own name; it is counted.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from steering.errors import SteeringError

from ...image_folders import is_hidden_file, is_junk_folder
from ...pictures import SUFFIXES as IMAGE_SUFFIXES  # the first one present is the sample's image
from .source import NO_CAPTION, NO_IMAGE, clean_caption, pair_digest

CAPTION_SUFFIXES = ("txt", "json")
CACHE_FORMAT = 2  # raise it when a scan would find something else

# Images and captions that are not read: they are counted, not passed over.
_FOREIGN = (
    "avif",
    "heic",
    "heif",
    "jxl",
    "jp2",
    "j2k",
    "svg",
    "psd",
    "ico",
    "tga",
    "pfm",
    "exr",
    "dng",
    "raw",
)
_PACKED = ("gz", "bz2", "xz", "zst", "zip")
_Span = tuple[int, int]  # offset and size of a member's bytes in its tar


@dataclass(frozen=True)
class Index:
    """What one scan of a tar finds: its n usable samples in file order, and what it left out. Also
    the cache's layout.

    `keys` (n,) bytes; `spans` (n, 4) int64: image offset, size, caption offset, size; `is_json`
    (n,) bool: where the caption lies; `digests` (n, 16) uint8; `reasons`, `counts` (r,): the
    skipped; `hidden` (): what an operating system has put between the samples, such as `._0.jpg`.
    """

    keys: np.ndarray
    spans: np.ndarray
    is_json: np.ndarray
    digests: np.ndarray
    reasons: np.ndarray
    counts: np.ndarray
    hidden: np.ndarray


@dataclass
class _Found:
    """Image and caption members by key, then by suffix; what no sample can use; and the number of
    hidden files."""

    samples: dict[str, dict[str, _Span]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)  # key -> why a member of it cannot be used
    skipped: Counter[str] = field(default_factory=Counter)
    hidden: int = 0


class NotText(ValueError):  # noqa: N818 (the name says it)
    """A JSON "caption" that is a number, a list, ...: to write it out would make up a caption."""


def read_caption(data: bytes, is_json: bool) -> str:
    """The caption in a member, "" for none or a blank one.

    Raises:
        NotText: the JSON has a caption, and it is no text.
        ValueError: the bytes are no UTF-8 or no JSON.
    """
    text = data.decode("utf-8-sig")
    if is_json:
        try:
            record = json.loads(text)
        except RecursionError as error:
            raise ValueError("JSON nested too deep") from error
        caption = record.get("caption") if isinstance(record, dict) else None
        if caption is not None and not isinstance(caption, str):
            raise NotText(f"it is no text, but {type(caption).__name__}")
        text = caption or ""
        text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
    return clean_caption(text)


def scan(path: Path) -> Index:
    """Read a tar's headers and captions. Raises SteeringError if it is broken or holds no sample at
    all."""
    rows: list[tuple[bytes, tuple[int, int, int, int], bool, bytes]] = []
    images_alone: Counter[str] = Counter()  # by what webdataset takes for the sample's key
    captions_alone: Counter[str] = Counter()
    with path.open("rb") as stream:
        found = _samples(path, stream)
        for key, members in found.samples.items():
            images = [members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members]
            kind = next((suffix for suffix in CAPTION_SUFFIXES if suffix in members), None)
            if not images or kind is None:
                folder, name = posixpath.split(key)
                further = (
                    not images and kind == "json" and "." in name
                )  # `k.meta.json`: seldom a caption
                # What is odd is counted already.
                if key not in found.odd and (
                    not further or _holds_caption(stream, members["json"])
                ):
                    (images_alone if images else captions_alone)[
                        f"{folder}/{name.partition('.')[0]}"
                    ] += 1
                continue
            offset, size = members[kind]
            try:
                caption = read_caption(os.pread(stream.fileno(), size, offset), kind == "json")
            except NotText:
                found.skipped["caption that is no text"] += 1
                continue
            except ValueError:
                found.skipped["unreadable caption"] += 1
                continue
            if not caption:
                found.skipped[NO_CAPTION] += 1
                continue
            if len(images) > 1:
                found.skipped["further image of one name"] += len(images) - 1
            raw = key.encode(errors="surrogateescape")
            rows.append(
                (
                    raw,
                    (*images[0], offset, size),
                    kind == "json",
                    pair_digest(raw, images[0][1], caption),
                )
            )
    # `k.seg.png` and `k.txt` are one sample that lacks something, not two.
    found.skipped[NO_CAPTION] += (images_alone - captions_alone).total()
    found.skipped[NO_IMAGE] += captions_alone.total()
    found.skipped = +found.skipped
    return Index(
        keys=np.array([name for name, *_ in rows], dtype=np.bytes_),
        spans=np.array([spans for _, spans, *_ in rows], dtype=np.int64).reshape(-1, 4),
        is_json=np.array([is_json for _, _, is_json, _ in rows], dtype=bool),
        digests=np.frombuffer(b"".join(digest for *_, digest in rows), dtype=np.uint8).reshape(
            -1, 16
        ),
        reasons=np.array(list(found.skipped), dtype=np.str_),
        counts=np.array(list(found.skipped.values()), dtype=np.int64),
        hidden=np.array(found.hidden, dtype=np.int64),
    )


def _holds_caption(stream: BinaryIO, span: _Span) -> bool:
    try:
        return read_caption(os.pread(stream.fileno(), span[1], span[0]), True) != ""
    except ValueError:
        return False


def _samples(path: Path, stream: BinaryIO) -> _Found:
    """Members by key and suffix; a name that comes twice counts as skipped the second time."""
    found = _Found()
    for member in _members(path, stream):
        if member.isdir():
            continue
        folder, name = posixpath.split(posixpath.normpath(member.name))
        if is_hidden_file(name) or any(is_junk_folder(part) for part in folder.split("/")):
            found.hidden += 1
            continue
        key, suffix, why = _split(name)
        if not suffix:
            continue
        if not member.isreg() or member.issparse():
            why = "link or sparse file"
        key = posixpath.join(folder, key)
        if why is not None:
            found.odd.setdefault(key, why)
        elif suffix in (sample := found.samples.setdefault(key, {})):
            found.skipped["repeated name"] += 1
        else:
            sample[suffix] = (member.offset_data, member.size)
    found.skipped.update(found.odd.values())
    if not found.samples:
        raise SteeringError(
            f"{path}: no samples; expected members like KEY.jpg with KEY.txt or KEY.json"
        )
    return found


def _split(name: str) -> tuple[str, str, str | None]:
    """Key and suffix of a member's name, and why it is not read; the suffix is "" if it is neither
    image nor caption."""
    stem, _, suffix = name.rpartition(".")
    suffix, known = suffix.lower(), IMAGE_SUFFIXES + CAPTION_SUFFIXES
    if stem and suffix in known:
        return stem, suffix, None
    if stem and suffix in _FOREIGN:
        return stem, suffix, "image in another format"
    inner, _, before = stem.rpartition(".")
    if inner and suffix in _PACKED and before.lower() in known:
        return inner, suffix, "compressed by itself"
    return stem, "", None


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers in file order. Raises SteeringError unless the tar is whole, down to its
    end-of-archive mark."""
    try:
        tar = tarfile.TarFile(fileobj=stream)
    except (tarfile.TarError, ValueError) as error:
        raise SteeringError(f"{path}: not a plain, uncompressed tar file: {error}") from error
    with tar:
        try:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                yield member
        except (tarfile.TarError, ValueError) as error:
            raise SteeringError(
                f"{path}: the tar is cut short or damaged near byte {tar.offset}: {error}"
            ) from error
        # tarfile takes a missing or a broken header for the end; a whole archive ends in blocks of
        # zeros.
        stream.seek(tar.offset)
        rest = stream.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE:
        raise SteeringError(
            f"{path}: the tar is cut short: its end-of-archive mark is missing at byte {tar.offset}"
        )
    if rest.strip(b"\0"):
        raise SteeringError(
            f"{path}: the tar is damaged, or several in one: no header but data at byte {tar.offset}"
        )
