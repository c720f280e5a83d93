"""Frozen reference models: live, or their outputs as data that the batch carries."""

from steering.reference.frozen import STORED, LiveReference, Reference, StoredReference

__all__ = ["STORED", "LiveReference", "Reference", "StoredReference"]
