"""The worst case of a whole row, solved exactly, with a certificate of its own."""

from steering.dro.exact.certificate import certificate
from steering.dro.exact.solver import Dual, WorstCase, worst_case

__all__ = ["Dual", "WorstCase", "certificate", "worst_case"]
