"""What an author of tasks, methods and parts needs: docs/guide-extend.md.

    from steering.extend import Method, Step, Units, gathered, register

A task is a `Task` with a `ReferenceRisk` and `IndexedData`; a method takes loss items, `Units` or
`Pairs`, and returns a `Step`; a part that a config picks by name (a schedule, say) is a frozen
dataclass in a `Registry`.
"""

from steering.contrastive import negatives
from steering.data import IndexedData
from steering.dro import Divergence
from steering.errors import ConfigError, SteeringError
from steering.items import Pairs, Units, gathered, require_items
from steering.methods import Method, Step, build_method, find_method, register, registered
from steering.registry import Registry, chosen
from steering.risk import Batch, Outputs, ReferenceRisk
from steering.schedules import SCHEDULES, Schedule
from steering.studies import Study, find_study, study
from steering.task import Evaluation, Model, ModelSpec, Task, find_task, scores_of

__all__ = [
    "SCHEDULES",
    "Batch",
    "ConfigError",
    "Divergence",
    "Evaluation",
    "IndexedData",
    "Method",
    "Model",
    "ModelSpec",
    "Outputs",
    "Pairs",
    "ReferenceRisk",
    "Registry",
    "Schedule",
    "SteeringError",
    "Step",
    "Study",
    "Task",
    "Units",
    "build_method",
    "chosen",
    "find_method",
    "find_study",
    "find_task",
    "gathered",
    "negatives",
    "register",
    "registered",
    "require_items",
    "scores_of",
    "study",
]
