"""Caches of the CLIP tests: one folder for the session, so that the glyphs are drawn once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from steering.reading import report_once


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERING_CACHE", str(tmp_path_factory.mktemp("steering-cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def _reports() -> None:
    report_once.cache_clear()


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as the working directory: the configs name their models from there."""
    home = Path(__file__).parents[2]
    monkeypatch.chdir(home)
    return home
