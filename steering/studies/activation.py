"""Self-improving activation steering: rounds of answers, a ranking, and a steering function; what it
gains, what it costs, and what else would have done (docs/activation.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from steering.analysis.intervals import Bootstrap, paired_difference
from steering.analysis.page import Report, Table
from steering.runs.record import RunRecord
from steering.studies import study

if TYPE_CHECKING:
    from steering.config import RunConfig
    from steering.runs.ask import Ask

BASE = "base"
BASELINES = ("random", "shuffled", "supervised", "best_of_n", "finetune", "dpo", "sppo")
_DOING = "steering.studies.self_improvement"
_REPORTED = ("judge", "nll", "distinct_4")
_QUESTION = "{prompt}\nA: {a}\nB: {b}\nThe better answer is"


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
    question: str = _QUESTION
    """ranker self_pairs: what the model is asked; it answers " A" or " B"."""
    prompt_length: int = 16
    """Characters of a prompt cut from a document."""
    train_prompts: int = 256
    """Prompts that the rounds answer."""
    valid_prompts: int = 64
    """Prompts that choose the strength."""
    test_prompts: int = 128
    """Prompts that are reported."""
    answers: int = 8
    """Answers to each prompt in a round, and N of best_of_n."""
    test_answers: int = 4
    """Answers to each test prompt."""
    length: int = 48
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Of sampling."""
    rounds: int = 3
    """Rounds of self-improvement."""
    direction: dict[str, Any] = field(default_factory=lambda: {"name": "mean_difference"})
    """How a move is fitted: mean_difference, pca, logistic or householder, with its options."""
    blocks: list[str] = field(default_factory=list)
    """Layers to choose from; empty: every block."""
    layers: int = 1
    """How many are edited: those of the best probes on held-out pairs."""
    strengths: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    """Strengths that the search tries."""
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
    """Repetitions: of sampling and fitting; prompts and model are the same."""

    def __post_init__(self) -> None:
        for name in ("train_prompts", "valid_prompts", "test_prompts", "test_answers", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.answers < 2:
            raise ValueError(f"answers: one answer cannot be ranked; got {self.answers}")
        if self.rounds < 1 or not self.seeds or not self.strengths:
            raise ValueError("rounds, seeds and strengths: expected at least one")
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a number in (0, 1], got {self.share}")
        for name, known in (
            ("scope", ("all", "prompt", "answer", "decoded")),
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


@study("activation", ActivationOptions)
class Activation:
    """Self-improving activation steering, round by round, and its baselines."""

    def __init__(self, options: ActivationOptions) -> None:
        self.options = options

    def wanted(self, base: RunConfig, done: Sequence[RunRecord]) -> list[Ask]:
        return (
            []
            if done
            else [ask for seed in self.options.seeds for ask in _Asks(self, base).of(seed)]
        )

    def report(self, done: Sequence[RunRecord], title: str) -> Report:
        from steering.studies.self_improvement.tables import costs, examples, rows_of, side_effects

        reports = _by_policy(done)
        return Report(
            name="activation",
            title=f"{title}: self-improving activation steering",
            intro=_INTRO,
            tables=[
                _gains(reports),
                *side_effects(reports),
                *costs(done),
                *examples(reports, self.options.examples),
            ],
            rows=rows_of(done),
        )


_INTRO = (
    "`judge` is the mean score of a judge that never ranked; `nll` the loss of the answers under the unsteered "
    "model, nats a token (low fluency where it is high); `distinct` the share of different 4-grams of characters. "
    "In brackets: the difference to the base and its 95 % interval, a bootstrap over test prompts and seeds, paired in both."
)


class _Asks:
    """The runs of one config."""

    def __init__(self, options: ActivationOptions, base: RunConfig) -> None:
        self.options, self.base = options, base
        self.fits: list[Ask] = []
        """The runs that the reports are built on."""

    def of(self, seed: int) -> list[Ask]:
        """All runs of one seed, in the order of the table."""
        options = self.options
        rounds = self._rounds(seed, shuffled=False)
        found = [self._report(BASE, seed)]
        found += [
            self._report(f"round {number}", seed, policy=ask)
            for number, ask in enumerate(rounds, 1)
        ]
        if options.goal_prefix != options.prefix:
            found.append(self._report("prefix", seed, prefix=options.goal_prefix))
        for name in options.baselines:
            found.append(self._baseline(name, seed, rounds[-1]))
        return [*self.fits, *found]

    def _baseline(self, name: str, seed: int, last: Ask) -> Ask:
        if name == "random":
            return self._report(name, seed, random=True, policy=last)
        if name == "shuffled":
            return self._report(name, seed, policy=self._rounds(seed, shuffled=True)[-1])
        if name == "supervised":
            return self._report(name, seed, policy=self._supervised(seed))
        if name == "best_of_n":
            return self._report(name, seed, best_of=self.options.answers)
        return self._report(name, seed, weights=self._tuned(name, seed, last))

    def _rounds(self, seed: int, shuffled: bool) -> list[Ask]:
        options = self.options
        found: list[Ask] = []
        for number in range(1, options.rounds + 1):
            name = "shuffled round" if shuffled else "round"
            how = (
                self._common(seed)
                | self._fitting()
                | {
                    "ranker": options.ranker,
                    "shuffled": shuffled,
                    "answers": options.answers,
                    "round": number,
                }
            )
            previous = {"previous": found[-1]} if found else {}
            label = f"{name.replace(' ', '-')}-{number}-seed{seed}"
            axes = {"run": f"{name} {number}", "seed": seed}
            found.append(self._call("rounds:improve", how, label, axes, **previous))
        self.fits += found
        return found

    def _supervised(self, seed: int) -> Ask:
        options = self.options
        how = self._common(seed) | self._fitting()
        how |= {"ranker": options.ranker, "pairs": options.pairs}
        axes = {"run": "supervised fit", "seed": seed}
        self.fits.append(
            self._call("supervised:supervise", how, f"supervised-fit-seed{seed}", axes)
        )
        return self.fits[-1]

    def _tuned(self, kind: str, seed: int, last: Ask) -> Ask:
        options = self.options
        names = ("epochs", "batch_size", "lr", "beta", "eta")
        tuning = {"kind": kind} | {name: getattr(options, name) for name in names}
        how = self._common(seed) | {"tuning": tuning}
        axes = {"run": f"{kind} training", "seed": seed}
        label = f"{kind}-training-seed{seed}"
        self.fits.append(self._call("tuning:tune", how, label, axes, bank=last))
        return self.fits[-1]

    def _report(
        self,
        policy_name: str,
        seed: int,
        random: bool = False,
        best_of: int = 1,
        prefix: str | None = None,
        **parents: Ask,
    ) -> Ask:
        options, common = self.options, self._common(seed)
        if prefix is not None:
            common["prompting"] = common["prompting"] | {"prefix": prefix}
        how = common | {
            "judge": options.judge,
            "ranker": options.ranker if best_of > 1 else "",
            "count": options.test_answers,
            "examples": options.examples,
            "keep_norm": options.keep_norm,
            "random": random,
            "best_of": best_of,
        }
        label = f"report-{policy_name.replace(' ', '-')}-seed{seed}"
        axes = {"policy": policy_name, "seed": seed}
        return self._call("policies:report_policy", how, label, axes, **parents)

    def _call(
        self,
        function: str,
        how: Mapping[str, Any],
        label: str,
        axes: dict[str, Any],
        **parents: Ask,
    ) -> Ask:
        from steering.runs.call import calling

        options = self.options
        files = [
            one
            for one in (options.prompts, how.get("pairs"), how.get("ranker"), how.get("judge"))
            if one
        ]
        return calling(
            self.base, f"{_DOING}.{function}", how, label, axes, files, **self._model(), **parents
        )

    def _model(self) -> dict[str, Ask]:
        """The run that trains the model, unless the config gives weights."""
        from steering.config import with_overrides
        from steering.runs.ask import training

        spec = self.base.target
        if spec.pretrained is not None or spec.checkpoint is not None:
            return {}
        config = with_overrides(self.base, {"method": {"name": "erm"}, "reference": None})
        return {
            "model": training(replace(config, studies={}), "model", {"run": "model", "seed": None})
        }

    def _common(self, seed: int) -> dict[str, Any]:
        options = self.options
        same = (
            "prompts",
            "column",
            "prefix",
            "goal_prefix",
            "goal",
            "question",
            "prompt_length",
            "length",
            "temperature",
        )
        prompting = {name: getattr(options, name) for name in same}
        prompting |= {
            part: getattr(options, f"{part}_prompts") for part in ("train", "valid", "test")
        }
        return {"prompting": prompting, "seed": seed}

    def _fitting(self) -> dict[str, Any]:
        names = (
            "direction",
            "blocks",
            "layers",
            "strengths",
            "scope",
            "keep_norm",
            "share",
            "budget",
            "search",
            "compose",
        )
        return {"fitting": {name: getattr(self.options, name) for name in names}}


Reports = Mapping[str, Mapping[int, RunRecord]]


def _by_policy(done: Sequence[RunRecord]) -> dict[str, dict[int, RunRecord]]:
    """Reports by policy and seed."""
    found: dict[str, dict[int, RunRecord]] = {}
    for record in done:
        if "policy" in record.axes:
            found.setdefault(record.axes["policy"], {})[record.axes["seed"]] = record
    return found


def _gains(reports: Reports) -> Table:
    bootstrap = Bootstrap()
    lines = [
        [policy, *(_gain(runs, reports[BASE], name, bootstrap) for name in _REPORTED)]
        for policy, runs in reports.items()
    ]
    return Table("policies on the test prompts", ["policy", "judge", "nll ↓", "distinct"], lines)


def _gain(
    runs: Mapping[int, RunRecord], base: Mapping[int, RunRecord], name: str, bootstrap: Bootstrap
) -> str:
    """A metric's mean over the seeds, and what it gains over the base."""
    mean = sum(run.metrics[name] for run in runs.values()) / len(runs)
    found = paired_difference(runs, base, name, bootstrap)
    if runs is base or found is None:
        return f"{mean:.3f}"
    sure = "" if math.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]"
    return f"{mean:.3f} ({found.value:+.3f}{sure})"
