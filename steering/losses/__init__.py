"""Steering in anybody's loop: losses in, one loss out; no trainer, no config, state in
`state_dict()`.

Every loss here has `forward`, which returns the scalar to descend, and `estimate`, which also
returns the weights and metrics for a log. The selectors return the positions of what to train on.
"""

from steering.losses.clip import ClipLoss
from steering.losses.distillation import ContrastiveDistillation, Distillation
from steering.losses.estimate import Estimate
from steering.losses.examples import DRRho, SoftFilter
from steering.losses.groups import DoReMi, GroupDRO
from steering.losses.nested import NestedContrastiveLoss
from steering.losses.pairs import GlobalContrastiveLoss
from steering.losses.selectors import Jest, RhoLoss, SoftRho
from steering.losses.tokens import Rho1

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
    "SoftFilter",
    "SoftRho",
]
