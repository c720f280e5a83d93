"""The matrix form of the risks against simulations and its own special cases (METHODS 5, facts 2-5)."""

import numpy as np
import pytest

from steering.analysis.weak_to_strong import (
    Views,
    balanced,
    excess_risks,
    group_accuracies,
    lowest,
    recovered,
    share_weighted,
)


def basis(rng, p, k):
    return np.linalg.qr(rng.normal(size=(p, k)))[0]


def views(seed=0, p=6, teacher=3, student=1, strength=1.0, shared=False):
    rng = np.random.default_rng(seed)
    t = basis(rng, p, teacher)
    mu = rng.normal(size=p)
    mu *= strength / np.linalg.norm(mu)
    return Views(t, t if shared else basis(rng, p, student), mu)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5])
def test_a_teacher_tested_where_it_learnt_pays_for_its_features(share):
    found = excess_risks(views(), share, 0.2, share, ratio=0.01, finite=False)
    assert found.teacher == pytest.approx(0.01 * 4)  # p_T = 1 + 3


@pytest.mark.parametrize("shares", [(0.1, 0.1, 0.5), (0.05, 0.5, 0.3)])
def test_a_student_that_sees_what_the_teacher_sees_gains_nothing(shares):
    found = excess_risks(views(shared=True), *shares, ratio=0.01)
    assert found.gain == pytest.approx(0.0, abs=1e-12)


def test_without_a_spurious_feature_the_gain_is_that_of_the_dimensions():
    rng = np.random.default_rng(1)
    q = basis(rng, 6, 5)
    apart = Views(q[:, :3], q[:, 3:5], np.zeros(6))  # TᵀS = 0
    for shares in [(0.1, 0.1, 0.5), (0.05, 0.5, 0.3)]:
        found = excess_risks(apart, *shares, ratio=0.01)
        assert found.student / found.teacher == pytest.approx(1 / 4)


def test_the_gain_peaks_where_the_shares_agree():
    rng = np.random.default_rng(2)
    q = basis(rng, 8, 4)
    mu = 2.0 * q[:, 0] + 0.5 * q[:, 3]
    apart = Views(q[:, :3], q[:, 3:], mu)
    grid = np.linspace(0.05, 0.95, 91)
    for labelled in (0.2, 0.5, 0.8):
        gains = [excess_risks(apart, labelled, u, 0.5, ratio=0.01).gain for u in grid]
        assert abs(grid[int(np.argmax(gains))] - labelled) < 0.1


@pytest.mark.parametrize("shares", [(0.2, 0.2, 0.5), (0.2, 0.4, 0.5), (0.5, 0.3, 0.5)])
def test_ridgeless_fits_agree_within_15_percent(shares):
    """A simulation of both least-squares fits, kron(z, [1, Tᵀξ]) on label noise alone: the excess
    risk does not depend on the true coefficients, which both can express."""
    d, n, big = 12, 1200, 6000
    view, trials = views(seed=3, p=5, teacher=2, student=1), 24
    rng = np.random.default_rng(4)

    def features(basis_, share, count):
        g = rng.random(count) < share
        xi = g[:, None] * view.mu + rng.normal(size=(count, 5))
        z = rng.normal(size=(count, d))
        return (
            z,
            xi,
            np.einsum("ni,nj->nij", z, np.c_[np.ones(count), xi @ basis_]).reshape(count, -1),
        )

    def phi(basis_, z, xi):
        return np.einsum("ni,nj->nij", z, np.c_[np.ones(len(z)), xi @ basis_]).reshape(len(z), -1)

    risks = []
    for _ in range(trials):
        _, _, x = features(view.teacher, shares[0], n)
        teacher = np.linalg.lstsq(x, rng.normal(size=n), rcond=None)[0]
        z, xi, x = features(view.teacher, shares[1], big)
        student = np.linalg.lstsq(phi(view.student, z, xi), x @ teacher, rcond=None)[0]
        # Risks of given coefficients are quadratic forms in the moments: no test sample is needed.
        forms = []
        for basis_, w in ((view.teacher, teacher), (view.student, student)):
            m = view.moments(basis_, basis_, shares[2])
            w = w.reshape(d, -1)
            forms.append(float(np.einsum("ij,jk,ik->", w, m, w)))
        risks.append(forms)
    simulated = np.mean(risks, axis=0)
    expected = excess_risks(view, *shares, ratio=d / n)
    assert simulated[0] == pytest.approx(expected.teacher, rel=0.15)
    assert simulated[1] == pytest.approx(expected.student, rel=0.15)


def test_measures_by_hand():
    correct = np.array([1, 1, 0, 1, 0, 0], dtype=bool)
    group = np.array([0, 0, 0, 1, 1, 1])
    found = group_accuracies(correct, group)
    assert found == {0: 2 / 3, 1: 1 / 3}
    assert balanced(found) == 0.5
    assert share_weighted(found, [1], 0.1) == pytest.approx(0.9 * 2 / 3 + 0.1 / 3)
    assert share_weighted({0: 0.5}, [1], 0.1) == 0.5
    assert recovered(0.8, 0.7, 0.9) == pytest.approx(0.5)
    assert np.isnan(recovered(0.8, 0.7, 0.7))


def test_the_lowest_share():
    scores = np.array([0.3, 0.1, 0.2, 0.1, 0.9])
    assert lowest(scores, 0.4).tolist() == [1, 3]
    assert lowest(scores, 0.5).tolist() == [1, 3]  # round(2.5) is 2
    assert lowest(scores, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert lowest(np.exp(scores) * 3, 0.6).tolist() == lowest(scores, 0.6).tolist()
    with pytest.raises(ValueError, match="share must lie in"):
        lowest(scores, 0.0)
