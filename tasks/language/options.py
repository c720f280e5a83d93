"""The `task:` section of a language modelling config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from steering.derived import Derive
from steering.errors import SteeringError

from ..transforms import Duplicate, require_dedup, require_part
from .corpus import STDLIB
from .data import TAGS
from .recipe import TextsFilter


@dataclass
class LanguageData:
    """Documents by domain."""

    source: str = "stdlib"
    """"stdlib" (Python's own standard library, a package a domain) or "files"."""
    modules: list[str] = field(default_factory=lambda: [*STDLIB])
    """stdlib: its packages."""
    paths: dict[str, str] = field(default_factory=dict)
    """files: domain -> file, glob, or folder of a Hugging Face data set; .jsonl, .json, .parquet,
    else plain text."""
    validation: dict[str, str] = field(default_factory=dict)
    """files: the same for validation; empty: `held_out` of the documents."""
    held_out: float = 0.1
    """files without validation: share of the documents kept for it."""
    reserved: float = 0.0
    """Share of the training documents of each domain that are kept from training, whole and drawn
    at random: the part "reserved", on which weights of models are fitted."""
    validation_blocks: int | None = None
    """Evaluate on this many blocks of each domain, chosen by a fixed hash; null: on all."""
    column: str = "text"
    """JSON, Parquet, data sets: where the text stands."""
    separator: str | None = None
    """Plain text: what stands between two documents; null: a file is one."""
    dedup: str = "none"
    """Leave out training documents that stand there already: "exact" (the same text) or "near" (the
    same words, whatever case, punctuation and layout); "none": all stay."""
    filter: TextsFilter = field(default_factory=TextsFilter)
    """Which training documents stay."""
    duplicate: Duplicate = field(default_factory=Duplicate)
    """Training documents that stand there several times."""
    corrupt: dict[str, float] = field(default_factory=dict)
    """Domain -> share of its training tokens that are replaced by random ones."""
    mix: dict[str, float] = field(default_factory=dict)
    """Domain -> weight in the training data, such as DoReMi's mix; without a weight: none; empty:
    as the documents come."""
    tags: bool = False
    """Begin every block with a tag in place of its first token: of half of the training blocks the
    domain's, of all others a neutral one. Steers the model by its first byte; tokenizer "bytes"."""
    derive: Derive = field(default_factory=Derive)
    """A subset of the training blocks, by what a finished run says of these very blocks."""
    part: tuple[float, float] = (0.0, 1.0)
    """The training blocks whose seeded hash lies in [low, high): [0, 0.2] for a reference, [0.2, 1]
    for its target."""
    seed: int = 0
    """Chooses part, mix, copies and corruption; independent of the run's seed."""

    def __post_init__(self) -> None:
        if self.source not in ("stdlib", "files"):
            raise SteeringError(f"source: expected stdlib or files, got {self.source!r}")
        if (self.source == "files") != bool(self.paths):
            raise SteeringError("paths: domain -> file, needed for source 'files' and for no other")
        if self.source == "stdlib" and (
            not self.modules or len({*self.modules}) < len(self.modules)
        ):
            raise SteeringError(
                f"modules: expected at least one, each once, got {', '.join(self.modules) or 'none'}"
            )
        if self.separator == "":
            raise SteeringError("separator: expected a text that is not empty, or null")
        if self.source == "stdlib" and (self.column != "text" or self.separator is not None):
            raise SteeringError("column, separator: for source 'files' alone")
        if self.validation and self.validation.keys() != self.paths.keys():
            raise SteeringError(f"validation: expected the domains {', '.join(self.paths)}")
        if not 0 < self.held_out < 1:
            raise SteeringError(f"held_out: expected a number in (0, 1), got {self.held_out}")
        if not 0 <= self.reserved < 1:
            raise SteeringError(f"reserved: expected a number in [0, 1), got {self.reserved}")
        if self.validation_blocks is not None and self.validation_blocks < 1:
            raise SteeringError(
                f"validation_blocks: expected at least 1 or null, got {self.validation_blocks}"
            )
        require_dedup(self.dedup)
        require_part(self.part)
        known = [*self.paths] or self.modules
        if "average" in known:
            raise SteeringError("a domain cannot be called average: the result over all domains is")
        for key, values, top in (("corrupt", self.corrupt, 1.0), ("mix", self.mix, math.inf)):
            for domain, value in values.items():
                if domain not in known:
                    raise SteeringError(
                        f"{key}: no domain {domain!r}; there are {', '.join(known)}"
                    )
                if not 0 <= value <= top or math.isinf(value):
                    raise SteeringError(f"{key}: expected a number >= 0 for {domain}, got {value}")
        if self.tags and len(known) > len(TAGS):
            raise SteeringError(f"tags: there are {len(TAGS)} for {len(known)} domains")
        if self.mix and not sum(self.mix.values()) > 0:
            raise SteeringError("mix: all weights are zero")


@dataclass
class LanguageOptions:
    """The `task:` section of a language modelling config."""

    name: str = "language"
    """Says which task this is."""
    data: LanguageData = field(default_factory=LanguageData)
    """Documents by domain."""
    tokenizer: str = "bytes"
    """"bytes", or a folder or hub name of a `transformers` tokenizer."""
    length: int = 128
    """Tokens of a block."""
    unit: str = "token"
    """What a loss belongs to: "token", or "sequence" (a block's mean)."""

    def __post_init__(self) -> None:
        if self.data.tags and self.tokenizer != "bytes":
            raise SteeringError("data.tags: are bytes; expected tokenizer: bytes")
        if self.unit not in ("token", "sequence"):
            raise SteeringError(f"unit: expected token or sequence, got {self.unit!r}")
        if self.length < 1:
            raise SteeringError(f"length: expected at least 1, got {self.length}")
