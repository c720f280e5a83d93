"""Functions that a study names for work of its own: a round of sampling, a mixture of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from steering.errors import SteeringError
from steering.plugins import load_file, load_module


def find_function(name: str) -> Callable[..., Any]:
    """The function of "package.module:function" or "path/to/file.py:function".

    Raises:
        SteeringError: there is none.
    """
    where, _, attribute = name.rpartition(":")
    module = (load_file if where.endswith(".py") else load_module)(where, "function")
    function = getattr(module, attribute, None)
    if not callable(function):
        raise SteeringError(f"function: {where} has no function {attribute!r}")
    found: Callable[..., Any] = function
    return found
