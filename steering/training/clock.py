"""The time that training takes, without what looks on."""

from __future__ import annotations

import time


class Clock:
    """Seconds of training; it stands while a run is logged, evaluated or saved."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def go(self) -> None:
        self._since = time.monotonic()

    def stop(self) -> None:
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None
