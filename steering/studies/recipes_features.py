"""The regime of the theorem: a linear model on random features, as proxy and as target of the study of
data recipes. Seconds in place of hours, and the tuned target has a closed form.

    φ(x) = √(2/m) · max(0, xW + b),   W ~ N(0, 1/d), b ~ N(0, 1),   f(x) = φ(x) A

The loss is ½‖f(x) − (e_y − 1/C)‖² on one-hot labels. The proxy, of small width m, makes one pass of
stochastic gradient descent from A = 0 at a rate in units of 1/λ_max, where λ_max is the largest
eigenvalue of E[φφᵀ] on the held-out examples: one rate for all recipes. The target, of large width,
is ridge regression: A = (ΦᵀΦ/n + λI)⁻¹ ΦᵀY/n, with λ in units of its own λ_max. Features and order
depend on the seed alone, so all recipes share them.

Source: arXiv 2512.24503, the theorem on random features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.data import IndexedData
from steering.errors import SteeringError
from steering.runs.call import Call, Outcome
from steering.runs.opened import make_room
from steering.runs.record import CURVES, Cost, Metric, Scores

WORST = 1e6  # what a loss counts that has no number: the rate was too large
KEPT = 1
OPTIONS = ("learner", "width", "batch", "rate", "seed")


@dataclass(frozen=True)
class Points:
    """Examples of one part: pixels, float32 (n, d), and class numbers, (n,)."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Features:
    """φ of a width, drawn by a seed."""

    weight: np.ndarray
    bias: np.ndarray

    @staticmethod
    def drawn(inputs: int, width: int, seed: int) -> Features:
        rng = np.random.default_rng([seed, width])
        weight = rng.normal(size=(inputs, width)) / np.sqrt(inputs)
        return Features(weight.astype(np.float32), rng.normal(size=width).astype(np.float32))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """float32, (n, m)."""
        size = np.float32(np.sqrt(2 / len(self.bias)))
        return size * np.maximum(x @ self.weight + self.bias, 0)


def random_features(call: Call) -> Outcome:
    """One proxy ("learner": "sgd") or one target ("ridge") on one recipe.

    Raises:
        SteeringError: an unknown option or learner, or data that do not fit.
    """
    if unknown := sorted(call.options.keys() - OPTIONS):
        raise SteeringError(
            f"recipes: random features have no option {unknown[0]!r}; known: {', '.join(OPTIONS)}"
        )
    given = {"width": 128, "batch": 4} | call.options
    train, test, classes = _points(call)
    features = Features.drawn(train.x.shape[1], given["width"], given["seed"])
    if given["learner"] == "sgd":
        found, curve = sgd(features, train, test, classes, given)
        rows = [{"step": step, "train/loss": loss} for step, loss in curve]
        call.write(CURVES, "".join(json.dumps(row) + "\n" for row in rows))
    elif given["learner"] == "ridge":
        found = _ridge(call, features, train, test, classes, given)
    else:
        raise SteeringError(f"recipes: learner: expected sgd or ridge, got {given['learner']!r}")
    losses, wrong = judged(found, test.y, classes)
    meaning = Metric(percent=False, higher_is_better=False)
    return Outcome(
        {"loss": float(min(losses.mean(), WORST)), "error": float(wrong.mean())},
        {"loss": meaning, "error": Metric(higher_is_better=False, of=("error",))},
        scores={"error": Scores(wrong.astype(np.float64), np.ones(len(wrong)))},
        cost=_cost(given, train, classes),
    )


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """e_y − 1/C, float64, (n, C)."""
    return np.eye(classes)[labels] - 1 / classes


def judged(answers: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss of each example, (n,), and whether the class of the largest answer is wrong, (n,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        losses = 0.5 * np.square(answers - one_hot(labels, classes)).sum(-1)
    return np.nan_to_num(losses, nan=WORST, posinf=WORST), answers.argmax(-1) != labels


def sgd(
    features: Features, train: Points, test: Points, classes: int, given: Mapping[str, Any]
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Answers on the test points after one pass, (n, C), and the training loss at the beginning and
    at the end (means over a tenth of the steps)."""
    phi, seen = features(train.x).astype(np.float64), features(test.x).astype(np.float64)
    rate = given["rate"] / top_eigenvalue(seen)
    target = one_hot(train.y, classes)
    order = np.random.default_rng([given["seed"], 1]).permutation(len(phi))
    batches = np.array_split(order, max(1, len(order) // given["batch"]))
    a, losses = np.zeros((phi.shape[1], classes)), []
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in batches:
            error = phi[rows] @ a - target[rows]
            losses.append(0.5 * float(np.square(error).sum()) / len(rows))
            a -= rate / len(rows) * (phi[rows].T @ error)
        tenth = max(1, len(losses) // 10)
        ends = [float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))]
        ends = [min(value, WORST) if np.isfinite(value) else WORST for value in ends]
        return seen @ a, [(1, ends[0]), (len(losses), ends[1])]


def top_eigenvalue(phi: np.ndarray) -> float:
    """Of φφᵀ in the mean."""
    return float(np.linalg.eigvalsh(phi.T @ phi / len(phi))[-1])


_MOMENTS: dict[tuple[str, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


def _ridge(
    call: Call,
    features: Features,
    train: Points,
    test: Points,
    classes: int,
    given: Mapping[str, Any],
) -> np.ndarray:
    """Answers on the test points, (n, C). The moments of a recipe and seed serve every λ."""
    key = (call.ask.task_key, given["seed"], given["width"])
    if key not in _MOMENTS:
        make_room(_MOMENTS, KEPT)
        phi = features(train.x)
        second = (phi.T @ phi).astype(np.float64) / len(phi)
        cross = phi.T.astype(np.float64) @ one_hot(train.y, classes) / len(phi)
        _MOMENTS[key] = second, cross, features(test.x)
    second, cross, seen = _MOMENTS[key]
    return seen.astype(np.float64) @ ridge(second, cross, given["rate"])


def ridge(second: np.ndarray, cross: np.ndarray, strength: float) -> np.ndarray:
    """(S + λI)⁻¹ c with λ = strength · tr(S), (m, C): the trace stands for λ_max, from which it
    differs by a factor that does not depend on the recipe."""
    m = len(second)
    solved: np.ndarray = np.linalg.solve(second + strength * np.trace(second) * np.eye(m), cross)
    return solved


_POINTS: dict[str, tuple[Points, Points, int]] = {}


def _points(call: Call) -> tuple[Points, Points, int]:
    key = call.ask.task_key
    if key not in _POINTS:
        make_room(_POINTS, KEPT)
        opened = call.opened
        model = opened.task.build(call.ask.config.target)
        parts = opened.task.held_out_data(model)
        if "test" not in parts:
            raise SteeringError(
                "recipes: random features need a task with labels and a part 'test', such as "
                "classification"
            )
        train, test = _read(opened.plain_data(model)), _read(parts["test"])
        # The scale of all recipes is that of the test part, which they share.
        mean, size = test.x.mean(0), test.x.std()
        one, other = (Points((part.x - mean) / size, part.y) for part in (train, test))
        _POINTS[key] = one, other, int(max(train.y.max(), test.y.max())) + 1
    return _POINTS[key]


def _read(data: IndexedData) -> Points:
    batches = [
        data.batch(rows, 0)
        for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 256))
    ]
    if any("image" not in batch or "label" not in batch for batch in batches):
        raise SteeringError("recipes: random features need batches with image and label")
    x = np.concatenate([batch["image"].flatten(1).numpy() for batch in batches])
    return Points(x, np.concatenate([batch["label"].numpy() for batch in batches]))


def _cost(given: Mapping[str, Any], train: Points, classes: int) -> Cost:
    n, d = train.x.shape
    m = given["width"]
    features = 2 * n * d * m
    if given["learner"] == "sgd":
        flops = features + 4 * n * m * classes
    else:
        flops = features + 2 * n * m * m + 2 * m**3 // 3
    return Cost(trained=n, parameters=m * classes, flops=flops)
