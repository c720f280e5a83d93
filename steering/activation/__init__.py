"""Activation steering: directions and edits of hidden states, at inference time, no weight changed.

Usable by itself, around any `nn.Module` with named layers; the study `activation` is built of it.
"""

from steering.activation.directions import (
    DIRECTIONS,
    Direction,
    Householder,
    Logistic,
    MeanDifference,
    Principal,
    mean_difference,
    principal_direction,
    probe_accuracy,
    probe_normal,
)
from steering.activation.edits import Edit, block_names, find_layer, recorded, steered
from steering.activation.files import load_edits, save_edits
from steering.activation.likely import Likely
from steering.activation.moves import MOVES, Move, Rotation, Shift
from steering.activation.preferences import (
    Pair,
    best_and_worst,
    distinct_share,
    most_informative,
    wins,
)
from steering.activation.sampling import (
    Speaker,
    Tally,
    answer_activations,
    answer_losses,
    sample,
)
from steering.activation.search import (
    best_layers,
    fitted_edits,
    layer_accuracies,
    likelihood_margin,
    search,
    search_families,
    with_strength,
)

__all__ = [
    "DIRECTIONS",
    "MOVES",
    "Direction",
    "Edit",
    "Householder",
    "Likely",
    "Logistic",
    "MeanDifference",
    "Move",
    "Pair",
    "Principal",
    "Rotation",
    "Shift",
    "Speaker",
    "Tally",
    "answer_activations",
    "answer_losses",
    "best_and_worst",
    "best_layers",
    "block_names",
    "distinct_share",
    "find_layer",
    "fitted_edits",
    "layer_accuracies",
    "likelihood_margin",
    "load_edits",
    "mean_difference",
    "most_informative",
    "principal_direction",
    "probe_accuracy",
    "probe_normal",
    "recorded",
    "sample",
    "save_edits",
    "search",
    "search_families",
    "steered",
    "wins",
    "with_strength",
]
