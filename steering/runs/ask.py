"""What a study wants done, and the key that says which run that is.

A key is the digest of *what differs from the defaults*, of the parents' keys and of the schema's
version. So a new config key orphans no finished run, and a changed default is a new schema. Weights
and model files count by content, not by path. Where a run is written, how often it logs, evaluates
and saves, and on which machine it runs are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from steering.config import RunConfig, to_yaml, with_overrides
from steering.errors import SteeringError
from steering.methods import build_method, find_method
from steering.outputs.kinds import require_kind
from steering.reading import user_path
from steering.runs.record import SCHEMA, WEIGHTS
from steering.schema import ConfigError, ReferenceConfig, plain
from steering.storage import known_sha256
from steering.task import ModelSpec
from steering.typed import differences

Kind = Literal["train", "evaluate", "outputs", "call"]
REFERENCE = "reference"
_REFERENCES: dict[str, Ask] = {}
_NOT_TRAINED = ("log_every", "eval_every", "save_every", "workers", "threads")


@dataclass(frozen=True)
class Needs:
    """What a method asks of a run: a pure function of its options."""

    reference: bool
    logits: bool

    @property
    def outputs(self) -> str:
        """The kind of outputs that it needs of the reference; see `steering.outputs.kinds`."""
        return "logits" if self.logits else "losses"


@dataclass(frozen=True)
class Ask:
    """One run that is wanted. Made by `training`, `evaluation` and `model_outputs`.

    Attributes:
        config: the run's.
        label: readable name of its folder.
        axes: what the study varies: "method", "seed", "width", ....
        parents: role -> the run that it is built on: "reference" (whose weights steer), "start"
            (whose weights the target starts from), "model" (whose target is evaluated, or whose
            outputs are stored).
        kind: "train", "evaluate" a model, store its "outputs", or "call" a function.
        about: what an "outputs" ask wants: {"kind": "losses", "part": "train"}; the function, the
            options and the files of a "call".
    """

    config: RunConfig
    label: str
    axes: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Ask] = field(default_factory=dict)
    kind: Kind = "train"
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def needs(self) -> Needs:
        return needs_of(self.config) if self.kind == "train" else Needs(False, False)

    @cached_property
    def yaml(self) -> str:
        """The config as text, for the run's folder."""
        return to_yaml(self.config)

    @cached_property
    def key(self) -> str:
        """64 hex digits that say which run this is."""
        return _digest(
            [
                SCHEMA,
                self.kind,
                self._content(),
                {role: ask.key for role, ask in self.parents.items()},
            ]
        )

    @cached_property
    def asked(self) -> dict[str, str]:
        """Digests of parts: runs that agree in one must find the same there
        (`steering.runs.store.require_same_found`)."""
        found = {"task": _digest(differences(self.config.task))}
        if REFERENCE in self.parents:
            found["reference"] = self.parents[REFERENCE].key
        elif self.needs.reference and self.config.reference is not None:
            found["reference"] = _digest(_model(self.config.reference))
        return found

    def _content(self) -> dict[str, Any]:
        config = self.config
        content: dict[str, Any] = {"task": differences(config.task)}
        if self.kind != "train":
            model = {} if "model" in self.parents else {"model": _model(config.target)}
            return content | model | dict(self.about)
        train = {
            key: value
            for key, value in differences(config.train).items()
            if key not in _NOT_TRAINED
        }
        content |= {
            "target": _model(config.target),
            "method": {"name": config.method.name, **differences(config.method.options)},
            "optimizer": differences(config.optimizer),
            "train": train,
            "seed": config.seed,
        }
        if config.start is not None:
            content["start"] = _file(start_file(config.start))
        if self.needs.reference:
            assert config.reference is not None
            # A live reference sees the augmented view of an example, stored outputs are of the
            # plain one.
            content["stored"] = config.reference.cache is not None
            if REFERENCE not in self.parents:
                content["reference"] = _model(config.reference)
        return content


def training(
    config: RunConfig,
    label: str | None = None,
    axes: Mapping[str, Any] | None = None,
    **parents: Ask,
) -> Ask:
    """Train the target of a config; the run that trains its reference becomes a parent.

    Args:
        label: of the folder; None: the method's name and the seed.
        parents: further ones, such as start= (begin with the weights of that run's target) or
            reference= (steer by them).

    Raises:
        ConfigError: the method needs a reference, and there is none.
    """
    found = dict(parents)
    name = config.method.name.rpartition(":")[2]  # "file.py:name" is a method from outside
    if needs_of(config).reference and REFERENCE not in found:
        if config.reference is None:
            raise ConfigError(
                f"method.name: {config.method.name} needs a reference; add a reference: section"
            )
        if trains_reference(config):
            found[REFERENCE] = reference_training(config)
    return Ask(config, label or f"{name}-seed{config.seed}", axes or {}, found)


def evaluation(
    config: RunConfig, label: str, axes: Mapping[str, Any] | None = None, **parents: Ask
) -> Ask:
    """Evaluate the target of a config (its given weights), or with model= the target of that run,
    on the config's task."""
    return Ask(config, label, axes or {}, parents, "evaluate")


def model_outputs(
    config: RunConfig,
    kind: str,
    part: str = "train",
    label: str | None = None,
    axes: Mapping[str, Any] | None = None,
    **parents: Ask,
) -> Ask:
    """Store outputs of the target of a config, or with model= of that run's target.

    Args:
        kind: see `steering.outputs.kinds`.
        part: "train", or a part of the task's held-out data.
    """
    require_kind(kind)
    return Ask(
        config,
        label or f"outputs-{kind}",
        axes or {},
        parents,
        "outputs",
        {"kind": kind, "part": part},
    )


def trains_reference(config: RunConfig) -> bool:
    return (
        config.reference is not None
        and config.reference.train is not None
        and config.reference.checkpoint is None
    )


def reference_training(config: RunConfig) -> Ask:
    """The run that trains the reference itself: plain training of its architecture, with the
    changes of `reference.train`."""
    # The runs of a study ask for the same one again and again, and a config takes a while to check.
    about = [
        config.reference,
        config.task,
        config.optimizer,
        config.train,
        config.name,
        config.output,
        config.device,
    ]
    place = json.dumps([plain(one) for one in about], sort_keys=True, default=str)
    if place not in _REFERENCES:
        _REFERENCES[place] = _reference_training(config)
    return _REFERENCES[place]


def _reference_training(config: RunConfig) -> Ask:
    assert config.reference is not None
    changed = with_overrides(
        reference_target(config, seed=0), config.reference.train or {}, "reference.train"
    )
    return training(changed, reference_label(config.reference))


def reference_label(reference: ReferenceConfig) -> str:
    return "reference" if reference.label in (None, "reference") else f"reference-{reference.label}"


def reference_target(config: RunConfig, **changes: Any) -> RunConfig:
    """The same config with its reference as the target: what its training, evaluation or outputs
    are asked of.

    Args:
        changes: of other keys at the top of the config.
    """
    assert config.reference is not None
    spec = _fields(config.reference)
    as_target = {"target": spec, "reference": None, "method": {"name": "erm"}, "start": None}
    return with_overrides(config, as_target | changes)


def study_folder(config: RunConfig) -> Path:
    """Where everything of a config goes: output/name, or output/name-smoke, so that a trial never
    stands in a real run's way."""
    return user_path(config.output) / (f"{config.name}-smoke" if config.smoke else config.name)


def needs_of(config: RunConfig) -> Needs:
    """What the config's method needs; asked of a method for one example."""
    method = build_method(config.method.name, config.method.options, 1, ("all",))
    return Needs(method.uses_reference, method.needs_logits)


def objection_of(config: RunConfig, unit: str, has_groups: bool) -> str | None:
    """Why the config's method makes no sense for such losses, or None."""
    return find_method(config.method.name).objection(unit, has_groups)


def start_file(start: str) -> Path:
    """The weights that a `start:` names: a file, or those of a run's folder."""
    path = user_path(start)
    return path / WEIGHTS if path.is_dir() else path


def _model(spec: ModelSpec) -> dict[str, Any]:
    """A model spec; files by their content, so that other weights under the same path are another
    model."""
    own = ModelSpec(**_fields(spec))
    return {
        key: _file(value) if isinstance(value, str) else value
        for key, value in differences(own).items()
    }


def _fields(spec: ModelSpec) -> dict[str, Any]:
    """What a reference's section says of its model, without the keys of its own."""
    return {one.name: getattr(spec, one.name) for one in fields(ModelSpec)}


def _file(name: str | Path) -> str:
    """A file's digest; what is no file, as it is: a name of an architecture, a hub's tag."""
    path = user_path(name)
    try:
        return f"sha256:{known_sha256(path)}" if path.is_file() else str(name)
    except OSError as error:
        raise SteeringError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def renamed(ask: Ask, label: str, axes: Mapping[str, Any]) -> Ask:
    """The same run under another name in a study."""
    return replace(ask, label=label, axes=dict(axes))


def with_parents_first(asks: Sequence[Ask]) -> list[Ask]:
    """These asks and all that they are built on, each key once, parents before their children."""
    found: dict[str, Ask] = {}

    def add(ask: Ask) -> None:
        for parent in ask.parents.values():
            add(parent)
        found.setdefault(ask.key, ask)

    for ask in asks:
        add(ask)
    return list(found.values())
