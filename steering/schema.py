"""What a run's config may say: its sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from steering.errors import ConfigError  # noqa: F401  (some import it from here)
from steering.methods.selection import SELECTORS, SelectorOptions
from steering.registry import chosen, registry_of, several
from steering.task import ModelSpec
from steering.training.observers import OBSERVERS, ObserverOptions
from steering.training.recipes import OPTIMIZERS, AdamW, Recipe
from steering.typed import (  # noqa: F401  (some import them from here)
    KEYS,
    MISSING,
    check_keys,
    default_of,
    differences,
    hints_of,
    literal,
    nearest,
    plain,
    typed,
)
from steering.typed import unknown_key as _unknown
from steering.values import Fail, quote_it, section_of, shown  # noqa: F401


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
    select: SelectorOptions | None = chosen(SELECTORS, None)
    """Chooses the examples to train on before the method weighs them; null: all are."""

    def section(self) -> dict[str, Any]:
        """The flat section: the name beside the options."""
        return {"name": self.name, **plain(self.options), **self._selected(plain)}

    def content(self) -> dict[str, Any]:
        """What of the section differs from the defaults, for a run's key."""
        return {"name": self.name, **differences(self.options), **self._selected(differences)}

    def _selected(self, told: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # Absent where there is none: a method without a selector has the section it always had.
        if self.select is None:
            return {}
        return {"select": {"name": SELECTORS.name_of(self.select), **told(self.select)}}


def optimizer_content(recipe: Recipe) -> dict[str, Any]:
    """What of the `optimizer:` section differs from the defaults, for a run's key.

    AdamW goes without its name, and a schedule that has nothing but a name is that name: so it was
    written before there were others, and no finished run loses its key.
    """
    found = differences(recipe)
    schedule = found.get("schedule")
    if schedule is not None and schedule.keys() == {"name"}:
        found["schedule"] = schedule["name"]
    name = OPTIMIZERS.name_of(recipe)
    return found if name == "adamw" else {"name": name, **found}


@dataclass(frozen=True)
class BoardConfig:
    """What TensorBoard counts by, and how often it is given more than scalars, which cost more than
    those."""

    axis: str = "steps"
    """"steps", or "samples" that were trained on: runs with other batch sizes lie side by side."""
    histograms_every: int = 100
    """Steps between two histograms of weights and losses; 0: none."""
    pictures_every: int = 1000
    """Steps between two pictures: the map, the examples that weigh most and least, and, with the next
    evaluation and the last, the evaluated ones with the highest loss; 0: none."""
    examples: int = 8
    """Examples of each kind in a picture; 0: no picture of examples."""


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
    observers: tuple[ObserverOptions, ...] = several(OBSERVERS)
    """What looks on beside log, evaluations and checkpoints, such as `{name: ema}`."""
    board: BoardConfig = field(default_factory=BoardConfig)
    """What TensorBoard is given beside scalars."""


@dataclass(frozen=True)
class CompareConfig:
    """What `steering compare` runs: every method with every seed."""

    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Label in tables and figures → a `method:` section."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds of each method."""
    baseline: str | None = None
    """Label of the method that the others are compared with; null: the first."""


@dataclass(frozen=True)
class RestartConfig:
    """What a run that starts from another one's weights takes over of it, and changes."""

    optimizer: bool = False
    """Go on with the optimiser's state of the end of that run: moments, not rates."""
    method: bool = False
    """Go on with the method's memory of the end of that run: running estimates, weights of groups, a
    learned temperature. The method and the training examples must be the same."""
    noise: float = 0.0
    """Gaussian noise on the weights before the first step, of this times the deviation of each
    tensor; drawn by the run's seed."""


@dataclass(frozen=True)
class DryRunConfig:
    """What `steering dry-run` reckons with; no run depends on it."""

    examples: int | None = None
    """Training examples; null: as many as the data have, which must be there to be counted."""
    processes: int = 1
    """Processes of the run, each with a GPU."""


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
    optimizer: Recipe = chosen(OPTIMIZERS, AdamW())
    """An optimiser and its schedules; a section without a name is AdamW."""
    train: TrainConfig
    """The loop."""
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Further references by name, each as `reference:`; `reference: NAME` chooses one, also in a
    method of `compare`."""
    start: str | None = None
    """Weights that the target starts from: a `model.safetensors`, or the folder of a finished run;
    null: its own."""
    restart: RestartConfig = field(default_factory=RestartConfig)
    """How it goes on from `start`."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """The study of `steering compare`."""
    dry_run: DryRunConfig = field(default_factory=DryRunConfig)
    """What `steering dry-run` reckons with."""
    studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of other studies, by the study's name."""
    jobs: int = 1
    """Runs of a study that are done at the same time, in processes of their own."""
    smoke_overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted key → value, applied when `smoke` is true, before the command line; empty once they
    are applied."""


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
            section = _section(section, part)


def _section(cls: type, key: str) -> type | None:
    """The dataclass of a section below a section; None for a value, and where a plug-in decides."""
    part = any(f.name == key and registry_of(f.metadata) is not None for f in fields(cls))
    return None if part else section_of(hints_of(cls)[key])


def _fields_of(section: Field[Any]) -> tuple[Field[Any], ...]:
    """The keys of a section; of one that chooses a part those of its default."""
    if registry_of(section.metadata) is not None:
        return fields(type(default_of(section)))
    found = _section(RunConfig, section.name)
    return () if found is None or found is MethodConfig else fields(found)


KEYS.update({f.name: f"{s.name}.{f.name}" for s in fields(RunConfig) for f in _fields_of(s)})
