"""Parts that a config chooses by name: divergences, estimators, optimisers, schedules, observers.

A part is a frozen dataclass: its fields are its section's keys, its class the thing itself (a divergence) or
what builds it (an optimiser). One file holds one part, or one family of them:

    @DIVERGENCES.register("cvar")
    @dataclass(frozen=True)
    class CVaR(Divergence):
        level: float

and a section of a config that takes one says `divergence: kl`, `divergence: {name: cvar, level: 0.3}`
or `divergence: my_file.py:mine`. In Python the object itself is given: `CVaR(level=0.3)`. A field of
a dataclass becomes such a section by `chosen(DIVERGENCES, KL())` as its default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, is_dataclass
from typing import Any, Generic, TypeVar

from steering.plugins import find_registered, installed

T = TypeVar("T")
_KEY = "registry"
_SEVERAL = "several"


class Registry(Generic[T]):
    """Dataclasses of one kind, by name.

    Args:
        kind: what they are, for messages: "divergence".
        group: entry points in which installed packages offer further ones; each names a module that
            registers it.
        number: makes a part of a bare number, for kinds that a config may give as one; the part
            keeps it as its `value`.
        also: a registry whose parts count as this kind, too, those from outside included.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        number: Callable[[float], T] | None = None,
        also: Registry[Any] | None = None,
    ) -> None:
        self.kind, self.group, self.number, self.also = kind, group, number, also
        self._parts: dict[str, type[T]] = {}
        self._asked: dict[type[T], str] = {}  # parts from outside: the name that finds them again

    @property
    def a_kind(self) -> str:
        """The kind with its article, for messages."""
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorate a frozen dataclass; ValueError where it is none, or the name is taken."""

        def add(part: type[T]) -> type[T]:
            if not (is_dataclass(part) and vars(part)["__dataclass_params__"].frozen):
                raise ValueError(
                    f"{self.kind} {name!r}: {part.__name__} must be a frozen dataclass"
                )
            if name in self._parts:
                raise ValueError(f"a {self.kind} named {name!r} is registered already")
            self._parts[name] = part
            return part

        return add

    def find(self, name: str, key: str | None = None) -> type[T]:
        """The dataclass of that name.

        Args:
            name: a registered one, one of an installed package, or where the module is and the name
                that it registers: "package.module:mine", "path/to/file.py:mine".
            key: the config key that asks, for messages; None: the kind.

        Raises:
            SteeringError: nothing of that name; the message lists the known ones.
        """
        found = find_registered(name, self.parts, self.kind, key or self.kind, self._groups())
        if ":" in name:
            self._asked[found] = name
        return found

    def name_of(self, part: T) -> str:
        """The name that `find` finds an object's class by; ValueError if it is not registered."""
        for name, cls in self.parts().items():
            if type(part) is cls:
                return self._asked.get(cls, name)
        raise ValueError(f"no {self.kind} is registered for {type(part).__name__}")

    def as_number(self, part: T) -> float | None:
        """The number that would make this very part; None if none does."""
        value = getattr(part, "value", None)
        same = self.number is not None and value is not None and self.number(value) == part
        return value if same else None

    def names(self) -> list[str]:
        """All names that are known so far, sorted."""
        offered = {name for group in self._groups() for name in installed(group)}
        return sorted({*self.parts(), *offered})

    def parts(self) -> Mapping[str, type[T]]:
        """What is registered so far, by name."""
        others = {} if self.also is None else self.also.parts()
        return dict(sorted({**others, **self._parts}.items()))

    def _groups(self) -> list[str]:
        return [self.group, *([] if self.also is None else self.also._groups())]


def chosen(registry: Registry[Any], default: Any) -> Any:
    """A dataclass field that a config fills with a name, or with a section that has a `name`."""
    return field(default=default, metadata={_KEY: registry})


def several(registry: Registry[Any]) -> Any:
    """A dataclass field that a config fills with a list of names, or of sections that have a
    `name`; empty by default."""
    return field(default=(), metadata={_KEY: registry, _SEVERAL: True})


def takes_several(metadata: Mapping[Any, Any]) -> bool:
    """Whether a field is made by `several`, from its metadata."""
    return bool(metadata.get(_SEVERAL))


def registry_of(metadata: Mapping[Any, Any]) -> Registry[Any] | None:
    """The registry of a field made by `chosen` or `several`, from its metadata; None for any other field."""
    found = metadata.get(_KEY)
    return found if isinstance(found, Registry) else None
