"""What a run's config may say: the sections, and how plain values become them.

OmegaConf converts the leaves, so `lr: 1e-3` or a quoted number mean what they say in YAML; it is
not seen below this module and `steering.config`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from steering.errors import ConfigError, SteeringError  # noqa: F401  (some import ConfigError from here)
from steering.task import ModelSpec
from steering.values import Fail, described, fitted, quote_it, section_of, shown

MISSING: Any = "???"


@dataclass
class ReferenceConfig(ModelSpec):
    """The frozen model that steers: a model spec, and where its outputs come from."""

    cache: str | None = None
    """Where its outputs are kept: null runs it live, "auto" is a folder under `output`, anything
    else is a folder."""
    train: dict[str, Any] | None = None
    """Dotted overrides for the run that trains the reference itself, such as
    `train.samples: 20000`."""
    label: str | None = None
    """Its name in tables and folders; null: "reference", or its key in `references`."""


@dataclass(frozen=True)
class MethodConfig:
    """The `method:` section: a registered name, and that method's own options."""

    name: str
    """A registered method: erm, dro, drrho, ..."""
    options: Any
    """An instance of the method's options dataclass."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, with a warm-up and a schedule."""

    lr: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the two moments, each in [0, 1)."""
    eps: float = 1e-6
    """Added to the root of the second moment."""
    warmup: float = 0.05
    """Linear warm-up: a fraction of the steps if below 1, else a number of steps."""
    schedule: str = "cosine"
    """What follows the warm-up: "cosine" or "constant"."""
    final_lr: float = 0.0
    """Where the cosine ends, as a fraction of `lr`."""
    temperature_lr: float | None = None
    """Learning rate of a learned temperature; null: `lr`."""


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    samples: int = MISSING
    """Training examples drawn in total, over all ranks."""
    batch_size: int = MISSING
    """Examples in one step, over all ranks."""
    accumulation: int = 1
    """Micro-batches per step and rank; divides the batch size. The gradient is that of the whole
    batch."""
    precision: str = "fp32"
    """"fp32", "bf16" or "fp16": the autocast of the models; losses are always float32."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; null: no clipping."""
    workers: int = 0
    """Loader processes per rank."""
    log_every: int = 20
    """Steps between two log entries."""
    eval_every: int = 0
    """Steps between two evaluations; 0: only at the end."""
    save_every: int = 0
    """Steps between two checkpoints; 0: only at the end."""
    threads: int | None = None
    """CPU threads of each process; null: torch's choice."""


@dataclass(frozen=True)
class CompareConfig:
    """What `steering compare` runs: every method with every seed."""

    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label in tables and figures → a `method:` section."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of each method."""
    baseline: str | None = None
    """Label of the method that the others are compared with; null: the first."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a config file after its overrides, typed and checked."""

    name: str = "run"
    """Names the run in logs and folders."""
    seed: int = 0
    """Seed of everything random."""
    output: str = "runs"
    """Folder for what the run writes."""
    device: str = "auto"
    """"auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N"."""
    smoke: bool = False
    """Apply `smoke_overrides`: a run that ends in seconds on a CPU."""
    task: Any
    """An instance of the task's `Options`."""
    target: ModelSpec
    """The model to train."""
    reference: ReferenceConfig | None = None
    """The frozen model that steers; null: none."""
    method: MethodConfig
    """How losses become weights."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    train: TrainConfig
    """The loop."""
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further references by name, each as `reference:`; `reference: NAME` chooses one, also in a
    method of `compare`."""
    start: str | None = None
    """Weights that the target starts from: a `model.safetensors`, or the folder of a finished run;
    null: its own."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """The study of `steering compare`."""
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of other studies, by the study's name."""
    jobs: int = 1
    """Runs of a study that are done at the same time, in processes of their own."""
    smoke_overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, applied when `smoke` is true, before the command line; empty once they
    are applied."""


def typed(
    cls: type, raw: Mapping[str, Any], path: str, fail: Fail, given: Mapping[str, Any] | None = None
) -> Any:
    """Build a dataclass, and those nested in it, from plain values.

    Args:
        cls: any dataclass whose field types OmegaConf knows.
        raw: key → plain value; "???" is a value still missing.
        path: dotted path of the section, for messages; "" at the top.
        fail: raises the error of an unknown key, a missing value or a value of another type.
        given: fields that are built already.
    """
    check_keys(cls, raw, path, fail)
    return _build(cls, raw, path, fail, None, given or {})


def check_keys(cls: type, raw: Mapping[str, Any], path: str, fail: Fail) -> None:
    """Refuse, through `fail`, a key that is no field of the dataclass, and name the nearest one
    that is."""
    for key in raw:
        if not isinstance(key, str):
            fail(
                path,
                f"unknown key {f'{path}.' if path else ''}{str(key)!r} ({type(key).__name__}){quote_it(key)}",
            )
        if message := _unknown(cls, key, path):
            fail(f"{path}.{key}" if path else key, message)


def check_dotted(cls: type, keys: Mapping[str, Any], path: str, fail: Fail) -> None:
    """Check the part of each dotted key that is known before a task and a method are chosen."""
    for dotted in keys:
        if not isinstance(dotted, str):
            fail(
                path,
                f"{path}: unknown key {str(dotted)!r} ({type(dotted).__name__}){quote_it(dotted)}",
            )
        section: type | None = cls
        walked = ""
        for part in dotted.split("."):
            if section is None or section is MethodConfig:  # from here on a plug-in decides
                break
            if message := _unknown(section, part, walked):
                fail(f"{path}.{dotted}", f"{path}: {message}")
            walked = f"{walked}.{part}" if walked else part
            section = section_of(_hints(section)[part])


def plain(value: Any) -> Any:
    """Dataclasses, tuples, enums and paths as what YAML can write; a MethodConfig as its flat
    section."""
    if isinstance(value, MethodConfig):
        return {"name": value.name, **plain(value.options)}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.init}
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, Enum):
        return value.name
    return (
        value
        if value is None or isinstance(value, bool | int | float | str | bytes)
        else str(value)
    )


def literal(value: Any) -> Any:
    """The same plain value with every "${" escaped, so that OmegaConf reads it as text and not as
    an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", value)
    if isinstance(value, dict):
        return {key: literal(entry) for key, entry in value.items()}
    return [literal(entry) for entry in value] if isinstance(value, list) else value


def _build(
    cls: type, raw: Mapping[str, Any], path: str, fail: Fail, base: Any, given: Mapping[str, Any]
) -> Any:
    """`typed` without the check of this level's keys; `base` is the default instance that `raw`
    changes, or None."""
    hints, template, values = _hints(cls), _template(cls), dict(given)
    for f in fields(cls):
        if not f.init or f.name in given:
            continue
        here = f"{path}.{f.name}" if path else f.name
        default = default_of(f) if base is None else getattr(base, f.name)
        value, section = raw.get(f.name, default), section_of(hints[f.name])
        if section is not None and value is not None:
            entries = {} if value is default or value == MISSING else value
            if not isinstance(entries, Mapping):
                fail(here, f"{here}: expected a section, got {shown(value)}")
            check_keys(section, entries, here, fail)
            values[f.name] = _build(
                section, entries, here, fail, default if is_dataclass(default) else None, {}
            )
        elif isinstance(value, str) and value == MISSING:
            fail(here, f"{here} is missing; expected {described(hints[f.name])}")
        else:
            values[f.name] = (
                default
                if value is default
                else _leaf(template, f.name, value, here, hints[f.name], fail)
            )
    try:
        return cls(**values)
    except (ValueError, SteeringError) as error:  # the dataclass's own checks, in __post_init__
        fail(path, f"{path}: {error}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _template(cls: type) -> Any:
    """OmegaConf's form of a dataclass, to convert one value at a time: a study builds hundreds of
    configs."""
    template = OmegaConf.structured(cls)
    OmegaConf.set_readonly(template, False)  # as a frozen dataclass is
    return template


def _leaf(template: Any, key: str, value: Any, path: str, hint: Any, fail: Fail) -> Any:
    """The value as the field's type, converted by OmegaConf."""
    value = fitted(value, hint, path, fail)
    try:
        OmegaConf.update(template, key, literal(value), merge=False)
        found = template[key]
        return OmegaConf.to_object(found) if OmegaConf.is_config(found) else found
    except MissingMandatoryValue:
        fail(path, f"{path} is missing a value in {shown(value)}; expected {described(hint)}")
    except OmegaConfBaseException:
        fail(path, f"{path}: expected {described(hint)}, got {shown(value)}")


def default_of(f: Field[Any]) -> Any:
    """The default of a field; `MISSING` if it has none."""
    if f.default_factory is not NO_DEFAULT:
        return f.default_factory()
    return MISSING if f.default is NO_DEFAULT else f.default


def _unknown(cls: type, key: str, path: str) -> str | None:
    known, prefix = [f.name for f in fields(cls) if f.init], f"{path}." if path else ""
    return None if key in known else f"unknown key {prefix + key!r}; {nearest(key, known, prefix)}"


def nearest(key: str, known: list[str], prefix: str = "", *, keys: bool = True) -> str:
    """A hint for a message: the nearest known name beside this one, else, of `keys`, of another
    section, else all known."""
    elsewhere = (
        {f.name: f"{s.name}.{f.name}" for s in fields(RunConfig) for f in _fields_of(s.name)}
        if keys
        else {}
    )
    if near := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {prefix + near[0]!r}?"
    if near := difflib.get_close_matches(key, elsewhere, n=1):
        return f"did you mean {elsewhere[near[0]]!r}?"
    return f"known: {', '.join(prefix + name for name in known)}"


def _fields_of(section: str) -> tuple[Field[Any], ...]:
    found = section_of(_hints(RunConfig)[section])
    return () if found is None or found is MethodConfig else fields(found)
