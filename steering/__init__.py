"""Model steering: train a target under the guidance of a frozen reference (DRRho risk minimisation,
arXiv 2505.06699).

The names below are imported when they are first used, so that `steering --help` need not wait for
torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steering.data import IndexedData as IndexedData
    from steering.dro import worst_case as worst_case
    from steering.errors import SteeringError as SteeringError
    from steering.items import Units as Units
    from steering.losses import DRRho as DRRho
    from steering.losses import GlobalContrastiveLoss as GlobalContrastiveLoss
    from steering.risk import ReferenceRisk as ReferenceRisk
    from steering.task import Task as Task

__version__ = "0.1.0"

_HOME = {
    "DRRho": "steering.losses",
    "GlobalContrastiveLoss": "steering.losses",
    "IndexedData": "steering.data",
    "ReferenceRisk": "steering.risk",
    "SteeringError": "steering.errors",
    "Task": "steering.task",
    "Units": "steering.items",
    "worst_case": "steering.dro",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steering' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
