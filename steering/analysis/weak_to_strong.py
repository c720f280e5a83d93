"""The theory of weak-to-strong training under a spurious feature, and its measures. Numbers in,
numbers out: no torch.

A teacher learns on labelled points in which a minority group has the share η_ℓ, a student on points
with the share η_u that the teacher labels, and both are tested at the share η_t. Teacher and
student see the group feature ξ, g being the group's bit, through Tᵀξ and Sᵀξ:

    ξ | g ~ N(g·μ, σ²·I),      φ_T = [1, Tᵀξ],      φ_S = [1, Sᵀξ]

each times the same core features z ~ N(0, I), d of them, of which y is a linear function plus noise.

Source: arXiv 2509.24005, the set-up; the matrix form of the risks below is ours, with the variance
η(1 − η)·μμᵀ between the groups kept. Derivation: docs/weak-to-strong.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from steering.errors import SteeringError

MINORITY = 1  # number of the minority group


@dataclass(frozen=True)
class Views:
    """What teacher and student see of the group feature.

    Attributes:
        teacher, student: T (p, p_T − 1) and S (p, p_S − 1), orthonormal columns.
        mu: mean of ξ in the minority group, (p,).
        sigma: standard deviation of ξ within a group.
    """

    teacher: np.ndarray
    student: np.ndarray
    mu: np.ndarray
    sigma: float = 1.0

    def moments(self, one: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
        """E[φ_A φ_Bᵀ] at a minority share: [1, Aᵀξ] against [1, Bᵀξ]."""
        a, b = one.T @ self.mu, other.T @ self.mu
        within = self.sigma**2 * one.T @ other + share * (1 - share) * np.outer(a, b)
        found = np.empty((len(a) + 1, len(b) + 1))
        found[0, 0], found[0, 1:], found[1:, 0] = 1.0, share * b, share * a
        found[1:, 1:] = within + share**2 * np.outer(a, b)
        return found


@dataclass(frozen=True)
class Risks:
    """Excess risks over the noise, both to first order in d/n."""

    teacher: float
    student: float

    @property
    def gain(self) -> float:
        return self.teacher - self.student


def excess_risks(
    views: Views,
    labelled: float,
    unlabelled: float,
    test: float,
    ratio: float,
    noise: float = 1.0,
    finite: bool = True,
) -> Risks:
    """Excess risks of the ridgeless teacher and of a student that it labels without end.

        ER_T = σ_y²·γ·tr(M_TT(η_ℓ)⁻¹ M_TT(η_t))
        ER_S = σ_y²·γ·tr(A M_TT(η_ℓ)⁻¹ Aᵀ M_SS(η_t)),   A = M_SS(η_u)⁻¹ M_ST(η_u)

    Args:
        labelled, unlabelled, test: η_ℓ, η_u, η_t, in [0, 1].
        ratio: γ = d/n.
        noise: σ_y, standard deviation of the labels' noise.
        finite: divide by 1 − p_T·γ, the first correction of a finite n.
    """
    t, s = views.teacher, views.student
    inverse = np.linalg.inv(views.moments(t, t, labelled))
    project = np.linalg.solve(views.moments(s, s, unlabelled), views.moments(s, t, unlabelled))
    scale = noise**2 * ratio
    if finite:
        scale /= 1 - len(inverse) * ratio
    teacher = np.trace(inverse @ views.moments(t, t, test))
    student = np.trace(project @ inverse @ project.T @ views.moments(s, s, test))
    return Risks(scale * float(teacher), scale * float(student))


def recovered(student: float, teacher: float, ceiling: float) -> float:
    """PGR = (student − teacher)/(ceiling − teacher), the share of the gap that is recovered; NaN
    where there is no gap.

    Source: arXiv 2312.09390.
    """
    gap = ceiling - teacher
    return (student - teacher) / gap if gap > 0 else float("nan")


def group_accuracies(correct: np.ndarray, group: np.ndarray) -> dict[int, float]:
    """Accuracy of each group that has examples.

    Args:
        correct: bool, (n,).
        group: int, (n,).
    """
    return {int(g): float(correct[group == g].mean()) for g in np.unique(group)}


def balanced(by_group: dict[int, float]) -> float:
    """The mean over groups: the accuracy at equal shares."""
    return float(np.mean([*by_group.values()]))


def share_weighted(by_group: dict[int, float], minority: Sequence[int], share: float) -> float:
    """The accuracy where the minority groups together have a given share."""
    small = [value for g, value in by_group.items() if g in minority]
    large = [value for g, value in by_group.items() if g not in minority]
    if not small or not large:
        return balanced(by_group)
    return float(share * np.mean(small) + (1 - share) * np.mean(large))


def lowest(scores: np.ndarray, share: float) -> np.ndarray:
    """Positions of the round(share·n) lowest scores, in ascending order of position; of equal ones
    the first.

    Raises:
        ValueError: the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    order = np.argsort(scores, kind="stable")
    return np.sort(order[: round(share * len(scores))])


def disjoint_samples(
    label: np.ndarray,
    group: np.ndarray,
    sizes: Sequence[int],
    shares: Sequence[float],
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Disjoint samples of given sizes and minority shares, the classes balanced within each group.

    Raises:
        SteeringError: the pool has too few points of a group and class.
    """
    classes = int(label.max()) + 1
    left = {
        (g, c): list(rng.permutation(np.flatnonzero((group == g) & (label == c))))
        for g in (0, MINORITY)
        for c in range(classes)
    }
    found = []
    for size, share in zip(sizes, shares, strict=True):
        rows: list[int] = []
        minority = round(size * share)
        for g, number in ((0, size - minority), (MINORITY, minority)):
            for c, count in enumerate(_evenly(number, classes)):
                if len(left[g, c]) < count:
                    raise SteeringError(
                        f"weak_to_strong: the pool has too few points of group {g} and class {c}; "
                        "lower labelled, unlabelled or validation"
                    )
                rows += [left[g, c].pop() for _ in range(count)]
        found.append(np.array(rows))
    return found


def _evenly(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]
