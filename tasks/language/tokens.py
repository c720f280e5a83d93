"""Text to tokens: bytes, or any tokenizer of `transformers`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from steering.errors import SteeringError
from steering.storage import sha256


class Tokens(ABC):
    """A tokenizer.

    Attributes:
        size: number of tokens, the end of a document among them.
        end: the token that follows a document.
    """

    size: int
    end: int

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

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode(errors="replace")

    def fingerprint(self) -> str:
        return "bytes"


class Pretrained(Tokens):
    """A tokenizer of `transformers`, by folder or hub name."""

    def __init__(self, name: str) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise SteeringError(f"task.tokenizer: cannot load {name!r}: {str(error).splitlines()[0]}") from error
        end = self._tokenizer.eos_token_id
        if end is None:
            raise SteeringError(f"task.tokenizer: {name!r} has no end-of-sequence token")
        self.size, self.end = len(self._tokenizer), int(end)

    def encode(self, text: str) -> np.ndarray:
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return np.asarray(found, dtype=np.int64)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens))

    def fingerprint(self) -> str:
        return sha256([f"{token} {number}" for token, number in sorted(self._tokenizer.get_vocab().items())])


def open_tokens(name: str) -> Tokens:
    """ "bytes", or what `AutoTokenizer.from_pretrained` takes."""
    return Bytes() if name == "bytes" and not Path(name).exists() else Pretrained(name)
