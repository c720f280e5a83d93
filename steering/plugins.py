"""Code from outside the package: a module by its dotted name, a file by its path. Loading it
registers what it defines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from steering.errors import SteeringError
from steering.extras import explained
from steering.reading import user_path
from steering.storage import sha256

_PREFIX = "steering_plugin_"


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer under an entry point group, by name; looked up once, as it
    takes a while."""
    return {point.name: point for point in entry_points(group=group)}


def is_plugin(module: str) -> bool:
    """Whether a module is a file that `load_file` has loaded."""
    return module.startswith(_PREFIX)


def load_module(name: str, key: str) -> ModuleType:
    """Import a module; SteeringError, naming the config key that asks for it, when there is
    none."""
    try:
        with explained(f"{key}: {name!r}"):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SteeringError(f"{key}: cannot import {name!r}: {error}") from error


def load_file(file: str, key: str) -> ModuleType:
    """Run a Python file as a module, once; SteeringError, naming the config key that asks for it,
    when there is none."""
    path = user_path(file)
    if not path.is_file():
        raise SteeringError(f"{key}: no such file: {path}")
    name = f"{_PREFIX}{path.stem}_{sha256([str(path.resolve())])[:12]}"
    if name in sys.modules:  # once: two loads would give two classes that do not know each other
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and worker processes look the module up by name
    try:
        with explained(f"{key}: {file}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
