"""Code from outside the package: a module by its dotted name, a file by its path. Loading it
registers what it defines."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import TypeVar

from steering.errors import SteeringError
from steering.extras import explained
from steering.reading import user_path
from steering.storage import sha256

_PREFIX = "steering_plugin_"
T = TypeVar("T")


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer under an entry point group, by name; looked up once, as it
    takes a while."""
    return {point.name: point for point in entry_points(group=group)}


def find_registered(
    name: str, parts: Callable[[], Mapping[str, T]], kind: str, key: str, groups: Sequence[str]
) -> T:
    """What is registered under a name, after its module has been loaded if need be.

    Args:
        name: a registered one, one of an installed package, or where the module is and the name
            that it registers: "package.module:mine", "path/to/file.py:mine".
        parts: what is registered by now, by name.
        kind: what is looked for, for messages: "divergence".
        key: the config key that asks.
        groups: entry points in which installed packages offer more; each names a module that
            registers it.

    Raises:
        SteeringError: nothing of that name; the message lists the known ones.
    """
    if name in parts():
        return parts()[name]
    where, colon, registered_as = name.rpartition(":")
    if colon:
        (load_file if where.endswith(".py") else load_module)(where, key)
        if registered_as not in parts():
            raise SteeringError(f"{key}: {where} registers no {kind} {registered_as!r}")
        return parts()[registered_as]
    for group in groups:
        if name in installed(group):
            installed(group)[name].load()
    if name not in parts():
        offered = {one for group in groups for one in installed(group)}
        known = ", ".join(sorted({*parts(), *offered}))
        raise SteeringError(f"{key}: no {kind} {name!r}; known: {known}; or give 'file.py:name'")
    return parts()[name]


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
