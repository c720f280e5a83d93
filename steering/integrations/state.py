"""State and parameters of a `steer` in the hands of somebody else's trainer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from steering import distributed
from steering.dro.online.row_table import RowTable
from steering.dro.online.stochastic import StochasticRisk
from steering.errors import SteeringError
from steering.reading import report_once

MADE = "steering.made"  # beside the tensors: what the state was made for


def saved(steer: Any) -> dict[str, Any]:
    """A copy of its state, and what it was made for. Empty but for the latter for a plain
    function."""
    state = steer.state_dict() if isinstance(steer, nn.Module) else {}
    return {name: _copy(value) for name, value in state.items()} | {MADE: made_for(steer)}


def restore(steer: Any, state: Mapping[str, Any], where: str) -> None:
    """Load what `saved` gave, or a plain state dict of before.

    Args:
        where: the file or the checkpoint, for messages.

    Raises:
        SteeringError: it was made for another number of examples, another divergence, or another
            kind of `steer`.
    """
    state = dict(state)
    made, wanted = state.pop(MADE, {}), made_for(steer)
    for name in ("num_examples", "divergence"):
        if name in made and name in wanted and made[name] != wanted[name]:
            raise SteeringError(
                f"{where}: a state for {name} {made[name]}, and this steer has {wanted[name]}"
            )
    if (
        "tau" in made
        and "tau" in wanted
        and "tau" not in scheduled(steer)  # the next step sets it
        and abs(made["tau"] - wanted["tau"]) > 1e-6 * abs(wanted["tau"])
    ):
        report_once(
            f"{where}: its temperature {made['tau']:g} is taken, not the {wanted['tau']:g} of this run's steer",
            logging.WARNING,
        )
    if not isinstance(steer, nn.Module):
        return
    try:
        steer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as error:
        raise SteeringError(
            f"{where}: not a state of this steer: {' '.join(str(error).split())}"
        ) from error


def made_for(steer: Any) -> dict[str, Any]:
    """What a state depends on, as far as `steer` tells: its number of examples, its divergence, a τ
    that is not learned."""
    found: dict[str, Any] = {}
    count = getattr(steer, "num_examples", None)
    if isinstance(count, int):
        found["num_examples"] = count
    risk = getattr(getattr(steer, "method", steer), "risk", None)
    divergence = getattr(risk, "divergence", None)
    if divergence is not None:
        numbers = {
            name: value
            for name, value in getattr(divergence, "__dict__", {}).items()
            if isinstance(value, int | float | str)
        }
        told = ", ".join(f"{name} {value}" for name, value in sorted(numbers.items()))
        found["divergence"] = str(divergence.name) + (f" ({told})" if told else "")
    temperature = getattr(risk, "temperature", None)
    log_tau = getattr(temperature, "log_tau", None)
    if isinstance(log_tau, Tensor) and not getattr(temperature, "learned", True):
        found["tau"] = float(log_tau.detach().exp())
    return found


def require_whole(steer: Any) -> None:
    """These trainers write what rank 0 holds.

    Raises:
        SteeringError: tables of running estimates are split over the ranks.
    """
    modules = steer.modules() if isinstance(steer, nn.Module) else ()
    if any(isinstance(module, RowTable) and module.ranks > 1 for module in modules):
        raise SteeringError(
            "steer: its tables are split over the ranks, and a checkpoint would keep one part; leave layout whole"
        )


def own_parameters(steer: Any, model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters of `steer` by name, without those that are the model's as well."""
    if not isinstance(steer, nn.Module):
        return {}
    theirs = {id(parameter) for parameter in model.parameters()}
    return {
        name: p for name, p in steer.named_parameters() if p.requires_grad and id(p) not in theirs
    }


def missing_parameters(
    parameters: Mapping[str, nn.Parameter], optimizers: Iterable[Any]
) -> list[str]:
    """Names of those that no optimiser moves."""
    moved = {
        id(p)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    return [name for name, parameter in parameters.items() if id(parameter) not in moved]


def start_alike(parameters: Mapping[str, nn.Parameter]) -> None:
    """Give every rank the values of rank 0, as DDP does with the model."""
    if distributed.active():
        for parameter in parameters.values():
            torch.distributed.broadcast(parameter.data, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average their gradients over the ranks, as DDP does with the model's."""
    distributed.average_gradients(nn.ParameterList(parameters))


def set_epoch(steer: Any, epoch: int) -> None:
    """Tell a `steer` that wants to know which pass over the data begins: 0, 1, ..."""
    start_epoch = getattr(steer, "start_epoch", None)
    if start_epoch is not None:
        start_epoch(epoch)


def set_progress(steer: Any, done: float, steps: int) -> None:
    """Tell a `steer` that has schedules which share of the steps is done, in [0, 1)."""
    at = getattr(getattr(steer, "method", steer), "at", None)
    if at is not None and steps > 0:
        at(done / steps)


def scheduled(steer: Any) -> list[str]:
    """Names of what schedules move in it, of "prior", "strength" and "tau"."""
    modules = steer.modules() if isinstance(steer, nn.Module) else ()
    risks = [module for module in modules if isinstance(module, StochasticRisk)]
    return sorted({name for risk in risks for name in risk.adversary.scheduled})


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
