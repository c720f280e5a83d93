"""Text to tokens: bytes, or any tokenizer of `transformers`."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import numpy as np

from steering.errors import SteeringError
from steering.extras import require
from steering.reading import user_path
from steering.storage import sha256

_HALF = re.compile("[\ud800-\udfff]")
_LOCAL = ("~", "/", "./", "../")


def whole(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair (a cut emoji of a JSON file), which
    no encoding can write."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def folder_or_hub(name: str) -> str:
    """What `from_pretrained` takes for a folder, as people write paths, or a hub name.

    Raises:
        ValueError: a file, or a path that is not there.
    """
    path = user_path(name)
    if path.is_dir():
        return str(path)
    if path.exists():
        raise ValueError(f"{path} is a file; expected a folder of `save_pretrained`, or a hub name")
    if name.startswith(_LOCAL) or name.count("/") > 1 or not name:
        raise ValueError(f"no such folder: {path}")
    return name


def reason(name: str, error: Exception) -> str:
    """The first line of what `from_pretrained` raised, which speaks of the hub alone where a folder
    may have been meant."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    there = user_path(name).exists() or line.startswith("no such folder")
    return line if there else f"no such folder; as a hub name: {line}"


class Tokens(ABC):
    """A tokenizer.

    Attributes:
        size: the largest number of a token + 1; not every number below need be a token's.
        end: the token that follows a document.
        ordinary: numbers of the other tokens, int64, ascending.
    """

    size: int
    end: int
    ordinary: np.ndarray

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int64, (n,), without the end."""

    @abstractmethod
    def decode(self, tokens: list[int]) -> str: ...

    @abstractmethod
    def fingerprint(self) -> str: ...


class Bytes(Tokens):
    """UTF-8 bytes, and 256 for the end of a document."""

    size, end = 257, 256
    ordinary = np.arange(256)

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(whole(text).encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def fingerprint(self) -> str:
        return "bytes"


class Pretrained(Tokens):
    """A tokenizer of `transformers`, by folder or hub name."""

    def __init__(self, name: str) -> None:
        library = require("language", "transformers", f"task.tokenizer: {name}")
        try:
            self._tokenizer = library.AutoTokenizer.from_pretrained(folder_or_hub(name))
        except (
            Exception
        ) as error:  # the library raises plain Exception, and many others, for what it cannot read
            raise SteeringError(
                f"task.tokenizer: cannot load {name!r}: {reason(name, error)}"
            ) from error
        end = self._tokenizer.eos_token_id
        if end is None:
            raise SteeringError(f"task.tokenizer: {name!r} has no end-of-sequence token")
        numbers = np.unique(
            [*self._tokenizer.get_vocab().values(), *self._tokenizer.added_tokens_decoder, int(end)]
        )
        self.size, self.end = int(numbers[-1]) + 1, int(end)
        self.ordinary = numbers[numbers != self.end].astype(np.int64)
        if not len(
            self.ordinary
        ):  # a model's folder without its tokenizer's files loads as one that knows nothing
            raise SteeringError(
                f"task.tokenizer: {name!r} has no token but the end of a document; are its files there?"
            )

    def encode(self, text: str) -> np.ndarray:
        try:
            found = self._tokenizer(whole(text), add_special_tokens=False, verbose=False)[
                "input_ids"
            ]
        except (
            Exception
        ) as error:  # as above: such as a word of no token when there is none for the unknown
            raise SteeringError(f"task.tokenizer: cannot encode {text[:40]!r}: {error}") from error
        return np.asarray(found, dtype=np.int64)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))

    def fingerprint(self) -> str:
        return sha256(
            [f"{token} {number}" for token, number in sorted(self._tokenizer.get_vocab().items())]
        )


def open_tokens(name: str) -> Tokens:
    """ "bytes", or what `AutoTokenizer.from_pretrained` takes."""
    return Bytes() if name == "bytes" and not user_path(name).is_dir() else Pretrained(name)
