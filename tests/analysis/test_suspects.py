"""Suspects: weights of the plane, confident learning against a naive twin and cleanlab."""

import numpy as np
import pytest

from steering.analysis.suspects import confident_learning, log_weights, precision, relative


def made(n=400, classes=5, seed=0):
    """Probabilities of a decent model and labels of which some are wrong."""
    generator = np.random.default_rng(seed)
    label = generator.integers(classes, size=n)
    scores = generator.standard_normal((n, classes))
    scores[np.arange(n), label] += 2
    wrong = generator.random(n) < 0.2
    label = np.where(wrong, (label + generator.integers(1, classes, size=n)) % classes, label)
    p = np.exp(scores)
    return p / p.sum(1, keepdims=True), label, wrong


def naive(probability, label):
    """The definition of arXiv 1911.00068, section 3.1, example by example."""
    n, classes = probability.shape
    thresholds = [
        np.mean([probability[i, j] for i in range(n) if label[i] == j]) for j in range(classes)
    ]
    joint = np.zeros((classes, classes), dtype=int)
    issues = []
    for i in range(n):
        above = [j for j in range(classes) if probability[i, j] >= thresholds[j]]
        if above:
            best = max(above, key=lambda j, i=i: probability[i, j])
            joint[label[i], best] += 1
            if best != label[i]:
                issues.append(i)
    return joint, issues


@pytest.mark.parametrize("seed", range(4))
def test_confident_learning_is_its_definition(seed):
    probability, label, _ = made(seed=seed)
    joint, issues = naive(probability, label)
    found = confident_learning(probability, label)
    assert (found.joint == joint).all()
    assert np.flatnonzero(found.issue).tolist() == issues
    order = np.argsort(-found.suspicion(), kind="stable")
    assert set(order[: len(issues)]) == set(issues)


@pytest.mark.parametrize("seed", range(4))
def test_confident_learning_is_cleanlabs(seed):
    count = pytest.importorskip("cleanlab.count", reason="the dev extra has cleanlab")
    rank = pytest.importorskip("cleanlab.rank")
    probability, label, _ = made(seed=seed)
    joint, issues = count.compute_confident_joint(
        label, probability, calibrate=False, return_indices_of_off_diagonals=True
    )
    found = confident_learning(probability, label)
    # cleanlab raises the diagonal to at least one for a class that is never confident
    assert (np.asarray(joint) == np.maximum(found.joint, np.eye(5, dtype=int))).all()
    assert np.flatnonzero(found.issue).tolist() == list(issues)
    margin = rank.get_label_quality_scores(label, probability, method="normalized_margin")
    np.testing.assert_allclose((found.margin + 1) / 2, margin, atol=1e-9)


def test_a_class_that_nobody_has_gets_nothing():
    probability = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    found = confident_learning(probability, np.array([0, 0, 1]))
    assert found.joint[:, 2].sum() == 0
    with pytest.raises(ValueError, match=r"labels \(3,\) in \[0, 3\]"):
        confident_learning(probability, np.array([0, 3, 1]))


def test_weights_are_the_softmax_of_the_plane():
    target, reference = np.array([1.0, 2.0, np.nan, 3.0]), np.array([0.5, 2.0, 1.0, 0.1])
    log_p = log_weights(target, reference, tau=2.0, kappa=0.7)
    wanted = np.exp(target / 2 - 0.7 * reference)
    wanted = wanted / np.nanmean(wanted)
    np.testing.assert_allclose(relative(log_p), wanted)
    np.testing.assert_allclose(log_weights(target, None, 2.0, 0.7), target / 2)
    np.testing.assert_allclose(log_weights(target, reference, None, 1.0), -reference)
    assert np.isfinite(relative(np.array([1e4, 0.0]))).all()


def test_precision_by_hand():
    suspicion = np.array([0.9, 0.1, np.nan, 0.8, 0.5])
    wrong = np.array([True, False, True, False, True])
    found = precision(suspicion, wrong, [1, 2, 10])
    assert found.at == {1: 1.0, 2: 0.5, 10: 0.5}
    assert found.base == 0.5
    assert found.auc == 3 / 4  # of the four pairs of a wrong and a right one
