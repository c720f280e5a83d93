"""Methods: losses of a target and of a reference in, one loss to descend out. Importing this
registers them all."""

from steering.methods import (
    distillation,
    doremi,
    drrho,
    erm,
    group_dro,
    jest,
    nested,
    rho1,
    rho_loss,
    soft_rho,
)
from steering.methods.registry import (
    UNITS,
    Entry,
    Method,
    Needs,
    Step,
    build_method,
    check_options,
    find_method,
    register,
    registered,
)

__all__ = [
    "UNITS",
    "Entry",
    "Method",
    "Needs",
    "Step",
    "build_method",
    "check_options",
    "distillation",
    "doremi",
    "drrho",
    "erm",
    "find_method",
    "group_dro",
    "jest",
    "nested",
    "register",
    "registered",
    "rho1",
    "rho_loss",
    "soft_rho",
]
