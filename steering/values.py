"""Values as YAML reads them: which of them a field of a config takes, and how messages show
them."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from itertools import pairwise
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

Fail = Callable[[str, str], NoReturn]
"""Called with the dotted key and the whole message; raises an error that also names the file."""


def fitted(value: Any, hint: Any, path: str, fail: Fail) -> Any:
    """The same value, once it is sure that no conversion to the field's type would change what its
    author meant.

    A bare `no` is a boolean in YAML and a bare 123 a number: where a text is expected both are
    refused, also inside of lists and mappings and as their keys. So is a number for a boolean. Keys
    of `dict[int, ...]` may be written as text, as in `class_shares.8=0.1`.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None or any(type(value) is choice for choice in args):
            return value
        return fitted(
            value, next(choice for choice in args if choice is not type(None)), path, fail
        )
    if origin is dict and isinstance(value, Mapping):
        found = {}
        for key, entry in value.items():
            if args[0] is int and isinstance(key, str) and re.fullmatch(r"-?[0-9]+", key):
                key = int(key)
            if args[0] in (str, int) and type(key) is not args[0]:
                hint = quote_it(key) if args[0] is str else ""
                fail(
                    path,
                    f"{path}: expected keys that are {described(args[0])}, got {shown(key)}{hint}",
                )
            found[key] = fitted(entry, args[1], f"{path}.{key}", fail)
        return found
    if origin in (list, tuple) and isinstance(value, list | tuple):
        return [
            fitted(
                entry,
                args[min(place, len(args) - 1) if args[-1] is not ... else 0],
                f"{path}[{place}]",
                fail,
            )
            for place, entry in enumerate(value)
        ]
    texts_null = hint is str and value is None and path.endswith("]")
    if texts_null or (
        hint is str and not isinstance(value, str | Mapping | list | tuple) and value is not None
    ):
        fail(path, f"{path}: expected str, got {shown(value)}{quote_it(value)}")
    if hint is bool and isinstance(value, int | float) and not isinstance(value, bool):
        fail(path, f"{path}: expected true or false, got {shown(value)}")
    if hint is Any:
        _no_odd_keys(value, path, fail)
    return value


def _no_odd_keys(value: Any, path: str, fail: Fail) -> None:
    """Refuse a bare `no` as a key at any depth of a free mapping."""
    entries = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, entry in entries:
        if isinstance(key, bool):
            fail(
                path, f"{path}: expected a text or a number as key, got {shown(key)}{quote_it(key)}"
            )
        _no_odd_keys(entry, f"{path}.{key}", fail)


def quote_it(value: Any) -> str:
    """What to do about a value that YAML takes for something else than text; "" for text, lists and
    sections."""
    if isinstance(value, bool):
        bare = "yes, on and true" if value else "no, off and false"
        return f"; a bare {bare} are booleans in YAML, so quote it: '{'yes' if value else 'no'}'"
    if isinstance(value, int | float):
        return f"; a bare number is no text in YAML, so quote it: '{value}'"
    return "; a bare ~, null or nothing is null in YAML, so quote it: ''" if value is None else ""


def section_of(hint: Any) -> type | None:
    """The dataclass D of a field typed D or D | None."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next(
        (choice for choice in choices if isinstance(choice, type) and is_dataclass(choice)), None
    )


def described(hint: Any) -> str:
    """A field's type, for a message."""
    if section_of(hint) is not None:
        return "a section"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(hint.__members__)
    name = (
        hint.__name__
        if isinstance(hint, type) and not get_args(hint)
        else str(hint).replace("typing.", "")
    )
    return name.replace("None", "null")


def shown(value: Any) -> str:
    """A value and its type, for a message."""
    return "null" if value is None else f"{value!r} ({type(value).__name__})"


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases, on one line; without their
    source code none."""
    found: dict[str, str] = {}
    for base in (base for base in reversed(cls.__mro__) if is_dataclass(base)):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):
            continue
        for this, below in pairwise(getattr(tree, "body", [])):
            if (
                isinstance(this, ast.AnnAssign)
                and isinstance(this.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                text = getattr(below.value, "value", None)
                if isinstance(text, str):
                    found[this.target.id] = " ".join(text.split())
    return found
