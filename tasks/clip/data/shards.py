"""Webdataset tar shards on local disks, read at random: one scan per tar finds the bytes of every
sample.

Layout, as img2dataset writes it: `KEY.jpg` (or another suffix of `tasks.pictures`) beside
`KEY.txt`, or `KEY.json` with a "caption". What makes a sample is said in `shard_index.py`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Hashable
from dataclasses import fields, replace
from glob import glob, has_magic
from pathlib import Path

import numpy as np
from PIL import Image

from steering.errors import SteeringError
from steering.extras import require
from steering.reading import in_words, user_path
from steering.storage import write_atomically

from .shard_index import CACHE_FORMAT, IMAGE_SUFFIXES, read_caption
from .shard_index import Index as _Index
from .shard_index import scan as _scan
from .source import File, ImageTextSource, Unreadable, decode_image, read_at

_log = logging.getLogger("steering")


class ShardSource(ImageTextSource):
    """Pairs in tar shards: shards in pattern order (a glob's in alphabetical order), samples in
    file order.

    Args:
        pattern: path, glob, braces as in `cc3m/{00000..00331}.tar`, or several of these joined by
            `::`.
        cache_dir: folder for the index of each shard, made if missing; it is keyed by path, size
            and time of change.

    Raises:
        SteeringError: no such file, not a tar, cut short, no samples, or no sample with both image
            and caption.
    """

    def __init__(self, pattern: str, cache_dir: Path | str) -> None:
        self._shards: list[tuple[File, _Index]] = []
        self._skipped: Counter[str] = Counter()
        digest = hashlib.sha256()
        self._hidden = 0
        for path in expand_pattern(pattern):
            file, index = _indexed(path, user_path(cache_dir))
            digest.update(
                index.digests.tobytes()
            )  # sample by sample: the same for any cut into shards
            self._skipped.update(
                dict(zip(index.reasons.tolist(), index.counts.tolist(), strict=True))
            )
            self._hidden += int(index.hidden)
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
        return decode_image(self.image_bytes(i), _where(file, index, row)), self.caption(i)

    def caption(self, i: int) -> str:
        file, index, row = self._locate(i)
        offset, size = index.spans[row, 2:].tolist()
        where = _where(file, index, row)
        try:
            return read_caption(read_at(file, offset, size, where), bool(index.is_json[row]))
        except ValueError as error:
            raise Unreadable(
                where, f"the caption is no longer what it was when indexed: {error}"
            ) from error

    def captions(self) -> list[str]:
        return [self.caption(i) for i in range(len(self))]

    def image_place(self, i: int) -> Hashable:
        file, index, row = self._locate(i)
        return file.path, int(index.spans[row, 0])

    def image_size(self, i: int) -> int:
        _, index, row = self._locate(i)
        return int(index.spans[row, 1])

    def image_bytes(self, i: int) -> bytes:
        file, index, row = self._locate(i)
        offset, size = index.spans[row, :2].tolist()
        return read_at(file, offset, size, _where(file, index, row))

    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def skipped(self) -> dict[str, int]:
        return dict(self._skipped)

    def describe(self) -> str:
        names = [Path(file.path).name for file, _ in self._shards]
        span = names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]}"
        line = f"{len(self):,} pairs in {len(names):,} tar shards ({span}); skipped: {in_words(self._skipped)}"
        return f"{line}; passed over: {self._hidden:,} hidden files" if self._hidden else line

    def _locate(self, i: int) -> tuple[File, _Index, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"pair {i} of {len(self)}")
        shard = int(np.searchsorted(self._ends, i, side="right"))
        file, index = self._shards[shard]
        return file, index, int(i - self._ends[shard] + len(index.keys))


def expand_pattern(pattern: str) -> list[Path]:
    """The files that a shard pattern names, in its order; one named twice comes twice. Raises
    SteeringError if none."""
    # Here, as it takes a second.
    shardlists = require("clip", "webdataset.shardlists", f"shard pattern {pattern!r}")
    paths: list[Path] = []
    for part in [pattern] if os.path.exists(_at_home(pattern)) else pattern.split("::"):
        try:
            # A path that is there is meant as it stands, whatever brackets it has.
            names = [part] if os.path.exists(_at_home(part)) else shardlists.expand_urls(part)
        except (ValueError, AssertionError) as error:  # unbalanced braces; an unset ${WDS_...}
            raise SteeringError(f"shard pattern {part!r}: {error}") from error
        for name in map(_at_home, names):
            found = (
                [name]
                if os.path.exists(name) or not has_magic(name)
                else sorted(glob(name, recursive=True))
            )
            if not found or not name:
                raise SteeringError(
                    f"shard pattern {name!r}: matches no file (working directory: {Path.cwd()})"
                )
            paths += [Path(path) for path in found]
    for path in paths:
        if path.is_dir():
            raise SteeringError(
                f"{path}: is a folder; expected tar files, perhaps {str(path / '*.tar')!r}"
            )
        if not path.is_file():
            raise SteeringError(
                f"{path}: no such file; expected a webdataset tar shard on a local disk"
            )
    return paths


def _at_home(name: str) -> str:
    """A leading ~ replaced; other names as they stand, even an empty one."""
    return str(user_path(name)) if name.startswith("~") else name


def _where(file: File, index: _Index, row: int) -> str:
    return f"{file.path}: {index.keys[row].decode(errors='replace')}"


def _indexed(path: Path, cache_dir: Path) -> tuple[File, _Index]:
    """The index of one shard, from the cache if that has it."""
    stat = path.stat()
    file = File(str(path.absolute()), stat.st_size, stat.st_mtime_ns)
    name = hashlib.sha256(
        f"{CACHE_FORMAT} {file.size} {file.mtime_ns} {file.path}".encode(errors="surrogateescape")
    )
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
        _log.warning(
            "%s: cannot use this cached index (%s); scanning the shard again", entry, error
        )
        return None


def _save(index: _Index, entry: Path) -> None:
    """Keep an index; a cache that cannot be written costs the next run another scan, nothing
    else."""

    def write(path: Path) -> None:
        with path.open("wb") as stream:  # given a path, numpy would lengthen it
            np.savez(stream, allow_pickle=False, **vars(index))

    try:
        write_atomically(entry, write)
    except OSError as error:
        _log.warning("%s: the index of a shard cannot be cached: %s", entry.parent, error)
