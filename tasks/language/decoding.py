"""Bytes to text: unpacked by suffix, decoded by byte order mark, and refused when it is none."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import io
import lzma
from collections.abc import Callable
from pathlib import Path


def _zstd(data: bytes) -> bytes:
    try:
        module = importlib.import_module("zstandard")
    except ImportError as error:
        raise ValueError("zstd needs zstandard: pip install zstandard") from error
    try:
        return (
            module.ZstdDecompressor()
            .stream_reader(io.BytesIO(data), read_across_frames=True)
            .read()
        )
    except module.ZstdError as error:
        raise ValueError(str(error)) from error


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".lzma": lzma.decompress,
    ".zst": _zstd,
    ".zstd": _zstd,
}
_MAGIC = {
    b"\x1f\x8b": "gzip (.gz)",
    b"\xfd7zXZ\x00": "xz (.xz)",
    b"\x28\xb5\x2f\xfd": "zstd (.zst)",
    b"\x04\x22\x4d\x18": "LZ4",
    b"PK\x03\x04": "a ZIP archive",
    b"PK\x05\x06": "a ZIP archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF-": "PDF",
    b"\x89PNG": "an image",
    b"\xff\xff\xff\xff": "an Arrow stream",
    **{b"BZh%d1AY&SY" % level: "bzip2 (.bz2)" for level in range(1, 10)},
}
_MAGIC_OF_BINARY = {
    b"PAR1": "Parquet (.parquet)",
    b"ARROW1": "Arrow",
    b"SQLite": "a data base",
}  # words of a text, too

# Stands for undecodable bytes until the document that holds them is known: one wherever "replace"
# would write one U+FFFD.
MARK = "\udcff"
_MARKING = "steering.mark"
# Share of undecodable characters beyond which a file is no text: Latin-1 prose has less, other code
# pages have more.
_MOST = 0.3


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


codecs.register_error(_MARKING, _mark)


def decoded(file: Path, packed: str = "") -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 by their byte order mark, which is no text; a
    mark for undecodable bytes.

    Raises:
        ValueError: no text.
    """
    data = file.read_bytes()
    data = PACKED[packed](data) if packed else data
    name = next((name for start, name in _MAGIC.items() if data.startswith(start)), None)
    if name is None and data[257:262] == b"ustar":
        name = "a tar archive"
    if name is None and b"\0" in data:
        name = next(
            (name for start, name in _MAGIC_OF_BINARY.items() if data.startswith(start)), None
        )
    if name is not None:
        raise ValueError(
            f"is {name} inside, which its suffix does not say"
            if "(" in name
            else f"is {name}, no text"
        )
    text = data.decode(_encoding(data), _MARKING)
    if "\0" in text:
        raise ValueError("has NUL bytes: binary, or UTF-16 without a byte order mark")
    wrong = text.count(MARK)
    if wrong > _MOST * len(text):
        raise ValueError(
            f"is no text in UTF-8: {wrong:,} of {len(text):,} characters cannot be decoded"
        )
    return text


def _encoding(data: bytes) -> str:
    if data.startswith(
        (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    ):  # before UTF-16: FF FE begins both
        return "utf-32"
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"


def universal(text: str) -> str:
    """Line ends of all systems as \\n, as Python opens text files."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
