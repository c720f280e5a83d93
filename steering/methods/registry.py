"""The registry of methods: a name, a dataclass of options, and a builder, one short file each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from steering.errors import ConfigError, SteeringError
from steering.items import Pairs, Units
from steering.plugins import installed, load_file, load_module
from steering.reading import report_once

UNITS = ("example", "token", "sequence", "pair")
"""What a loss item can belong to: `ReferenceRisk.unit`."""


@dataclass(frozen=True)
class Step:
    """What a method makes of one batch.

    Attributes:
        loss: scalar to descend; averaged over the ranks its gradient is that of the global batch.
        metrics: scalars for the log, detached, () each; a mapping that may compute them when it is
            read (`steering.dro.online.metrics.Metrics`).
        weights: of this process's items, detached; None where they are never written down.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor]
    weights: Tensor | None = None


class Method(nn.Module, ABC):
    """Loss items in, one loss out. Buffers hold its memory, parameters what it learns (a
    temperature).

    The memory may change in train mode with gradients on, and at no other time:
    `steering.dro.online.estimator.learning` tells.

    Attributes:
        uses_reference: whether a reference is loaded at all.
        needs_logits: whether loss items must carry whole distributions, see
            `ReferenceRisk.with_logits`.
        keep: share of the drawn examples that are trained on. Below 1 the loop draws more, scores
            them without gradient, and asks `select`; `forward` then sees the chosen examples alone,
            without a reference.
    """

    uses_reference: bool = False
    needs_logits: bool = False
    keep: float = 1.0

    @abstractmethod
    def forward(self, losses: Units | Pairs) -> Step: ...

    def select(self, losses: Units | Pairs, count: int) -> Tensor:
        """Positions of `count` different examples of this rank's candidates, int64 (count,); only
        if `keep` is below 1.

        Random choices use torch's global generator of the CPU, which checkpoints keep.
        """
        raise NotImplementedError(f"{type(self).__name__} keeps every example")

    def summary(self) -> dict[str, Any]:
        """What a finished run tells beside its metrics, for result.json: plain values, such as
        DoReMi's data mix."""
        return {}

    def without_groups(self, groups: Sequence[int]) -> None:
        """Called once before training with the numbers of the groups that no training example
        belongs to, if there are any.

        They must get no weight from then on. A method that weights groups and has no such function
        is refused for such data.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot leave groups out")

    def logit_scale(self) -> float | None:
        """1/τ of the distributions that a model of pairs has been trained with; None: nobody can
        tell.

        Only asked of pairs, once a run, and on all ranks.
        """
        return None

    def at(self, progress: float) -> None:
        """Called before every step with the share of the run that is done, in [0, 1): schedules
        move."""

    @abstractmethod
    def start_epoch(self, epoch: int) -> None:
        """Called with 0, 1, ... before the first batch of each pass over the data, and again after
        a resume."""


@dataclass(frozen=True)
class Entry:
    """A registered method.

    Attributes:
        options: dataclass of its `method:` section.
        build: (options, num_examples) -> Method; with `groups` also the names of the groups.
        summary: one sentence.
        units: the units whose losses it can reweight or select.
        groups: whether it weights groups (domains), and so needs a task that has some.
    """

    name: str
    options: type
    build: Callable[..., Method]
    summary: str
    units: tuple[str, ...] = UNITS
    groups: bool = False

    def objection(self, unit: str, has_groups: bool) -> str | None:
        """Why this method makes no sense for such losses, or None."""
        if unit not in self.units:
            return f"works on losses of {' or '.join(map(_with_article, self.units))}, not of {_with_article(unit)}"
        return "weights groups, and there are none" if self.groups and not has_groups else None


def _with_article(unit: str) -> str:
    return f"an {unit}" if unit[0] in "aeiou" else f"a {unit}"


_REGISTRY: dict[str, Entry] = {}


def register(
    name: str, options: type, *, units: Iterable[str] = UNITS, groups: bool = False
) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Decorate a builder `build(options, num_examples) -> Method`; its docstring's first line is
    the summary.

    Args:
        units: what the loss items may belong to, of `UNITS`.
        groups: the builder takes the names of the groups as a third argument.
    """

    def add(build: Callable[..., Method]) -> Callable[..., Method]:
        if name in _REGISTRY:
            raise ValueError(f"a method named {name!r} is registered already")
        if unknown := set(units) - {*UNITS}:
            raise ValueError(f"units: expected some of {', '.join(UNITS)}, got {sorted(unknown)}")
        summary = (build.__doc__ or "").strip().partition("\n")[0]
        _REGISTRY[name] = Entry(name, options, build, summary, tuple(units), groups)
        return build

    return add


def find_method(name: str) -> Entry:
    """The registered method of that name.

    Args:
        name: one of ours, an entry point in the group "steering.methods" (a module that registers
            it), or where the module is and the name it registers: "package.module:tail",
            "path/to/file.py:tail".

    Raises:
        SteeringError: nothing of that name; the message lists the known ones.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    where, colon, registered_as = name.rpartition(":")
    if colon:
        (load_file if where.endswith(".py") else load_module)(where, "method.name")
        if registered_as not in _REGISTRY:
            raise SteeringError(f"method.name: {where} registers no method {registered_as!r}")
        return _REGISTRY[registered_as]
    if name in installed("steering.methods"):
        installed("steering.methods")[name].load()
    if name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise SteeringError(
            f"method.name: no method {name!r}; known: {known}; or give 'file.py:name'"
        )
    return _REGISTRY[name]


def registered() -> dict[str, Entry]:
    """All methods by name."""
    return dict(sorted(_REGISTRY.items()))


def build_method(
    name: str,
    options: Any,
    num_examples: int,
    groups: Sequence[str] = (),
    unit: str | None = None,
    group_counts: Sequence[int] | np.ndarray | None = None,
) -> Method:
    """Build a method for a training set of `num_examples` examples.

    Args:
        options: those that are None and depend on the unit of the losses get their values here, if
            their class says which: `for_unit(unit)` returns the options with these filled in.
        groups: names of the groups, for a method that weights groups.
        unit: of the losses, one of `UNITS`; None: the first that the method knows, which is the
            example if it knows it.
        group_counts: training examples of each group, (k,); one without any gets no weight. None:
            unknown, all have some.

    Raises:
        ConfigError: an option is out of range, or a group has no examples and the method cannot
            leave it out.
    """
    entry = find_method(name)
    if hasattr(options, "for_unit"):
        options = options.for_unit(unit or entry.units[0])
    try:
        method = entry.build(options, num_examples, *([tuple(groups)] if entry.groups else []))
    except ValueError as error:
        raise ConfigError(f"method ({name}): {error}") from error
    empty = (
        []
        if group_counts is None
        else [number for number, count in enumerate(group_counts) if not count]
    )
    if entry.groups and empty:
        names = ", ".join(groups[number] for number in empty)
        try:
            method.without_groups(empty)
        except NotImplementedError:
            raise ConfigError(
                f"method ({name}): no training example belongs to group {names}"
            ) from None
        report_once(
            f"method ({name}): no training example belongs to group {names}; it gets no weight"
        )
    return method
