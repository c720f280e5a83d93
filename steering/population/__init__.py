"""Populations: many models of one task, mixed by their probabilities or averaged by their weights.

The parts stand alone; `steering.studies.population` puts them together.

Source: arXiv 2606.03938 (hyper-epoch pretraining).
"""

from steering.population.likelihood import Mixed, Predicted, predicted
from steering.population.mixture import MixtureOfProbabilities
from steering.population.noise import noise_scale, perturb
from steering.population.prior import Prior, fit_prior, nll, top_weights
from steering.population.soup import WeightAverage, renew_batch_norm

__all__ = [
    "Mixed",
    "MixtureOfProbabilities",
    "Predicted",
    "Prior",
    "WeightAverage",
    "fit_prior",
    "nll",
    "noise_scale",
    "perturb",
    "predicted",
    "renew_batch_norm",
    "top_weights",
]
