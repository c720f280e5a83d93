"""Selectors: which of the drawn examples are trained on. Any method may have one.

A step draws more examples than it trains on, scores them without gradient, and selects a share.
These go to the method with their reference outputs, so "select, then steer" costs no second pass of
the reference. A config says it of any method:

    method: {name: drrho, select: {name: rho_loss, share: 0.5}}
    method: {name: rho_loss, share: 0.1}       # the same selector before plain training

A selector of one's own is a file like `rho_loss.py`: a frozen dataclass with its options, registered
in `SELECTORS`, that makes the selector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from steering.errors import ConfigError, SteeringError
from steering.items import LossItems, rows_of
from steering.methods.registry import UNITS, Method, Needs
from steering.registry import Registry

M = TypeVar("M", bound=Method)


class Selector(nn.Module, ABC):
    """Chooses examples before they are trained on.

    Buffers hold what it remembers, if anything; they are part of the method's state.

    Attributes:
        needs: what it asks of a run. One that needs no reference leaves that to the method, which
            runs it on the selected examples alone.

    Args:
        share: of the drawn examples that are selected, in (0, 1]: a step draws batch_size/share.

    Raises:
        ValueError: `share` out of range.
    """

    needs: Needs = Needs(reference=True)

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.share = share

    @abstractmethod
    def choose(self, items: LossItems, count: int) -> Tensor:
        """Positions of `count` different examples among the items, int64, (count,).

        Args:
            items: of all examples that this rank has drawn, without gradient; every rank chooses
                among its own.

        Random choices use torch's global generator of the CPU, which checkpoints keep.
        """


class SelectorOptions(ABC):
    """What a section of a config says of a selector: a frozen dataclass, registered in
    `SELECTORS`; with a `search`, if anything of it is worth searching
    (`steering.methods.ranges`).

    Attributes:
        units: what the losses may belong to, of `steering.methods.UNITS`.
    """

    units: ClassVar[tuple[str, ...]] = UNITS
    share: float

    def needs(self) -> Needs:
        """What the selector asks of a run, told before it is made."""
        return Needs(reference=True)

    @abstractmethod
    def selector(self) -> Selector:
        """Make the selector; ValueError where an option is out of range."""


SELECTORS: Registry[SelectorOptions] = Registry("selector", "steering.selectors")


def selecting(method: M, selector: Selector, needs: Needs) -> M:
    """The method, training from now on what the selector chooses.

    Raises:
        ValueError: it has a selector already: of two choices neither would be the share that it
            says.
    """
    if method.selector is not None:
        # Two shares would multiply, and neither key would say what is trained on.
        raise ValueError("it selects examples itself; leave out select")
    selector.needs = needs
    method.selector = selector
    method.needs = method.needs | needs
    return method


def with_selection(method: M, options: SelectorOptions | None, name: str) -> M:
    """A built method with the selector of its section's `select`, if there is one.

    Args:
        name: of the method, for messages.

    Raises:
        ConfigError: an option is out of range, or the method selects by itself.
    """
    if options is None:
        return method
    try:
        return selecting(method, options.selector(), options.needs())
    except ValueError as error:
        raise ConfigError(f"method ({name}): select: {error}") from error


def selection_objection(options: SelectorOptions | None, unit: str) -> str | None:
    """Why this selector makes no sense for losses of a unit, or None."""
    if options is None or unit in options.units:
        return None
    known = " or ".join(options.units)
    return f"with select: {SELECTORS.name_of(options)}, which chooses by losses of {known}, not of {unit}"


def excess_of(items: LossItems, name: str) -> Tensor:
    """Excess losses of the drawn examples, (n,), detached.

    Args:
        name: of the selector, for the message.

    Raises:
        SteeringError: the items are not one loss for each example.
    """
    units = rows_of(items)
    if units.target.ndim != 1 or units.mask is not None:
        shape = tuple(units.target.shape)
        raise SteeringError(f"method ({name}): selects examples by one loss each, got {shape}")
    return units.excess().detach()


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest scores, (count,); of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count]


def sampled(log_weights: Tensor, count: int) -> Tensor:
    """`count` different positions, drawn one after another with probability ∝ exp(log_weights)
    among those left.

    By the Gumbel trick: the largest of log w + Gumbel noise is such a draw, and the next largest
    the next one. Weights of any range will do, and zero weights (−∞) are drawn last.  Source: arXiv
    1903.06059, section 2.
    """
    # On the CPU, whatever the device of the scores: checkpoints keep that generator for every rank.
    # `rand` may be 0, whose logarithm is −∞.
    uniform = torch.rand(log_weights.shape, dtype=torch.float64).clamp_min(
        torch.finfo(torch.float64).tiny
    )
    noise = -(-uniform.log()).log()
    return largest(log_weights.double() + noise.to(log_weights.device), count)


def require_temperature(value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"temperature must be a number > 0, got {value}")
