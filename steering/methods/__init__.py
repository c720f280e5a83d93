"""Methods: losses of a target and of a reference in, one loss to descend out. Importing this registers them all."""

from steering.methods import drrho, erm, nested
from steering.methods.registry import Method, Step, build_method, find_method, register, registered

__all__ = ["Method", "Step", "build_method", "drrho", "erm", "find_method", "nested", "register", "registered"]
