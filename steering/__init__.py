"""Model steering: train a target under the guidance of a frozen reference (DRRho risk minimisation,
arXiv 2505.06699).

    steer = steering.DRRho(tau=1.0)
    loss = steer(losses, reference_losses[index])    # in place of losses.mean()

`steering.losses` has the losses as modules, `steering.functional` as plain functions, `steering.dro`
the solver. What an author of tasks and methods needs stands in `steering.extend`.

The names below are imported when they are first used, so that `steering --help` need not wait for
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering import dro as dro
    from steering import extend as extend
    from steering import functional as functional
    from steering import losses as losses
    from steering.data import IndexedData as IndexedData
    from steering.dro import worst_case as worst_case
    from steering.errors import SteeringError as SteeringError
    from steering.finished import Run as Run
    from steering.finished import load_run as load_run
    from steering.items import Units as Units
    from steering.losses import ClipLoss as ClipLoss
    from steering.losses import ContrastiveDistillation as ContrastiveDistillation
    from steering.losses import Distillation as Distillation
    from steering.losses import DoReMi as DoReMi
    from steering.losses import DRRho as DRRho
    from steering.losses import Estimate as Estimate
    from steering.losses import GlobalContrastiveLoss as GlobalContrastiveLoss
    from steering.losses import GroupDRO as GroupDRO
    from steering.losses import Jest as Jest
    from steering.losses import NestedContrastiveLoss as NestedContrastiveLoss
    from steering.losses import Rho1 as Rho1
    from steering.losses import RhoLoss as RhoLoss
    from steering.losses import SoftFilter as SoftFilter
    from steering.losses import SoftRho as SoftRho
    from steering.reference_pass import reference_losses as reference_losses
    from steering.risk import ReferenceRisk as ReferenceRisk
    from steering.task import Task as Task

__version__ = "0.1.0"

__all__ = [
    "ClipLoss",
    "ContrastiveDistillation",
    "DRRho",
    "Distillation",
    "DoReMi",
    "Estimate",
    "GlobalContrastiveLoss",
    "GroupDRO",
    "Jest",
    "NestedContrastiveLoss",
    "Rho1",
    "RhoLoss",
    "Run",
    "SoftFilter",
    "SoftRho",
    "SteeringError",
    "__version__",
    "dro",
    "extend",
    "functional",
    "load_run",
    "losses",
    "reference_losses",
    "worst_case",
]

_MODULES = ("dro", "extend", "functional", "losses")
_ELSEWHERE = {
    "Run": "steering.finished",
    "SteeringError": "steering.errors",
    "load_run": "steering.finished",
    "reference_losses": "steering.reference_pass",
    "worst_case": "steering.dro",
}
_FOR_AUTHORS = ("IndexedData", "ReferenceRisk", "Task", "Units")
"""Names of `steering.extend` that were here before; they stay."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"steering.{name}")
    if name in _FOR_AUTHORS:
        return getattr(import_module("steering.extend"), name)
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "steering.losses")), name)
    raise AttributeError(f"module 'steering' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
