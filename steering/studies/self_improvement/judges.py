"""Who says which answer is better: a ranker, which the rounds learn from, and a judge, which only
reports. Both score the K answers to each of n prompts; more is better.

    goal              told from texts: how sure a classifier is that an answer is of one domain
    self              the model itself: log p(y | goal prefix, x) − log p(y | prefix, x), nats
    self_pairs        the model itself, asked which of two answers is better, in both orders
    file.py:function  function(prompt, answers) → a score for each answer
    a folder          a sequence classifier of `transformers`, such as a reward model
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from steering.activation import Speaker, answer_losses, wins
from steering.activation.preferences import Ranker
from steering.data import mix
from steering.errors import SteeringError
from steering.plugins import load_file
from steering.reading import user_path
from steering.task import Tokenizer

Scores = Sequence[Sequence[float]]
SHUFFLE = 10  # key of the hash
MOST_PIECES = 4000  # of each side, for a classifier of texts


def pieces(texts: Sequence[str], length: int, half: int) -> list[str]:
    """Stretches of `length` characters of the first (0) or the second (1) half of all texts."""
    whole = "\n".join(texts)
    middle = len(whole) // 2
    own = whole[:middle] if half == 0 else whole[middle:]
    found = [own[start : start + length] for start in range(0, len(own) - length + 1, length)]
    step = max(1, len(found) // MOST_PIECES)
    return found[::step][:MOST_PIECES]


def _labelled(
    documents: Mapping[str, Sequence[str]], goal: str, length: int, half: int
) -> tuple[list[str], list[int]]:
    """Pieces of all domains, and whether each is of the goal."""
    if goal not in documents or len(documents) < 2:
        raise SteeringError(
            f"studies.activation.goal: expected one of several domains, {', '.join(documents)}; "
            f"got {goal!r}"
        )
    texts, labels = [], []
    for domain, own in documents.items():
        found = pieces(own, length, half)
        if len(found) < 2:
            raise SteeringError(f"studies.activation.goal: domain {domain} has too little text")
        texts += found
        labels += [int(domain == goal)] * len(found)
    return texts, labels


def goal_ranker(documents: Mapping[str, Sequence[str]], goal: str, length: int) -> Ranker:
    """Log odds of the goal by logistic regression on hashed 1- to 4-grams of characters, fitted on the
    first half of the training texts; both sides count the same."""
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    texts, labels = _labelled(documents, goal, length, half=0)
    grams = HashingVectorizer(analyzer="char", ngram_range=(1, 4), n_features=2**16)
    model = LogisticRegression(class_weight="balanced", max_iter=200)
    model.fit(grams.transform(texts), labels)
    return _each_text(lambda answers: model.decision_function(grams.transform(answers)))


def goal_judge(documents: Mapping[str, Sequence[str]], goal: str, length: int) -> Ranker:
    """Probability of the goal by naive Bayes on words, fitted on the second half of the training
    texts, which no ranker has seen; both sides are as likely beforehand."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    texts, labels = _labelled(documents, goal, length, half=1)
    words = CountVectorizer(token_pattern=r"(?u)\w+")
    model = MultinomialNB(class_prior=[0.5, 0.5])
    model.fit(words.fit_transform(texts), labels)
    return _each_text(lambda answers: model.predict_proba(words.transform(answers))[:, 1])


def _each_text(score: Callable[[list[str]], np.ndarray]) -> Ranker:
    """A ranker that looks at each answer by itself."""

    def ranker(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:  # noqa: ARG001
        flat = score([answer for own in answers for answer in own])
        return _grouped(flat, answers)

    return ranker


def _grouped(flat: np.ndarray, answers: Sequence[Sequence[str]]) -> list[list[float]]:
    ends = np.cumsum([len(own) for own in answers])
    return [part.tolist() for part in np.split(np.asarray(flat, dtype=np.float64), ends[:-1])]


def of_function(name: str, key: str) -> Ranker:
    """`file.py:function`."""
    where, _, attribute = name.rpartition(":")
    function = vars(load_file(where, key)).get(attribute)
    if not callable(function):
        raise SteeringError(f"{key}: {where} has no function {attribute!r}")

    def ranker(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
        found = []
        for prompt, own in zip(prompts, answers, strict=True):
            scores = [float(one) for one in function(prompt, list(own))]
            if len(scores) != len(own) or not np.isfinite(scores).all():
                raise SteeringError(
                    f"{key}: {attribute} gave {scores} for {len(own)} answers; "
                    "expected a finite number for each"
                )
            found.append(scores)
        return found

    return ranker


def of_classifier(folder: str, key: str, device: torch.device) -> Ranker:
    """A sequence classifier by folder: its single score, or the last class's minus the first's."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(user_path(folder)))
        model = AutoModelForSequenceClassification.from_pretrained(str(user_path(folder)))
    except Exception as error:  # the library raises plain Exception, and many others
        line = str(error).strip().partition("\n")[0]
        raise SteeringError(f"{key}: cannot load a classifier from {folder}: {line}") from error
    model.to(device).eval()

    @torch.no_grad()
    def ranker(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
        found = []
        for prompt, own in zip(prompts, answers, strict=True):
            inputs = tokenizer([prompt] * len(own), list(own), padding=True, return_tensors="pt")
            logits = model(**inputs.to(device)).logits.double()
            score = logits[:, 0] if logits.shape[1] == 1 else logits[:, -1] - logits[:, 0]
            found.append(score.tolist())
        return found

    return ranker


def of_model(speaker: Speaker, tokens: Tokenizer, prefix: str, goal_prefix: str) -> Ranker:
    """The unsteered model itself: by how much likelier an answer is after the goal's prefix."""
    base = replace(speaker, edits=())

    def log_likelihood(first: str, prompts: Sequence[str], answers: Sequence[str]) -> Tensor:
        rows = [encoded(tokens, first + prompt) for prompt in prompts]
        return -answer_losses(base, rows, [encoded(tokens, answer) for answer in answers])

    def ranker(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
        asked = [prompt for prompt, own in zip(prompts, answers, strict=True) for _ in own]
        flat = [answer for own in answers for answer in own]
        gain = log_likelihood(goal_prefix, asked, flat) - log_likelihood(prefix, asked, flat)
        return _grouped(gain.numpy(), answers)

    return ranker


def of_model_in_pairs(speaker: Speaker, tokens: Tokenizer, question: str) -> Ranker:
    """The unsteered model itself, asked which of two answers is better, in both orders; a pair on
    which the order decides is a tie. Score of an answer: wins against the others.

    Args:
        question: text with {prompt}, {a} and {b}, after which the model says "A" or "B".
    """
    base = replace(speaker, edits=())
    letters = [encoded(tokens, letter) for letter in (" A", " B")]

    def first_is_better(prompt: str, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        asked = [encoded(tokens, question.format(prompt=prompt, a=a, b=b)) for a, b in pairs]
        losses = [answer_losses(base, asked, [letter] * len(asked)) for letter in letters]
        return (losses[0] < losses[1]).tolist()

    def ranker(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> Scores:
        found = []
        for prompt, own in zip(prompts, answers, strict=True):
            orders = [(i, j) for i in range(len(own)) for j in range(len(own)) if i != j]
            said = first_is_better(prompt, [(own[i], own[j]) for i, j in orders]) if orders else []
            table = dict(zip(orders, said, strict=True))
            found.append(wins(len(own), lambda i, j, table=table: table[i, j]))  # type: ignore[misc]
        return found

    return ranker


def shuffled(ranker: Ranker, seed: int) -> Ranker:
    """The same scores in a random order within each prompt: a ranker that knows nothing."""

    def ranked(prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        found = []
        for number, scores in enumerate(ranker(prompts, answers)):
            order = np.argsort(mix(seed, SHUFFLE, number, np.arange(len(scores))), kind="stable")
            found.append(np.asarray(scores)[order].tolist())
        return found

    return ranked


def encoded(tokens: Tokenizer, text: str) -> list[int]:
    return [int(token) for token in tokens.encode(text)]
