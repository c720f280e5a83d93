"""Webdataset tar shards on local disks, read at random: one scan per tar finds the bytes of every sample.

Layout, as img2dataset writes it: `KEY.jpg` (.jpeg, .png, .webp) beside `KEY.txt`, or `KEY.json` with a "caption".
As in webdataset, the key of a member ends at the first dot of its file name.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from webdataset.shardlists import expand_urls

from steering.errors import SteeringError
from steering.reading import in_words
from steering.storage import write_atomically
from tasks.clip.data.source import (
    NO_CAPTION,
    NO_IMAGE,
    File,
    ImageTextSource,
    Unreadable,
    clean_caption,
    decode_image,
    pair_digest,
    read_at,
)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")  # the first one present is the sample's image
CAPTION_SUFFIXES = ("txt", "json")

_CACHE_FORMAT = 1  # raise it when a scan would find something else
_Span = tuple[int, int]  # offset and size of a member's bytes in its tar
_log = logging.getLogger("steering")


@dataclass(frozen=True)
class _Index:
    """What one scan of a tar finds: its n usable samples in file order, and what it left out. Also the cache's layout.

    `keys` (n,) bytes; `spans` (n, 4) int64: image offset, size, caption offset, size; `is_json` (n,) bool: where the
    caption lies; `digests` (n, 16) uint8; `reasons`, `counts` (r,): the skipped.
    """

    keys: np.ndarray
    spans: np.ndarray
    is_json: np.ndarray
    digests: np.ndarray
    reasons: np.ndarray
    counts: np.ndarray


class ShardSource(ImageTextSource):
    """Pairs in tar shards: shards in pattern order (a glob's in alphabetical order), samples in file order.

    Args:
        pattern: path, glob, braces as in `cc3m/{00000..00331}.tar`, or several of these joined by `::`.
        cache_dir: folder for the index of each shard, made if missing; it is keyed by path, size and time of change.

    Raises:
        SteeringError: no such file, not a tar, cut short, no samples, or no sample with both image and caption.
    """

    def __init__(self, pattern: str, cache_dir: Path | str) -> None:
        self._shards: list[tuple[File, _Index]] = []
        self._skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        for path in expand_pattern(pattern):
            file, index = _indexed(path, Path(cache_dir))
            digest.update(index.digests.tobytes())  # sample by sample: the same for any cut into shards
            self._skipped.update(dict(zip(index.reasons.tolist(), index.counts.tolist(), strict=True)))
            self._shards.append((file, replace(index, digests=index.digests[:0].copy())))
        self._fingerprint = digest.hexdigest()
        self._ends = np.cumsum([len(index.keys) for _, index in self._shards])  # (shards,)
        if len(self) == 0:
            raise SteeringError(
                f"{pattern}: no sample has both an image ({', '.join(IMAGE_SUFFIXES)}) and a caption (txt, or json "
                f"with a 'caption'); skipped: {in_words(self._skipped)}"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def pair(self, i: int) -> tuple[Image.Image, str]:
        file, index, row = self._locate(i)
        offset, size = index.spans[row, :2].tolist()
        where = _where(file, index, row)
        return decode_image(read_at(file, offset, size, where), where), self.caption(i)

    def caption(self, i: int) -> str:
        file, index, row = self._locate(i)
        offset, size = index.spans[row, 2:].tolist()
        where = _where(file, index, row)
        try:
            return _caption(read_at(file, offset, size, where), bool(index.is_json[row]))
        except ValueError as error:
            raise Unreadable(where, f"the caption is no longer what it was when indexed: {error}") from error

    def captions(self) -> list[str]:
        return [self.caption(i) for i in range(len(self))]

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self._skipped)

    def describe(self) -> str:
        names = [Path(file.path).name for file, _ in self._shards]
        span = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        return f"{len(self):,} pairs in {len(names):,} tar shards ({span}); skipped: {in_words(self._skipped)}"

    def _locate(self, i: int) -> tuple[File, _Index, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        file, index = self._shards[shard]
        return file, index, int(i - self._ends[shard] + len(index.keys))


def expand_pattern(pattern: str) -> list[Path]:
    """The files that a shard pattern names, in its order; one named twice comes twice. Raises SteeringError if none."""
    paths: list[Path] = []
    for part in pattern.split("::"):
        try:
            # A path that is there is meant as it stands, whatever brackets it has.
            names = [part] if os.path.exists(part) else expand_urls(part)
        except (ValueError, AssertionError) as error:  # unbalanced braces; an unset ${WDS_...}
            raise SteeringError(f"shard pattern {part!r}: {error}") from error
        for name in names:
            found = [name] if os.path.exists(name) or not has_magic(name) else sorted(glob(name, recursive=True))
            if not found or not name:
                raise SteeringError(f"shard pattern {name!r}: matches no file (working directory: {Path.cwd()})")
            paths += [Path(path) for path in found]
    for path in paths:
        if path.is_dir():
            raise SteeringError(f"{path}: is a folder; expected tar files, perhaps {str(path / '*.tar')!r}")
        if not path.is_file():
            raise SteeringError(f"{path}: no such file; expected a webdataset tar shard on a local disk")
    return paths


def _where(file: File, index: _Index, row: int) -> str:
    return f"{file.path}: {index.keys[row].decode(errors='replace')}"


def _caption(data: bytes, is_json: bool) -> str:
    """The caption in a member, "" for none or a blank one. Raises ValueError if the bytes are no UTF-8 or no JSON."""
    text = data.decode("utf-8-sig")
    if is_json:
        try:
            record = json.loads(text)
        except RecursionError as error:
            raise ValueError("JSON nested too deep") from error
        caption = record.get("caption") if isinstance(record, dict) else None
        text = caption if isinstance(caption, str) else ""
        text.encode()  # JSON can spell half a surrogate pair, which no tokenizer takes
    return clean_caption(text)


def _indexed(path: Path, cache_dir: Path) -> tuple[File, _Index]:
    """The index of one shard, from the cache if that has it."""
    stat = path.stat()
    file = File(str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    name = hashlib.sha256(f"{_CACHE_FORMAT} {file.size} {file.mtime_ns} {file.path}".encode(errors="surrogateescape"))
    entry = cache_dir / f"{name.hexdigest()[:32]}.npz"
    index = _load(entry)
    if index is None:
        index = _scan(path)
        _save(index, entry)
    return file, index


def _load(entry: Path) -> _Index | None:
    if not entry.exists():
        return None
    try:
        # Opened here, because numpy would leave a broken file open.
        with entry.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return _Index(**{field.name: arrays[field.name] for field in fields(_Index)})
    except Exception as error:  # whatever is wrong with it, a scan makes it anew
        _log.warning("%s: cannot use this cached index (%s); scanning the shard again", entry, error)
        return None


def _save(index: _Index, entry: Path) -> None:
    """Keep an index; a cache that cannot be written costs the next run another scan, nothing else."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:  # given a path, numpy would lengthen it
            np.savez(stream, allow_pickle=False, **vars(index))

    try:
        write_atomically(entry, write)
    except OSError as error:
        _log.warning("%s: the index of a shard cannot be cached: %s", entry.parent, error)


def _scan(path: Path) -> _Index:
    """Read a tar's headers and captions. Raises SteeringError if it is broken or holds no sample at all."""
    found: list[tuple[bytes, tuple[int, int, int, int], bool, bytes]] = []
    with path.open("rb") as stream:
        samples, skipped = _samples(path, stream)
        for key, members in samples.items():
            image = next((members[suffix] for suffix in IMAGE_SUFFIXES if suffix in members), None)
            kind = next((suffix for suffix in CAPTION_SUFFIXES if suffix in members), None)
            if image is None or kind is None:
                skipped[NO_IMAGE if image is None else NO_CAPTION] += 1
                continue
            offset, size = members[kind]
            try:
                caption = _caption(os.pread(stream.fileno(), size, offset), kind == "json")
            except ValueError:
                skipped["unreadable caption"] += 1
                continue
            if not caption:
                skipped[NO_CAPTION] += 1
                continue
            name = key.encode(errors="surrogateescape")
            found.append((name, (*image, offset, size), kind == "json", pair_digest(name, image[1], caption)))
    return _Index(
        keys=np.array([name for name, *_ in found], dtype=np.bytes_),
        spans=np.array([spans for _, spans, *_ in found], dtype=np.int64).reshape(-1, 4),
        is_json=np.array([is_json for _, _, is_json, _ in found], dtype=bool),
        digests=np.frombuffer(b"".join(digest for *_, digest in found), dtype=np.uint8).reshape(-1, 16),
        reasons=np.array(list(skipped), dtype=np.str_),
        counts=np.array(list(skipped.values()), dtype=np.int64),
    )


def _samples(path: Path, stream: BinaryIO) -> tuple[dict[str, dict[str, _Span]], Counter[str]]:
    """Image and caption members by key, then by suffix; a name that comes twice counts as skipped the second time."""
    samples: dict[str, dict[str, _Span]] = {}
    skipped: Counter[str] = Counter()
    for member in _members(path, stream):
        folder, name = posixpath.split(posixpath.normpath(member.name))
        stem, dot, suffix = name.partition(".")
        suffix = suffix.lower()
        if not (stem and dot and suffix in IMAGE_SUFFIXES + CAPTION_SUFFIXES and member.isreg()) or member.issparse():
            continue
        sample = samples.setdefault(posixpath.join(folder, stem), {})
        if suffix in sample:
            skipped["repeated name"] += 1
        else:
            sample[suffix] = (member.offset_data, member.size)
    if not samples:
        raise SteeringError(f"{path}: no samples; expected members like KEY.jpg with KEY.txt or KEY.json")
    return samples, skipped


def _members(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Headers in file order. Raises SteeringError unless the tar is whole, down to its end-of-archive mark."""
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
            raise SteeringError(f"{path}: the tar is cut short or damaged near byte {tar.offset}: {error}") from error
        # tarfile takes a missing or a broken header for the end; a whole archive ends in blocks of zeros.
        stream.seek(tar.offset)
        rest = stream.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE:
        raise SteeringError(f"{path}: the tar is cut short: its end-of-archive mark is missing at byte {tar.offset}")
    if rest.strip(b"\0"):
        raise SteeringError(f"{path}: the tar is damaged, or several in one: no header but data at byte {tar.offset}")
