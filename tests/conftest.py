"""Settings of the whole suite."""

import os

import pytest

# Before torch is imported: tiny tensors gain nothing from more threads, and idle ones that spin
# slow every test down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """A test is a single process, whatever started pytest."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
