"""One run that is wanted, and the key that says which run that is.

A key is the digest of *what differs from the defaults*, of the parents' keys and of the schema's
version. So a new config key orphans no finished run, and a changed default is a new schema. Weights
and model files count by content, not by path, and so does code that a config names as
"file.py:name". Where a run is written, how often it logs, evaluates
and saves, and on which machine it runs are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from steering.config import RunConfig, to_yaml
from steering.errors import SteeringError
from steering.methods import Needs, find_method
from steering.methods.selection import selection_objection
from steering.reading import user_path
from steering.runs.record import SCHEMA, WEIGHTS
from steering.schema import optimizer_content
from steering.storage import known_sha256
from steering.task import ModelSpec
from steering.typed import differences

Kind = Literal["train", "evaluate", "outputs", "call"]
REFERENCE, START, MODEL = "reference", "start", "model"  # roles of parents
_NOT_TRAINED = ("log_every", "eval_every", "save_every", "workers", "threads", "board")


@dataclass(frozen=True)
class Ask:
    """One run that is wanted. Made by the functions of `steering.runs.ask`, and
    `steering.runs.call.calling`.

    Whatever the run needs to know of its config is worked out here, once, and handed down.

    Attributes:
        config: the run's.
        label: readable name of its folder.
        axes: what the study varies: "method", "seed", "width", ....
        parents: role -> the run that it is built on: "reference" (whose weights steer), "start"
            (whose weights the target starts from), "model" (whose target is evaluated, or whose
            outputs are stored), or a role of a function's own.
        kind: "train", "evaluate" a model, store its "outputs", or "call" a function.
        about: what an "outputs" ask wants, {"kind": "losses", "part": "train"}; the function of a
            "call", and its arguments.
        may_diverge: a training that diverges is a result, and gets a record that says so: a study
            tries settings. Not part of the key.
    """

    config: RunConfig
    label: str
    axes: Mapping[str, Any] = field(default_factory=dict)
    parents: Mapping[str, Ask] = field(default_factory=dict)
    kind: Kind = "train"
    about: Mapping[str, Any] = field(default_factory=dict)
    may_diverge: bool = False

    @cached_property
    def needs(self) -> Needs:
        return needs_of(self.config) if self.kind == "train" else Needs()

    @cached_property
    def yaml(self) -> str:
        """The config as text, for the run's folder."""
        return to_yaml(self.config)

    @cached_property
    def key(self) -> str:
        """64 hex digits that say which run this is."""
        parents = {role: ask.key for role, ask in self.parents.items()}
        return _digest([SCHEMA, self.kind, self._content(), parents])

    @cached_property
    def task_key(self) -> str:
        """Equal for runs on the same data."""
        return _digest(differences(self.config.task))

    @cached_property
    def asked(self) -> dict[str, str]:
        """Digests of parts: runs that agree in one must find the same there
        (`steering.runs.store.require_same_found`)."""
        found = {"task": self.task_key}
        if REFERENCE in self.parents:
            found["reference"] = self.parents[REFERENCE].key
        elif self.needs.reference and self.config.reference is not None:
            found["reference"] = _digest(model_content(self.config.reference))
        return found

    @cached_property
    def reference(self) -> ModelSpec:
        """The reference's model as its section gives it; SteeringError without such a section."""
        if self.config.reference is None:
            raise SteeringError(f"{self.label}: the config has no reference: section")
        return model_of(self.config.reference)

    @cached_property
    def start(self) -> Path | None:
        """The weights that `start:` names."""
        return None if self.config.start is None else start_file(self.config.start)

    @property
    def stores_reference(self) -> bool:
        """Whether the reference's outputs are computed beforehand, on the data as they are.

        A live reference sees the augmented view of an example.
        """
        return self.config.reference is not None and self.config.reference.cache is not None

    @cached_property
    def cache(self) -> Path | None:
        """Folder of the reference's stored outputs; None: beside the runs."""
        if self.kind != "train" or self.config.reference is None:
            return None
        where = self.config.reference.cache
        return None if where in (None, "auto") else user_path(str(where))

    def objection(self, unit: str, has_groups: bool) -> str | None:
        """Why this training makes no sense for such losses, or None."""
        method = self.config.method.name
        found = find_method(method).objection(unit, has_groups)
        found = found or selection_objection(self.config.method.select, unit)
        if found is not None:
            return f"method.name: {method} {found} (task {self.config.task.name})"
        size = self.config.train.batch_size
        if unit == "pair" and size < 2:
            return (
                "train.batch_size: a pair is compared with the others of its batch; expected at "
                f"least 2, got {size}"
            )
        return None

    def _content(self) -> dict[str, Any]:
        content = self._named()
        if code := {name: file_content(name) for name in sorted({*_code(content)})}:
            content["code"] = code
        return content

    def _named(self) -> dict[str, Any]:
        config = self.config
        content: dict[str, Any] = {"task": differences(config.task)}
        # Neither method nor seed play a part in the others; so they are found again whatever these
        # are.
        if self.kind != "train":
            model = (
                {}
                if self.kind == "call" or MODEL in self.parents
                else {"model": model_content(config.target)}
            )
            return content | model | dict(self.about)
        content |= {
            "target": model_content(config.target),
            "method": config.method.content(),
            "optimizer": optimizer_content(config.optimizer),
            "train": _without(differences(config.train), _NOT_TRAINED),
            "seed": config.seed,
        }
        if self.start is not None:
            content["start"] = file_content(self.start)
        if restart := differences(config.restart):
            content["restart"] = restart
        if self.needs.reference:
            content["stored"] = self.stores_reference
            if REFERENCE not in self.parents:
                content["reference"] = model_content(self.reference)
        return content


def needs_of(config: RunConfig) -> Needs:
    """What the config's method needs, and the selector before it."""
    own = find_method(config.method.name).needs(config.method.options)
    select = config.method.select
    return own if select is None else own | select.needs()


def start_file(start: str) -> Path:
    """The weights that a `start:` names: a file, or those of a run's folder."""
    path = user_path(start)
    return path / WEIGHTS if path.is_dir() else path


def model_content(spec: ModelSpec) -> dict[str, Any]:
    """A model spec; files by their content, so that other weights under the same path are another
    model."""
    own = model_of(spec)
    return {
        key: file_content(value) if isinstance(value, str) else value
        for key, value in differences(own).items()
    }


def model_of(spec: ModelSpec) -> ModelSpec:
    """What a reference's section says of its model, without the keys of its own."""
    return ModelSpec(**{one.name: getattr(spec, one.name) for one in fields(ModelSpec)})


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _code(values: Any) -> Iterator[str]:
    """The Python files that texts among nested plain values name as "file.py:name"."""
    if isinstance(values, str):
        file, colon, _ = values.rpartition(":")
        if colon and file.endswith(".py") and user_path(file).is_file():
            yield file
    elif isinstance(values, Mapping):
        yield from _code([*values.values()])
    elif isinstance(values, Sequence):
        for value in values:
            yield from _code(value)


def file_content(name: str | Path) -> str:
    """A file's digest, or that of a model's folder as `transformers` writes it; what is neither, as it
    is: a name of an architecture, a hub's tag."""
    path = user_path(name)
    try:
        if (path / "config.json").is_file():
            files = [one for one in sorted(path.iterdir()) if one.is_file()]
            return f"sha256:{_digest([[one.name, known_sha256(one)] for one in files])}"
        return f"sha256:{known_sha256(path)}" if path.is_file() else str(name)
    except OSError as error:
        raise SteeringError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
