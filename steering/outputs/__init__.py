"""Outputs of any model on any numbered data, kept on disk: a reference's losses, pseudo-labels,
entropies, hidden states.

They are one artefact, keyed by the model's weights, its preprocessing and the data; kinds of
outputs that share a tensor share its file.
"""

from steering.outputs.artefact import Artefact, WithOutputs, open_artefact
from steering.outputs.computing import Estimate, build, estimate
from steering.outputs.fingerprint import Fingerprint, weights_fingerprint
from steering.outputs.kinds import compute, require_kind

__all__ = [
    "Artefact",
    "Estimate",
    "Fingerprint",
    "WithOutputs",
    "build",
    "compute",
    "estimate",
    "open_artefact",
    "require_kind",
    "weights_fingerprint",
]
