"""Which examples may have a wrong label: the place on the steering plane, and confident learning as
the baseline; and how right such an order is.

Confident learning: Northcutt, Jiang and Chuang 2021, arXiv 1911.00068, section 3.1 (the confident
joint) and 3.2 (ranking by the margin).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steering.analysis.signals import auc


def log_weights(
    target: np.ndarray, reference: np.ndarray | None, tau: float | None, kappa: float
) -> np.ndarray:
    """log p up to a constant, ℓ/τ − κ·ℓ_ref: the steering plane's weight of each example, (n,).

    Args:
        target, reference: losses in nats, (n,); NaN where an example could not be read.
        tau: the adversary's temperature; None: infinite, no adversary.
        kappa: trust in the reference; 0 without one.
    """
    own = np.zeros_like(target) if tau is None else target / tau
    return own if reference is None else own - kappa * reference


def relative(log_p: np.ndarray) -> np.ndarray:
    """Weights with mean 1 over the examples that have one, NaN elsewhere, (n,)."""
    known = np.isfinite(log_p)
    shifted = np.exp(log_p - log_p[known].max())
    return shifted / shifted[known].mean()


@dataclass(frozen=True)
class Confident:
    """What confident learning says of n labelled examples.

    Attributes:
        issue: counted off the diagonal of the confident joint: confidently of another class than
            labelled, bool, (n,).
        margin: p(label) − the largest other probability; low is suspicious, (n,).
        joint: counts of (label, class that the model is confident of), int64, (classes, classes).
    """

    issue: np.ndarray
    margin: np.ndarray
    joint: np.ndarray

    def suspicion(self) -> np.ndarray:
        """Higher is more suspicious: issues first, each part by its margin, (n,)."""
        return np.where(self.issue, 2.0, 0.0) - self.margin


def confident_learning(probability: np.ndarray, label: np.ndarray) -> Confident:
    """Confident learning from probabilities that were, best, made out of sample.

    An example counts for the class with the largest probability among those that reach their
    threshold: the mean probability of class j over the examples labelled j. A class that nobody is
    labelled as has no threshold, so that nothing counts for it.

    Args:
        probability: (n, classes).
        label: int64, (n,).

    Raises:
        ValueError: shapes do not fit, or a label is no class.
    """
    n, classes = probability.shape
    if label.shape != (n,) or label.min() < 0 or label.max() >= classes:
        raise ValueError(
            f"labels {label.shape} in [{label.min()}, {label.max()}] for probabilities {n, classes}"
        )
    counts = np.bincount(label, minlength=classes)
    own = probability[np.arange(n), label]
    mean = np.bincount(label, own, classes) / np.maximum(counts, 1)
    threshold = np.where(counts > 0, mean, np.inf)
    sure = probability >= threshold
    guess = np.where(sure, probability, -1.0).argmax(1)
    counted = sure.any(1)
    joint = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(joint, (label[counted], guess[counted]), 1)
    others = probability.copy()
    others[np.arange(n), label] = -np.inf
    return Confident(counted & (guess != label), own - others.max(1), joint)


@dataclass(frozen=True)
class Precision:
    """How right an order of suspects is.

    Attributes:
        at: k → share of wrong examples among the k most suspicious.
        auc: probability that a wrong example stands before a right one; ½ is chance.
        base: share of wrong examples among all.
    """

    at: dict[int, float]
    auc: float
    base: float


def precision(suspicion: np.ndarray, wrong: np.ndarray, ks: list[int]) -> Precision:
    """Precision of the most suspicious examples; ties in the order of the examples, those without a
    suspicion left out.

    Args:
        suspicion: higher is more suspicious, NaN: none, (n,).
        wrong: bool, (n,).
        ks: how many to look at; more than there are examples count all.
    """
    known = np.isfinite(suspicion)
    score, truth = suspicion[known], wrong[known]
    order = np.argsort(-score, kind="stable")
    at = {k: float(truth[order[:k]].mean()) for k in ks}
    return Precision(at, auc(score, truth), float(truth.mean()))
