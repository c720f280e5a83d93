"""Studies: many runs and one report. A study says which runs it wants and what the finished ones
show; it never trains.

    @study("sweep", SweepOptions)
    class Sweep:
        '''One line for `steering study --help`.'''

        def __init__(self, options): ...
        def wanted(self, base, done): ...     # asks; those that are done already may be among them
        def report(self, done, title): ...    # pure: records in, tables and figures out

A study is found by its name, as an entry point of the group "steering.studies", or as
"path/to/file.py:name". A module that defines one imports torch or the config only inside `wanted`:
`steering report` draws it where neither is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from steering.analysis.page import Report
from steering.errors import SteeringError
from steering.plugins import installed, is_plugin, load_file, load_module
from steering.runs.record import RunRecord

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

_OURS = {
    "activation": "steering.studies.activation",
    "audit": "steering.studies.audit",
    "calibration": "steering.studies.calibration",
    "compare": "steering.studies.compare",
    "gallery": "steering.studies.gallery",
    "plane": "steering.studies.plane",
    "population": "steering.studies.population",
    "recipes": "steering.studies.recipes",
    "scaling": "steering.studies.scaling",
    "tuned": "steering.studies.tuned",
    "weak_to_strong": "steering.studies.weak_to_strong",
}


class Study(Protocol):
    """The contract; `options` is an instance of the dataclass that the study was registered
    with."""

    def __init__(self, options: Any) -> None: ...

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        """The runs that the study wants, given the finished ones among those that it asked for, in
        the order of asking.

        It may name all of them each time or only new ones, and it may ask in rounds: it is called
        again when all are done, and the study ends when it names nothing new.
        """

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        """What the records show: a pure function of them."""


@dataclass(frozen=True)
class Entry:
    """A registered study."""

    name: str
    options: type
    make: Callable[[Any], Study]
    summary: str


_REGISTRY: dict[str, Entry] = {}


def study(name: str, options: type) -> Callable[[type], type]:
    """Register a class as a study.

    Args:
        options: dataclass of its options, each with a default: the section `studies: {NAME: ...}`
            of a config. A method `for_config(base)` of it, if there is one, returns the options with
            what is left to the config filled in; the study's page is drawn again from these.
    """

    def add(cls: type) -> type:
        entry = Entry(name, options, cls, (cls.__doc__ or "").strip().partition("\n")[0])
        if (
            name in _REGISTRY and _REGISTRY[name].make.__module__ != cls.__module__
        ):  # a notebook's cell may run again
            raise ValueError(f"a study named {name!r} is registered already")
        cls.study_entry = entry  # type: ignore[attr-defined]
        if not is_plugin(
            cls.__module__
        ):  # a file's studies are found by the file, so two files may use one name
            _REGISTRY[name] = entry
        return cls

    return add


def find_study(name: str) -> Entry:
    """The study of that name. Raises SteeringError, with the known ones, when there is none."""
    where, colon, registered_as = name.rpartition(":")
    if colon:
        module = (load_file if where.endswith(".py") else load_module)(where, "study")
        found = [
            getattr(one, "study_entry", None)
            for one in vars(module).values()
            if isinstance(one, type)
        ]
        for entry in found:
            if isinstance(entry, Entry) and entry.name == registered_as:
                return entry
        raise SteeringError(f"study: {where} registers no study {registered_as!r}")
    if name in _OURS:
        import_module(_OURS[name])
    elif name not in _REGISTRY and name in installed("steering.studies"):
        installed("steering.studies")[name].load()
    if name not in _REGISTRY:
        known = sorted({*_OURS, *installed("steering.studies")})
        raise SteeringError(
            f"study: no study {name!r}; known: {', '.join(known)}; or give 'file.py:name'"
        )
    return _REGISTRY[name]


def known_studies() -> dict[str, Entry]:
    """Ours and those that are installed, by name."""
    names = sorted({*_OURS, *installed("steering.studies")})
    return {name: find_study(name) for name in names}
