"""Frozen reference models: live, or their outputs cached on disk under a fingerprint."""

from steering.reference.cache import ReferenceCache, build_cache
from steering.reference.fingerprint import Fingerprint, weights_fingerprint
from steering.reference.frozen import CachedReference, LiveReference, Reference

__all__ = [
    "CachedReference",
    "Fingerprint",
    "LiveReference",
    "Reference",
    "ReferenceCache",
    "build_cache",
    "weights_fingerprint",
]
