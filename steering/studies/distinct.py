"""Asks of a study that must be different runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steering.errors import ConfigError

if TYPE_CHECKING:
    from steering.runs.ask import Ask


def require_distinct(asks: Sequence[Ask], section: str, advice: str = "leave one out") -> None:
    """A run has one place in a study, so that two equal asks would leave a hole in its report.

    Args:
        advice: what to do about two that are equal, for the message.

    Raises:
        ConfigError: two asks are the same run; names both.
    """
    seen: dict[str, Ask] = {}
    for ask in asks:
        if ask.key in seen:
            raise ConfigError(
                f"{section}: {seen[ask.key].label} and {ask.label} are the same run; {advice}"
            )
        seen[ask.key] = ask
