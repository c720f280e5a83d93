"""One cell of the weak-to-strong study: a teacher, its students and their baselines, as heads on
frozen features. It is a function that `steering.studies.weak_to_strong` asks for.

The labelled, the unlabelled and the validation points are disjoint samples of the pool, with shares
of the minority group of their own and balanced classes. True labels of the unlabelled and the
validation points are used for the ceiling and for measures, and nowhere else: p and q are chosen by
the labels that the teacher gives to the validation points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from steering.analysis.weak_to_strong import (
    MINORITY,
    balanced,
    disjoint_samples,
    group_accuracies,
    lowest,
    recovered,
    share_weighted,
)
from steering.errors import SteeringError
from steering.outputs import open_artefact
from steering.runs.call import Call, Outcome
from steering.runs.record import Cost, Metric, Scores
from steering.training.heads import Head, HeadLoss, Scale, fit_head
from steering.weak_labels import (
    adaptive_confidence_loss,
    confidence_loss,
    generalized_cross_entropy,
)

ROUNDS = 5  # in which a target of the model's own moves on


@dataclass(frozen=True)
class Part:
    """Points of one part of the data: what teacher and student see, label, group."""

    teacher: Tensor
    student: Tensor
    label: np.ndarray
    group: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Part:
        return Part(self.teacher[rows], self.student[rows], self.label[rows], self.group[rows])


def cell(call: Call) -> Outcome:
    """Fit every head of one (η_ℓ, η_u, seed) and measure them on the test part."""
    given = call.options
    pool, test = _part(call, "train"), _part(call, given["test"])
    rng = np.random.default_rng([given["seed"], round(1e4 * given["labelled_share"])])
    sizes = [given["labelled"], given["unlabelled"], given["validation"]]
    shares = [given["labelled_share"], given["unlabelled_share"], given["unlabelled_share"]]
    labelled, unlabelled, validation = (
        pool[rows] for rows in disjoint_samples(pool.label, pool.group, sizes, shares, rng)
    )
    fit = _Fits(labelled, unlabelled, validation, given)
    heads, chosen = fit.all(rng)
    metrics, scores = _measured(heads, fit, test, given["unlabelled_share"])
    details = _details(heads, fit, chosen) | _theory(pool, shares, given["decay"])
    meaning = {name: Metric(of=(name,)) for name in scores}
    summary = {"p": chosen["p"], "q": chosen["q"], "grid": chosen["grid"]}
    return Outcome(metrics | details, meaning, cost=Cost(), summary=summary, scores=scores)


class _Fits:
    """The heads of a cell."""

    def __init__(
        self, labelled: Part, unlabelled: Part, validation: Part, given: Mapping[str, Any]
    ) -> None:
        self.classes = int(max(labelled.label.max(), unlabelled.label.max())) + 1
        self.decay, self.given = given["decay"], given
        self.labelled, self.unlabelled, self.validation = labelled, unlabelled, validation
        self.teacher_scale = Scale.of(labelled.teacher)
        self.scale = Scale.of(unlabelled.student)
        self.x = self.scale(unlabelled.student)
        truth = torch.from_numpy(labelled.label)
        self.teacher = fit_head(
            self.teacher_scale(labelled.teacher), _labels(truth), self.classes, decay=self.decay
        )
        self.weak = self.taught(unlabelled).softmax(-1)  # (N, C)
        self.pseudo = self.weak.argmax(-1)
        self.weak_validation = self.taught(validation).argmax(-1)

    def taught(self, part: Part) -> Tensor:
        """The teacher's logits."""
        return self.teacher(self.teacher_scale(part.teacher))

    def student(self, head: Head, part: Part) -> Tensor:
        return head(self.scale(part.student))

    def all(self, rng: np.random.Generator) -> tuple[dict[str, Head], dict[str, Any]]:
        """name → head; and which p and q were chosen, with the whole grid's scores."""
        truth = torch.from_numpy(self.unlabelled.label)
        vanilla = self._fit(_labels(self.pseudo))
        log_p = vanilla(self.x).log_softmax(-1)
        entropy = -(log_p.exp() * log_p).sum(-1).numpy()
        grid = {
            (p, q): self._enhanced(lowest(entropy, p), q, vanilla)
            for p in self.given["p"]
            for q in (0.0, *self.given["q"])
        }
        votes = {key: self._agreement(head) for key, head in grid.items()}
        best = max((key for key in grid if key[1] > 0), key=lambda key: votes[key])
        only_gce = max((key for key in grid if key[0] == 1 and key[1] > 0), key=lambda k: votes[k])
        only_kept = max((key for key in grid if key[1] == 0), key=lambda key: votes[key])
        random_rows = np.sort(
            rng.permutation(len(self.pseudo))[: round(best[0] * len(self.pseudo))]
        )
        own = vanilla(self.x).argmax(-1)
        heads = {
            "vanilla": vanilla,
            "enhanced": grid[best],
            "gce": grid[only_gce],
            "selection": grid[only_kept],
            "random_subset": self._enhanced(random_rows, best[1], vanilla),
            "confidence": self._moving(confidence_loss, vanilla),
            "adaptive": self._moving(adaptive_confidence_loss, vanilla),
            "self_training": self._fit(_labels(own)),
            "ceiling": self._fit(_labels(truth)),
        }
        table = [[p, q, votes[p, q]] for p, q in grid]
        return heads, {"p": best[0], "q": best[1], "grid": table, "kept": lowest(entropy, best[0])}

    def _fit(self, loss: HeadLoss) -> Head:
        return fit_head(self.x, loss, self.classes, decay=self.decay)

    def _enhanced(self, rows: np.ndarray, q: float, start: Head) -> Head:
        """Enhanced-W2S, step 5: generalised cross entropy on the kept points, the teacher's labels."""
        pseudo = self.pseudo[rows]
        if len(rows) == len(self.pseudo) and q == 0:
            return start  # p = 1 and q → 0 is the vanilla student, to the bit
        return fit_head(
            self.x[rows],
            lambda logits, _: generalized_cross_entropy(logits, pseudo, q),
            self.classes,
            decay=self.decay,
            start=start,
        )

    def _moving(self, loss: Callable[[Tensor, Tensor, float], Tensor], start: Head) -> Head:
        weak = self.weak
        return fit_head(
            self.x,
            lambda logits, progress: loss(logits, weak, progress),
            self.classes,
            decay=self.decay,
            start=start,
            rounds=ROUNDS,
            steps=40,
        )

    def _agreement(self, head: Head) -> float:
        """Share of validation points on which a student says what the teacher says."""
        answers = self.student(head, self.validation).argmax(-1)
        return float((answers == self.weak_validation).double().mean())


def _labels(labels: Tensor) -> HeadLoss:
    return lambda logits, _: F.cross_entropy(logits, labels, reduction="none")


def _measured(
    heads: Mapping[str, Head], fit: _Fits, test: Part, share: float
) -> tuple[dict[str, float], dict[str, Scores]]:
    """Accuracies on the test part: balanced over groups, at the unlabelled share, of the worst
    group; scores are hits, weighted so that their mean is the balanced accuracy."""
    answers = {"teacher": fit.taught(test).argmax(-1).numpy()}
    answers |= {name: fit.student(head, test).argmax(-1).numpy() for name, head in heads.items()}
    metrics: dict[str, float] = {}
    scores: dict[str, Scores] = {}
    counts = np.bincount(test.group)
    weights = 1 / counts[test.group]
    for name, answer in answers.items():
        correct = answer == test.label
        groups = group_accuracies(correct, test.group)
        scores[f"{name}/balanced"] = Scores(correct.astype(np.float64), weights)
        metrics[f"{name}/share_weighted"] = share_weighted(groups, [MINORITY], share)
        metrics[f"{name}/worst_group"] = min(groups.values())
        metrics[f"{name}/balanced"] = balanced(groups)
    for name in heads:
        metrics[f"{name}/PGR"] = recovered(
            metrics[f"{name}/balanced"], metrics["teacher/balanced"], metrics["ceiling/balanced"]
        )
    return {name: value for name, value in metrics.items() if np.isfinite(value)}, scores


def _details(heads: Mapping[str, Head], fit: _Fits, chosen: Mapping[str, Any]) -> dict[str, float]:
    kept, group = chosen["kept"], fit.unlabelled.group
    wrong = fit.pseudo.numpy() != fit.unlabelled.label
    return {
        "unlabelled/kept_minority_share": float((group[kept] == MINORITY).mean()),
        "unlabelled/minority_share": float((group == MINORITY).mean()),
        "unlabelled/wrong_labels": float(wrong.mean()),
        "unlabelled/kept_wrong_labels": float(wrong[kept].mean()),
        "vanilla/agreement": fit._agreement(heads["vanilla"]),
        "enhanced/agreement": fit._agreement(heads["enhanced"]),
    }


def _theory(pool: Part, shares: Sequence[float], decay: float) -> dict[str, float]:
    """The matrix formula of docs/weak-to-strong.md with the moments of these very features, in
    units of σ²/n: traces of teacher and student, tested at equal shares."""
    teacher, student = (
        torch.cat([torch.ones(len(x), 1, dtype=x.dtype), Scale.of(x)(x)], 1)
        for x in (pool.teacher, pool.student)
    )

    def moments(one: Tensor, other: Tensor, share: float) -> Tensor:
        parts = [
            (weight, torch.from_numpy(np.flatnonzero(pool.group == g)))
            for g, weight in ((0, 1 - share), (MINORITY, share))
        ]
        return sum(w * one[rows].T @ other[rows] / len(rows) for w, rows in parts)  # type: ignore[return-value]

    def regular(matrix: Tensor) -> Tensor:
        return matrix + decay * torch.eye(len(matrix), dtype=matrix.dtype)

    labelled, unlabelled, _ = shares
    inverse = torch.linalg.inv(regular(moments(teacher, teacher, labelled)))
    project = torch.linalg.solve(
        regular(moments(student, student, unlabelled)), moments(student, teacher, unlabelled)
    )
    return {
        "theory/teacher": float(torch.trace(inverse @ moments(teacher, teacher, 0.5))),
        "theory/student": float(
            torch.trace(project @ inverse @ project.T @ moments(student, student, 0.5))
        ),
    }


_SEEN: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def _part(call: Call, part: str) -> Part:
    features = [_features(call, role, part) for role in ("teacher", "student")]
    label, group = _known(call, part)
    if {len(one) for one in features} != {len(label)}:
        raise SteeringError("weak_to_strong: the backbones saw other points than the task's part")
    return Part(features[0], features[1], label, group)


def _features(call: Call, role: str, part: str) -> Tensor:
    record = call.workshop.finished(call.ask.parents[f"{role}_{part}"])
    folder = Path(call.workshop.store.folder) / record.summary["outputs"]
    kind = record.summary["kind"]
    stored = open_artefact(folder, kind)
    name = next(iter(record.summary["tensors"]))
    array = np.asarray(stored.array(name), dtype=np.float64)
    return torch.from_numpy(array.reshape(len(array), -1))


def _known(call: Call, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of a part, read once."""
    key = f"{call.ask.task_key} {part}"
    if key not in _SEEN:
        opened = call.opened
        data, _ = opened.part(part, opened.task.build(call.ask.config.target))
        batches = [
            data.batch(rows, 0)
            for rows in np.array_split(np.arange(len(data)), max(1, len(data) // 512))
        ]
        if any("group" not in batch for batch in batches):
            raise SteeringError("weak_to_strong: the data have no groups; set task.data.groups")
        _SEEN[key] = (
            np.concatenate([batch["label"].numpy() for batch in batches]),
            np.concatenate([batch["group"].numpy() for batch in batches]),
        )
    return _SEEN[key]
