"""The runs that the study `activation` wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from steering.config import RunConfig, with_overrides
from steering.errors import ConfigError
from steering.runs.ask import Ask, training
from steering.runs.call import calling
from steering.studies.self_improvement.fitting import direction_of
from steering.studies.self_improvement.options import ActivationOptions
from steering.studies.self_improvement.tables import BASE
from steering.task import Task, find_task

_DOING = "steering.studies.self_improvement"


class Asks:
    """The runs of one config."""

    def __init__(self, options: ActivationOptions, base: RunConfig) -> None:
        self.options, self.base = options, base
        self.fits: list[Ask] = []
        """The runs that the reports are built on."""

    def check(self) -> None:
        """Refuse what cannot work before anything is trained for it.

        Raises:
            ConfigError: a task without texts, no such domain, or no such direction.
        """
        kind, options = find_task(self.base.task.name), self.options
        if kind.text_model is Task.text_model:
            raise ConfigError(
                "studies.activation: needs a task of texts, such as language; "
                f"task.name is {self.base.task.name}"
            )
        domains = kind(self.base.task).groups
        if "goal" in (options.ranker, options.judge) and options.goal not in domains:
            raise ConfigError(
                f"studies.activation.goal: expected one of the domains {', '.join(domains)}; "
                f"got {options.goal!r}"
            )
        direction_of(options.direction)

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
        options = self.options
        how = self._common(seed) | {
            "prefix": options.prefix if prefix is None else prefix,
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
        options = self.options
        files = [
            one
            for one in (options.prompts, how.get("pairs"), how.get("ranker"), how.get("judge"))
            if one
        ]
        model = self._model()
        return calling(
            self.base,
            f"{_DOING}.{function}",
            how,
            label,
            axes,
            files,
            reads_model=not model,
            **model,
            **parents,
        )

    def _model(self) -> dict[str, Ask]:
        """The run that trains the model, unless the config gives weights."""
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
            "choose",
            "layers",
            "strengths",
            "refine",
            "curve",
            "scope",
            "keep_norm",
            "share",
            "budget",
            "search",
            "valid_answers",
            "compose",
        )
        return {"fitting": {name: getattr(self.options, name) for name in names}}
