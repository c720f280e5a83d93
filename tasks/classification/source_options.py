"""A source's own section, `task.data.options`, as its dataclass of options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from steering.errors import SteeringError

T = TypeVar("T")


def read_options(cls: type[T], options: Mapping[str, Any]) -> T:
    """The options as the dataclass has them.

    Raises:
        SteeringError: an option that it does not have, or what it raises itself.
    """
    try:
        return cls(**options)
    except TypeError as error:
        raise SteeringError(f"task.data.options: {str(error).partition('() ')[2]}") from None
