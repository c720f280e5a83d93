"""A run's config: one YAML file and `a.b=c` overrides, turned into checked dataclasses.

The rest of the package sees those dataclasses only. Every mistake is a `ConfigError` that names the key, and the file
or "command line" that set it. A value replaces what it overrides; of two overrides the deeper key wins, else the later.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steering.errors import SteeringError
from steering.methods import find_method, registered
from steering.reading import user_path
from steering.schema import (  # noqa: F401  (the dataclasses are for the callers)
    MISSING,
    CompareConfig,
    ConfigError,
    MethodConfig,
    OptimizerConfig,
    ReferenceConfig,
    RunConfig,
    TrainConfig,
    check_dotted,
    check_keys,
    literal,
    nearest,
    plain,
    typed,
)
from steering.task import ModelSpec, find_task  # noqa: F401
from steering.values import quote_it, shown
from steering.yaml_text import read_sections, read_value

_DOTTED = ("smoke_overrides", "reference.train")  # mappings whose own keys are dotted
_NAMED = ("task", "target", "reference", "method")  # sections that `key=name` may replace
_NOT_IN_DIGEST = ("name", "output", "smoke", "smoke_overrides", "compare")
_NOT_IN_TRAIN_DIGEST = ("log_every", "eval_every", "save_every", "workers", "threads")
_AT_LEAST = {
    **dict.fromkeys(("seed", "train.workers", "train.eval_every", "train.save_every"), 0),
    **dict.fromkeys(("optimizer." + key for key in ("lr", "weight_decay", "eps", "final_lr", "temperature_lr")), 0),
    **dict.fromkeys(("train." + key for key in ("samples", "batch_size", "accumulation", "log_every", "threads")), 1),
}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read and check a config file.

    Args:
        path: YAML; interpolations such as ${seed} are resolved after the overrides.
        overrides: "a.b=c" with c in YAML. `method=drrho` changes to that method with its own defaults, or keeps the
            section when it names the method already; so do `task=`, `target=` and `reference=`.

    Returns:
        The run. When `smoke` is true, `smoke_overrides` are applied below `overrides`, and then empty.

    Raises:
        ConfigError: names the key, what was expected, and the file (or "command line").
    """
    return _finish(_read(user_path(path)), _parse(overrides), "command line")


def with_overrides(config: RunConfig, overrides: Mapping[str, Any], source: str = "overrides") -> RunConfig:
    """The same run with other values, checked anew.

    Args:
        overrides: dotted key → value, which replaces the old one; a dataclass such as a ModelSpec serves as a section.
        source: who asks, for messages: "reference.train of glyphs.yaml".
    """
    tree = _Tree(literal(plain(config)), f"config {config.name!r}")
    return _finish(tree, {key: literal(plain(value)) for key, value in overrides.items()}.items(), source)


def with_method(config: RunConfig, section: Mapping[str, Any]) -> RunConfig:
    """The same run with another method; `section` is a whole `method:` section, such as one of `compare.methods`."""
    return with_overrides(config, {"method": section}, "method")


def to_yaml(config: RunConfig) -> str:
    """A file that `load_config` reads back as an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(literal(plain(config))))


def config_digest(config: RunConfig, *more: str) -> str:
    """Hex digest (64 digits) of all that changes the result.

    Left out: name, output, compare, the smoke keys, and log_every, eval_every, save_every, workers and threads of `train`. Of a
    reference's cache only whether there is one counts. The files a config points to count by path: give their
    fingerprints as `more`.
    """
    values = {key: value for key, value in plain(config).items() if key not in _NOT_IN_DIGEST}
    values["train"] = {key: value for key, value in values["train"].items() if key not in _NOT_IN_TRAIN_DIGEST}
    if config.reference is not None:
        values["reference"]["cache"] = config.reference.cache is not None
    return hashlib.sha256(json.dumps([values, *more], sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class _Tree:
    """Nested plain values on their way to a RunConfig, and who set what."""

    values: dict[str, Any]
    where: str
    set_by: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, by: str) -> None:
        """Replace one value; sections on the way that are absent or null are made."""
        *above, last = _split(key)
        node = self.values
        for depth, part in enumerate(above, 1):
            if node.get(part) in (None, MISSING):
                node[part] = {}
                self.set_by[".".join(above[:depth])] = by
            if not isinstance(node[part], dict):
                raise ConfigError(f"{by}: {key}: {'.'.join(above[:depth])} is a value, not a section")
            node = node[part]
        old = node.get(last)
        if _is_name(key, value):
            value = old if isinstance(old, dict) and old.get("name") == value else {"name": value}
        node[last] = value
        self.set_by.pop(key, None)  # the latest stands last
        self.set_by[key] = by

    def source(self, path: str) -> str:
        """Who set the value at a dotted path: the file, or the source of the overrides at, above or below it."""
        above = [by for key, by in self.set_by.items() if path == key or path.startswith((f"{key}.", f"{key}["))]
        if above:
            return above[-1]
        below = dict.fromkeys(by for key, by in self.set_by.items() if key.startswith(f"{path}."))
        return ", ".join([self.where, *below])

    def fail(self, path: str, message: str) -> NoReturn:
        raise ConfigError(f"{self.source(path)}: {message}")


def _finish(tree: _Tree, overrides: Iterable[tuple[str, Any]], by: str) -> RunConfig:
    """Apply the overrides, below them the smoke ones if they are asked for, and build the config."""
    overrides = [*overrides]
    changed = _overridden(tree, overrides, by)
    raw = _resolved(changed)
    smoke, smoke_overrides = raw.get("smoke", False), raw.get("smoke_overrides")
    if not isinstance(smoke, bool):
        changed.fail("smoke", f"smoke: expected true or false, got {smoke!r}")
    if smoke and isinstance(smoke_overrides, dict) and smoke_overrides:
        check_dotted(RunConfig, smoke_overrides, "smoke_overrides", changed.fail)
        small = _overridden(tree, literal(smoke_overrides).items(), f"smoke_overrides of {tree.where}")
        changed = _overridden(small, overrides, by)
        changed.values["smoke_overrides"] = {}
        raw = _resolved(changed)
    return _built(changed, raw)


def _overridden(tree: _Tree, overrides: Iterable[tuple[str, Any]], by: str) -> _Tree:
    changed = copy.deepcopy(tree)
    for key, value in sorted(overrides, key=lambda pair: len(_split(pair[0]))):  # sections first, else in order
        changed.set(key, value, by)
    return changed


def _resolved(tree: _Tree) -> dict[str, Any]:
    """The values with their interpolations resolved, and names in the place of sections written out."""
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.create(tree.values), resolve=True)
    except OmegaConfBaseException as error:
        tree.fail(error.full_key or "", f"{error.full_key or 'interpolation'}: {str(error).splitlines()[0]}")
    return _spelled_out(raw)


def _built(tree: _Tree, raw: dict[str, Any]) -> RunConfig:
    check_keys(RunConfig, raw, "", tree.fail)
    given = {"task": _task(tree, raw.get("task")), "method": _method(tree, raw.get("method"), "method")}
    config: RunConfig = typed(RunConfig, raw, "", tree.fail, given)
    for label, section in config.compare.methods.items():
        _method(tree, section, f"compare.methods.{label}")
    check_dotted(RunConfig, config.smoke_overrides, "smoke_overrides", tree.fail)
    if config.reference is not None:
        check_dotted(RunConfig, config.reference.train or {}, "reference.train", tree.fail)
    for path, message in _problems(config):
        tree.fail(path, message)
    return config


def _task(tree: _Tree, section: Any) -> Any:
    name = _name(tree, section, "task")
    try:
        options = find_task(name).Options
    except SteeringError as error:
        tree.fail("task.name", str(error))
    return typed(options, section, "task", tree.fail)


def _method(tree: _Tree, section: Any, path: str) -> MethodConfig:
    name = _name(tree, section, path)
    try:
        entry = find_method(name)
    except SteeringError as error:
        known = f"{path}.name: no method {name!r}; {nearest(name, [*registered()], keys=False)}"
        tree.fail(f"{path}.name", str(error).replace("method.name", f"{path}.name", 1) if ":" in name else known)
    options = {key: value for key, value in section.items() if key != "name"}
    own = {option.name for option in fields(entry.options)}
    for key in (key for key in options if key not in own):
        others = [other for other, found in registered().items() if key in {f.name for f in fields(found.options)}]
        if others:
            tree.fail(f"{path}.{key}", f"{path}.{key} is a key of {', '.join(others)}, not of {name}")
    return MethodConfig(name, typed(entry.options, options, path, tree.fail))


def _name(tree: _Tree, section: Any, path: str) -> str:
    """The `name` of a section that chooses a plug-in."""
    name = section.get("name") if isinstance(section, dict) else None
    if isinstance(section, bool | int | float):  # such as `method: no`
        tree.fail(path, f"{path}: expected a section or a name, got {shown(section)}{quote_it(section)}")
    if not isinstance(name, str) or name == MISSING:
        got = (
            " is missing; expected str" if name in (None, MISSING) else f": expected str, got {name!r}{quote_it(name)}"
        )
        tree.fail(f"{path}.name", f"{path}.name{got}")
    return name


def _read(path: Path) -> _Tree:
    """The file's values, interpolations unresolved."""
    return _Tree(_spelled_out(read_sections(path)), str(path))


def _parse(overrides: Iterable[str]) -> Iterator[tuple[str, Any]]:
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() == part != "" for part in key.split(".")):
            raise ConfigError(f"command line: {text!r} is no override; write key=value, such as train.batch_size=64")
        yield key, read_value(value, key)


def _split(key: str) -> list[str]:
    """The parts of a dotted key; behind a mapping of dotted keys the rest is one part."""
    for section in _DOTTED:
        if key.startswith(f"{section}."):
            return [*section.split("."), key.removeprefix(f"{section}.")]
    return key.split(".")


def _is_name(key: str, value: Any) -> bool:
    """True for the drrho of `method: drrho`, which means `method: {name: drrho}`."""
    return key in _NAMED and isinstance(value, str) and value != MISSING and "${" not in value


def _spelled_out(values: dict[str, Any]) -> dict[str, Any]:
    return {key: {"name": value} if _is_name(key, value) else value for key, value in values.items()}


def _problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Dotted key and message of every value outside its range."""
    for path, low in _AT_LEAST.items():
        value: Any = reduce(getattr, path.split("."), config)
        if value is not None and not low <= value < math.inf:
            yield path, f"{path}: expected at least {low}, got {value}"
    for path, valid, expected in _rules(config):
        if not valid:
            yield path, f"{path}: expected {expected}, got {reduce(getattr, path.split('.'), config)!r}"
    samples, batch = config.train.samples, config.train.batch_size
    if samples < batch:
        yield "train.samples", f"train.samples: {samples} is less than one batch, train.batch_size {batch}"


def _rules(config: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """Dotted key, whether its value is in range, and what was expected."""
    optimizer, train, compare = config.optimizer, config.train, config.compare
    yield "name", config.name.strip() != "", "a name that is not empty"
    yield "output", config.output.strip() != "", "a folder"
    yield "device", re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device) is not None, "auto, cpu, cuda or cuda:N"
    warmup_ok = 0 <= optimizer.warmup < 1 or (optimizer.warmup > 0 and optimizer.warmup.is_integer())
    yield "optimizer.warmup", warmup_ok, "a fraction in [0, 1) or a number of steps"
    yield "optimizer.betas", all(0 <= beta < 1 for beta in optimizer.betas), "two numbers in [0, 1)"
    yield "optimizer.eps", optimizer.eps > 0, "a positive number"
    yield "optimizer.schedule", optimizer.schedule in ("cosine", "constant"), "cosine or constant"
    yield "optimizer.final_lr", optimizer.final_lr <= 1, "a fraction in [0, 1]"
    divides = train.batch_size % train.accumulation == 0
    yield "train.accumulation", divides, f"a divisor of train.batch_size {train.batch_size}"
    yield "train.precision", train.precision in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"
    yield "train.clip_norm", train.clip_norm is None or train.clip_norm > 0, "null or a positive number"
    seeds_ok = all(seed >= 0 for seed in compare.seeds) and len(set(compare.seeds)) == len(compare.seeds) > 0
    yield "compare.seeds", seeds_ok, "one or more different numbers >= 0"
    labels_ok = all(label.strip() and "/" not in label for label in compare.methods)
    yield "compare.methods", labels_ok, "labels that are not empty and have no '/'"
