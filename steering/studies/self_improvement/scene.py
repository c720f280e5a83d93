"""What every run of the study opens: a model that writes, prompts in three parts, rankers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steering.activation import Edit, Speaker, answer_losses, sample
from steering.activation.preferences import Ranker
from steering.data import mix, uniform
from steering.errors import SteeringError
from steering.reading import user_path
from steering.runs.call import Call
from steering.runs.measure import forward_flops, parameters, peak_bytes
from steering.runs.record import Cost
from steering.studies.self_improvement import judges
from steering.studies.self_improvement.judges import encoded
from steering.task import Model, Task, TextModel

TRAIN, VALID, TEST = "train", "valid", "test"
_CUT, _ORDER = range(2)  # keys of the hash


@dataclass(frozen=True)
class Prompting:
    """Prompts and how they are answered; see `steering.studies.self_improvement.options.ActivationOptions`."""

    prompts: str | None
    column: str
    prefix: str
    goal_prefix: str
    goal: str
    question: str
    prompt_length: int
    train: int
    valid: int
    test: int
    length: int
    temperature: float


@dataclass(frozen=True)
class Scene:
    """An opened setting.

    Attributes:
        speaker: the unsteered model.
        prompts: part -> texts, without the prefix.
    """

    call: Call
    how: Prompting
    task: Task
    model: Model
    text: TextModel
    speaker: Speaker
    prompts: dict[str, list[str]]

    def rows(self, prompts: Sequence[str]) -> list[list[int]]:
        """Tokens of prompts behind the prefix."""
        return [encoded(self.text.tokens, self.how.prefix + prompt) for prompt in prompts]

    def answers(
        self, speaker: Speaker, prompts: Sequence[str], count: int, seed: int
    ) -> list[list[str]]:
        """`count` answers to each prompt, as texts."""
        rows = [row for row in self.rows(prompts) for _ in range(count)]
        how = self.how
        drawn = sample(speaker, rows, np.arange(len(rows)), how.length, how.temperature, seed)
        texts = [self.text.tokens.decode(answer) for answer in drawn]
        return [texts[start : start + count] for start in range(0, len(texts), count)]

    def mean_losses(
        self, prompts: Sequence[str], answers: Sequence[Sequence[str]], speaker: Speaker
    ) -> np.ndarray:
        """−log p a token of all answers to each prompt, nats, (n,)."""
        rows = self.rows(prompts)
        asked = [row for row, own in zip(rows, answers, strict=True) for _ in own]
        said = [encoded(self.text.tokens, answer) for own in answers for answer in own]
        losses = answer_losses(speaker, asked, said).numpy().reshape(len(prompts), -1)
        counts = np.array([len(one) for one in said]).reshape(len(prompts), -1)
        return losses.sum(1) / np.maximum(counts.sum(1), 1)

    def ranker(self, name: str, key: str) -> Ranker:
        """The ranker of that name; see `steering.studies.self_improvement.judges`."""
        how, tokens = self.how, self.text.tokens
        if name == "goal":
            return judges.goal_ranker(self.task.documents()[0], how.goal, how.length)
        if name == "self":
            return judges.of_model(self.speaker, tokens, how.prefix, how.goal_prefix)
        if name == "self_pairs":
            return judges.of_model_in_pairs(self.speaker, tokens, how.question)
        return outside(name, key, self.call.workshop.device)

    def judge(self, name: str) -> Ranker:
        """The judge of that name."""
        if name == "goal":
            documents = self.task.documents()[0]
            return judges.goal_judge(documents, self.how.goal, self.how.length)
        return outside(name, "studies.activation.judge", self.call.workshop.device)

    def cost(self, speakers: Sequence[Speaker], scored: int, seconds: float, **more: Any) -> Cost:
        """What a run took: samples drawn, answers scored, FLOPs of all forward passes."""
        data = self.task.plain_data(self.model)
        example = forward_flops(self.task.risk, self.model, data, self.call.workshop.device)
        length = int(data.batch(np.arange(1), 0)["mask"].shape[1])
        tokens = sum(speaker.tally.tokens for speaker in speakers)
        return Cost(
            drawn=sum(speaker.tally.samples for speaker in speakers),
            scored=scored,
            seconds=seconds,
            parameters=parameters(self.model),
            forward_flops=example,
            flops=round(tokens * example / length) + int(more.pop("flops", 0)),
            peak_bytes=peak_bytes(self.call.workshop.device),
            **more,
        )


def outside(name: str, key: str, device: torch.device) -> Ranker:
    """A ranker from outside: a function of a file, or a classifier's folder."""
    if ".py:" in name:
        return judges.of_function(name, key)
    if not user_path(name).is_dir():
        raise SteeringError(
            f"{key}: expected goal, self, self_pairs, file.py:function or a classifier's folder; "
            f"got {name!r}"
        )
    return judges.of_classifier(name, key, device)


def open_scene(call: Call, how: Prompting) -> Scene:
    """Everything of a run but its edits. Each seed of the study draws its own prompts."""
    task, frozen = call.task, call.model()
    frozen.model.module.to(call.workshop.device).eval()
    text = task.text_model(frozen.model)
    speaker = Speaker(text.network, text.tokens.end)
    prompts = split_prompts(task, text, how, int(call.options["seed"]))
    return Scene(call, how, task, frozen.model, text, speaker, prompts)


def split_prompts(task: Task, text: TextModel, how: Prompting, seed: int) -> dict[str, list[str]]:
    """Prompts of each part, drawn by the seed; no text stands in two parts.

    Raises:
        SteeringError: fewer than asked for.
    """
    every = _from_file(how) if how.prompts is not None else _from_documents(task, how, seed)
    every = list(dict.fromkeys(every))
    if text.limit is not None:
        room = text.limit - how.length
        every = [one for one in every if len(encoded(text.tokens, how.prefix + one)) <= room]
    wanted = how.train + how.valid + how.test
    if len(every) < wanted:
        raise SteeringError(
            f"studies.activation: {wanted} prompts are wanted (train_prompts, valid_prompts, "
            f"test_prompts), there are {len(every)} different ones that leave room for {how.length} "
            "tokens"
        )
    order = np.argsort(mix(_ORDER, seed, np.arange(len(every))), kind="stable")
    chosen = [every[number] for number in order[:wanted]]
    ends = (how.train, how.train + how.valid)
    return {TRAIN: chosen[: ends[0]], VALID: chosen[ends[0] : ends[1]], TEST: chosen[ends[1] :]}


def _from_documents(task: Task, how: Prompting, seed: int) -> list[str]:
    """Stretches of the validation texts, as many of each domain."""
    documents = task.documents()[1]
    share = math.ceil((how.train + how.valid + how.test) * 2 / len(documents))
    found = []
    for number, texts in enumerate(documents.values()):
        whole = "\n".join(texts)
        room = max(len(whole) - how.prompt_length, 1)
        places = uniform(_CUT, seed, number, np.arange(share)) * room
        found += [whole[int(place) : int(place) + how.prompt_length] for place in places]
    return found


def _from_file(how: Prompting) -> list[str]:
    """The prompts of a JSONL file."""
    rows = read_jsonl(user_path(how.prompts or ""), "studies.activation.prompts")
    found = [row.get(how.column) for row in rows]
    if not all(isinstance(one, str) and one for one in found):
        raise SteeringError(
            f"studies.activation.prompts: {how.prompts}: every line needs a text {how.column!r}; "
            "see studies.activation.column"
        )
    return [str(one) for one in found]


def read_jsonl(path: Path, key: str) -> list[dict[str, Any]]:
    """Objects of a file, one a line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise SteeringError(f"{key}: cannot read {path}: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise SteeringError(f"{key}: {path}: expected an object on every line")
    return rows


def to_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def names_of(edits: Sequence[Edit]) -> list[str]:
    """Edits in words: "transformer.h.2 shift ×1.5"."""
    return [f"{one.layer} {one.move.kind} ×{one.strength:g}" for one in edits]
