"""Files that survive a crash: atomic writes, checksums, and where caches live."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from steering.reading import user_path


def cache_dir(name: str) -> Path:
    """Folder for things that can be made again: $STEERING_CACHE, else model-steering/ under the
    user's cache folder."""
    base = os.environ.get("STEERING_CACHE")
    if base:
        return user_path(base) / name
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "model-steering" / name


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or
    the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text, in UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256(parts: Iterable[bytes | str]) -> str:
    """Hex digest over parts with their boundaries kept: ("ab", "c") and ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """`file_sha256`, remembered in this process for as long as the file's size and time of change
    stay."""
    stat = path.stat()
    return _sha256_of(path.absolute(), stat.st_size, stat.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001  (they tell one state of the file from another)
    return file_sha256(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file that other processes of this machine wait for; the kernel frees it when a
    process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
