"""Settings of the whole suite."""

import os
import sys

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


@pytest.fixture(autouse=True, scope="module")
def _only_ours():
    """What a file's tests register from outside is gone after them, and its modules are as if never
    loaded: other files list what is registered, and files come in any order."""
    before = {id(parts): {*parts} for parts in _registries()}
    yield
    strangers = set()
    for parts in _registries():
        for name in {*parts} - before.get(id(parts), set()):
            where = getattr(parts[name], "build", parts[name]).__module__
            if not where.startswith(("steering.", "steering_tasks.")):
                del parts[name]
                strangers.add(where)
    for name in [*sys.modules]:
        ours = name == "__main__" or "test" in name  # nobody would load these again
        if name.startswith("steering_plugin_") or (name in strangers and not ours):
            del sys.modules[name]


def _registries():
    """Name → part of every registry whose module has been imported."""
    places = {
        "steering.methods.registry": "_REGISTRY",
        "steering.activation.directions": "DIRECTIONS",
        "steering.training.recipes.recipe": "OPTIMIZERS",
        "steering.training.observers.options": "OBSERVERS",
        "steering.training.decay": "DECAYS",
        "steering.dro.online.strength": "STRENGTHS",
        "steering.dro.online.specs": "ESTIMATORS",
        "steering.dro.divergences.base": "DIVERGENCES",
        "steering.methods.selection": "SELECTORS",
        "steering.schedules": "SCHEDULES",
        "steering_tasks.classification.losses": "LOSSES",
    }
    for module, name in places.items():
        if module in sys.modules:
            found = getattr(sys.modules[module], name)
            yield found if isinstance(found, dict) else found._parts
