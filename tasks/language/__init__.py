"""Language modelling: causal transformers, packed documents of several domains, byte-level or with
any tokenizer."""

from .task import LanguageOptions, LanguageTask

__all__ = ["LanguageOptions", "LanguageTask"]
