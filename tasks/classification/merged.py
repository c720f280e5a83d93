"""Classes of a source merged into fewer, and made into groups: CIFAR-10's ten into animals and
machines, say, with those that stand before an unusual background as the minority."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steering.errors import SteeringError
from steering.storage import sha256

from .images import Source

Members = Mapping[str, Sequence[str | int]]
"""Name → classes of a source, by name or number."""


class Merged(Source):
    """The examples of a source under other classes or groups.

    Args:
        source: whose they are.
        classes: name → classes of the source, by name or number; empty: its own.
        groups: the same for groups; empty: its own.

    Attributes:
        place: new class number of each class of the source, int64, (classes,).
        group_names: of each group.

    Raises:
        SteeringError: a class of the source is named twice, or not at all, or there is none of that
            name.
    """

    def __init__(
        self,
        source: Source,
        classes: Members,
        groups: Members,
    ) -> None:
        self.source, self.kind = source, source.kind
        own, self.groups, self.group_names = source.classes, source.groups, source.group_names
        self.place, self.classes = np.arange(len(own)), own
        if groups:
            self.groups = places(groups, own, "task.data.group_classes")[source.labels]
            self.group_names = tuple(groups)
        if classes:
            self.place = places(classes, own, "task.data.merge")
            self.classes = [*classes]
        self.labels = self.place[source.labels]

    def image(self, number: int) -> np.ndarray:
        return self.source.image(number)

    def changes(self, number: int) -> list[str]:
        return self.source.changes(number)

    def fingerprint(self) -> str:
        parts = [self.labels.tobytes(), self.groups.tobytes()]
        return sha256(["merged", self.source.fingerprint(), *parts])


def merged(
    train: Source,
    test: Source,
    classes: Members,
    groups: Members,
) -> tuple[Source, Source]:
    """Both parts under merged classes and groups of classes; as they are where neither is given."""
    if not classes and not groups:
        return train, test
    return Merged(train, classes, groups), Merged(test, classes, groups)


def require_members(chosen: Members, key: str) -> None:
    """SteeringError unless there are at least two names (or none), each of some classes."""
    if len(chosen) == 1:
        raise SteeringError(f"{key}: expected at least two names, got one")
    for name, members in chosen.items():
        wrong = [one for one in members if isinstance(one, bool) or not isinstance(one, str | int)]
        if wrong or not members:
            got = repr(wrong[0]) if wrong else "none"
            raise SteeringError(f"{key}.{name}: expected names or numbers of classes, got {got}")


def places(chosen: Members, own: Sequence[str], key: str) -> np.ndarray:
    """Number of the new class of each class of the source, int64, (classes,)."""
    place = np.full(len(own), -1)
    names = [*chosen]
    known = ", ".join(own[:10]) + (", ..." if len(own) > 10 else "")
    for number, (name, members) in enumerate(chosen.items()):
        for member in members:
            found = _number(member, own)
            if found is None:
                raise SteeringError(
                    f"{key}.{name}: there is no class {member}; there are {len(own)}: {known}"
                )
            if place[found] >= 0:
                raise SteeringError(
                    f"{key}: class {own[found]} is in {names[place[found]]} and in {name}; "
                    "expected each once"
                )
            place[found] = number
    if missing := [name for name, number in zip(own, place, strict=True) if number < 0]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SteeringError(
            f"{key}: class {', '.join(missing[:5])}{more} is in none of {', '.join(names)}; "
            "expected each class of the source once"
        )
    return place


def _number(member: str | int, own: Sequence[str]) -> int | None:
    """Of a class that is given by its name, or else by its number."""
    if str(member) in own:
        return own.index(str(member))
    return member if isinstance(member, int) and 0 <= member < len(own) else None
