"""What may be given as `steer`, called in one way: a module, a function, a method of the registry."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from steering.errors import SteeringError
from steering.items import Units
from steering.methods import Method, build_method, find_method
from steering.typed import typed

NOT_NUMBERS = ("groups", "domains", "logits", "reference_logits", "count")
"""What ours, and those like them, take in the third place: numbers would pass for it unnoticed."""


@dataclass(frozen=True)
class Steered:
    """One batch.

    Attributes:
        loss: scalar to descend.
        metrics: detached scalars for the log, () each.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class MethodSteer(nn.Module):
    """A method of the registry as a steer: one row of items, no selection, no logits.

    Args:
        method: built for losses of the trainer's unit.
        name: for messages.

    Raises:
        SteeringError: a method that needs more than losses.
    """

    def __init__(self, method: Method, name: str = "") -> None:
        super().__init__()
        self.method, self.name = method, name or type(method).__name__
        _require_losses_suffice(self.method, self.name)

    def start_epoch(self, epoch: int) -> None:
        self.method.start_epoch(epoch)

    def estimate(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor | None = None,  # noqa: ARG002
        mask: Tensor | None = None,
    ) -> Steered:
        """Loss and metrics of one batch; a method knows rows, not example numbers."""
        row = torch.zeros((), dtype=torch.int64, device=losses.device)
        step = self.method(Units(losses, reference_losses, row, mask))
        return Steered(step.loss, step.scalars())

    def forward(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return self.estimate(losses, reference_losses, index, mask).loss


def as_steer(given: Any, unit: str) -> Any:
    """A module or a function as it is; a method, its name, or its section, as a module.

    Args:
        given: "rho1"; {"name": "rho1", "share": 0.6}, as in a config; a `Method`; anything callable.
        unit: of the losses; a method's defaults depend on it.

    Raises:
        SteeringError: no such method or option, a method that makes no sense for such losses or
            needs more than losses, or nothing that can be called.
    """
    if isinstance(given, str | Mapping):
        section = {"name": given} if isinstance(given, str) else dict(given)
        return _built(section, unit)
    if isinstance(given, Method):
        return MethodSteer(given)
    if not callable(given):
        raise SteeringError(
            f"steer: expected a module, a function, or a method's name or section, got {type(given).__name__}"
        )
    return given


class Caller:
    """Calls a steer with what it takes.

    The losses and the reference's come first. Numbers are given by the name `index`, or in the third
    place to a function that calls them otherwise; a mask by the name `mask`, to a steer that has
    such an argument: it looks at the items of all ranks then. A steer with `estimate` tells metrics,
    too.

    Raises:
        SteeringError: its third place is for something else than numbers of examples.
    """

    def __init__(self, steer: Any) -> None:
        self.steer = steer
        self._estimate = getattr(steer, "estimate", None)
        forward = steer.forward if isinstance(steer, nn.Module) else steer
        names = _positional(forward if self._estimate is None else self._estimate)
        self.takes_mask = "mask" in names
        self._by_name = "index" in names
        self._third = not self._by_name and len(names) > 2 and names[2] != "mask"
        if self._third:
            _require_numbers(steer, names[2])

    def __call__(
        self,
        losses: Tensor,
        reference_losses: Tensor | None,
        index: Tensor | None,
        mask: Tensor | None,
    ) -> Steered:
        """Loss and metrics of one batch.

        Raises:
            SteeringError: the steer returns no single number.
        """
        places = (losses, reference_losses, index) if self._third else (losses, reference_losses)
        named = {"index": index} if self._by_name else {}
        if mask is not None:
            named["mask"] = mask
        if self._estimate is None:
            return Steered(_scalar(self.steer(*places, **named)))
        found = self._estimate(*places, **named)
        return Steered(_scalar(found.loss), found.metrics)


def _positional(function: Any) -> list[str]:
    """Names of its parameters; three of any name where they cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["", "", ""]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ["", "", ""]
    return [p.name for p in parameters]


def _require_numbers(steer: Any, third: str) -> None:
    if third in NOT_NUMBERS:
        called = type(steer).__name__ if isinstance(steer, nn.Module) else "the function"
        raise SteeringError(
            f"steer: {called} takes {third} in the third place, and there it is given the numbers of the examples; give a"
            f" module with forward(losses, reference_losses, index, mask=None) that looks {third} up and calls it"
        )


def needs_reference(steer: Any) -> bool:
    """Whether it is a method that compares with a reference."""
    return isinstance(steer, MethodSteer) and steer.method.needs.reference


def needs_index(steer: Any) -> bool:
    """Whether it is made for numbered examples."""
    return isinstance(getattr(steer, "num_examples", None), int)


def _built(section: dict[str, Any], unit: str) -> MethodSteer:
    name = section.pop("name", None)
    if not isinstance(name, str):
        raise SteeringError("steer: a section must have a 'name', that of a method")
    entry = find_method(name)
    if objection := entry.objection(unit, has_groups=False):
        raise SteeringError(f"steer: {name} {objection}")
    options = typed(entry.options, section, f"steer ({name})", _fail)
    # One row of items, whatever the number of examples.
    return MethodSteer(build_method(name, options, num_examples=1, unit=unit), name)


def _fail(path: str, message: str) -> NoReturn:
    raise SteeringError(f"{path}: {message}")


def _require_losses_suffice(method: Method, name: str) -> None:
    if method.selector is not None:
        raise SteeringError(
            f"steer: {name} selects examples before they are trained on, and this trainer draws its own batches"
        )
    if method.needs.logits:
        raise SteeringError(f"steer: {name} needs whole distributions, and a steer is given losses")


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise SteeringError(
            f"steer: must return one number a batch, a tensor of shape (), got {shape}"
        )
    return loss
