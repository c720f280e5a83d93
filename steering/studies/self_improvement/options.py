"""The options of the study `activation`; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BASELINES = ("random", "shuffled", "supervised", "best_of_n", "finetune", "dpo", "sppo")
QUESTION = "{prompt}\nA: {a}\nB: {b}\nThe better answer is"


@dataclass(frozen=True)
class ActivationOptions:
    """The section `studies.activation` of a config."""

    goal: str = ""
    """A domain of the task: what "goal" as ranker and as judge tells from the other domains."""
    ranker: str = "goal"
    """Who ranks: goal, self, self_pairs, file.py:function, or a sequence classifier's folder."""
    judge: str = "goal"
    """Who reports and never ranks: goal (other texts, another kind of model), or as above from
    outside."""
    prompts: str | None = None
    """JSONL file of prompts; null: stretches of the task's validation documents."""
    column: str = "prompt"
    """prompts, pairs: where the prompt stands."""
    pairs: str | None = None
    """supervised: JSONL with "chosen" and "rejected" beside the prompt; null: the goal's documents."""
    prefix: str = ""
    """Before every prompt."""
    goal_prefix: str = ""
    """ranker self: in place of `prefix` when the model says how well an answer fits the goal; it is
    also the line "prefix" of the table."""
    question: str = QUESTION
    """ranker self_pairs: what the model is asked; it answers " A" or " B"."""
    prompt_length: int = 16
    """Characters of a prompt cut from a document."""
    train_prompts: int = 256
    """Prompts that the rounds answer."""
    valid_prompts: int = 64
    """Prompts that choose layers and strength."""
    test_prompts: int = 128
    """Prompts that are reported."""
    answers: int = 8
    """Answers to each prompt in a round, and N of best_of_n."""
    valid_answers: int = 2
    """Answers to each validation prompt, for each strength that the search tries."""
    test_answers: int = 4
    """Answers to each test prompt."""
    length: int = 48
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Of sampling."""
    rounds: int = 3
    """Rounds of self-improvement."""
    direction: dict[str, Any] = field(default_factory=lambda: {"name": "mean_difference"})
    """How a move is fitted: mean_difference, pca, logistic or householder, with its options; likely:
    shifts of all layers at once, by the likelihood of the better answers."""
    blocks: list[str] = field(default_factory=list)
    """Layers to choose from; empty: every block."""
    choose: str = "effect"
    """How layers are chosen: "effect", what steering each by itself, or all of them together, does to
    answers; "probe", which needs no answers: those whose probe tells held-out pairs apart."""
    layers: int = 1
    """choose probe: how many are edited, together."""
    strengths: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    """Strengths that the search tries, from below until the budget is spent; layers that are edited
    together share one."""
    refine: int = 3
    """Halvings of the step between the last strength within the budget and the next one."""
    curve: bool = True
    """The strength is taken from a curve through all trials of a set of layers; false: the best
    single trial."""
    scope: str = "decoded"
    """Positions that are edited: all, prompt, answer, decoded."""
    keep_norm: bool = False
    """Give an edited activation its old norm."""
    share: float = 0.5
    """Contrast sampling: share of the memory bank's pairs that is fitted, largest margins first."""
    budget: float = 0.1
    """The search allows this much more loss of the answers under the unsteered model, nats a token."""
    search: str = "samples"
    """What the search maximises: the ranker's score of fresh answers ("samples"), or the likelihood
    margin of held-out pairs ("pairs")."""
    compose: str = "base"
    """A round's function is fitted on the base model's activations and replaces the old one
    ("base"), or on the steered model's and is added to it ("previous")."""
    baselines: list[str] = field(default_factory=lambda: ["random", "shuffled"])
    """Of random, shuffled, supervised, best_of_n, finetune, dpo, sppo."""
    epochs: int = 2
    """finetune, dpo, sppo: passes over the pairs."""
    batch_size: int = 16
    """finetune, dpo, sppo: pairs of a step."""
    lr: float = 1e-4
    """finetune, dpo, sppo: learning rate of AdamW."""
    beta: float = 0.1
    """dpo: strength of the pull to the frozen model."""
    eta: float = 1.0
    """sppo: scale of the log-ratios."""
    examples: int = 4
    """Test prompts whose answers the page shows, the worst ones after the first ones."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Repetitions: of prompts, sampling and fitting; the model is the same."""

    def __post_init__(self) -> None:
        parts = ("train", "valid", "test")
        counts = [*(f"{part}_prompts" for part in parts), "valid_answers", "test_answers", "length"]
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.answers < 2:
            raise ValueError(f"answers: one answer cannot be ranked; got {self.answers}")
        if self.rounds < 1 or not self.seeds or not self.strengths:
            raise ValueError("rounds, seeds and strengths: expected at least one")
        if min(self.strengths) <= 0 or self.refine < 0 or self.budget < 0:
            raise ValueError("strengths above 0, refine and budget of at least 0 are expected")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a number in (0, 1], got {self.share}")
        for name, known in (
            ("scope", ("all", "prompt", "answer", "decoded")),
            ("choose", ("effect", "probe")),
            ("search", ("samples", "pairs")),
            ("compose", ("base", "previous")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {known}, got {getattr(self, name)!r}")
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ValueError(f"baselines: no {unknown[0]!r}; there are {', '.join(BASELINES)}")
        if "goal" in (self.ranker, self.judge) and not self.goal:
            raise ValueError("goal: a domain of the task is needed for the ranker or judge 'goal'")
        if self.ranker == "self" and self.goal_prefix == self.prefix:
            raise ValueError("goal_prefix: expected another text than prefix for the ranker 'self'")
        if self.ranker == "self_pairs" and self.search == "samples":
            raise ValueError("search: wins compare answers to one prompt; expected pairs")
        if self.ranker == self.judge != "goal":
            raise ValueError("judge: expected another one than the ranker, or it reports on itself")
