"""What a training will take, from shapes alone: nothing is trained, and no weights are loaded.

Networks are built on the "meta" device. The numbers are those that a finished run's record has:
FLOPs are counted by torch in a forward pass on one example, a backward pass counts as two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from steering.config import RunConfig
from steering.dro.online.estimators import ProximalDual
from steering.dro.online.row_table import RowTable
from steering.errors import ConfigError, SteeringError
from steering.methods import Method, build_method
from steering.methods.selection import with_selection
from steering.outputs.kinds import compute
from steering.runs.ask import Ask, training
from steering.runs.measure import counted_flops, parameters, training_passes
from steering.task import Model, ModelSpec, Sketch, Task, find_task
from steering.training.plan import require_even_parts
from steering.training.selection import examples_drawn

FLOAT, MARK = (
    4,
    1,
)  # bytes: stored outputs are float32, and a byte of each example says if it is valid


@dataclass(frozen=True)
class Network:
    """A model in numbers.

    Attributes:
        flops: of a forward pass on one example; 0: they cannot be counted.
        outputs: name -> shape for one example.
    """

    name: str
    parameters: int
    flops: int
    outputs: dict[str, tuple[int, ...]]

    @property
    def output_bytes(self) -> int:
        """Of one example's outputs, stored."""
        return MARK + FLOAT * sum(math.prod(shape) for shape in self.outputs.values())


@dataclass(frozen=True)
class Forecast:
    """A training in numbers.

    Attributes:
        reference: None for a method that needs none.
        stored: whether the reference's outputs are computed beforehand and kept.
        examples: in the training data; None: unknown.
        unknown: why that is so.
        samples, drawn, scored, reference_samples: as in a record's `Cost`.
        dual_bytes: running estimates of the method in each process; None: unknown.
        flops: of the whole training, with a live reference.
        storing_flops: of one pass of the reference over the data, where its outputs are stored;
            None: unknown.
    """

    target: Network
    reference: Network | None
    stored: bool
    examples: int | None
    unknown: str
    processes: int
    steps: int
    samples: int
    drawn: int
    scored: int
    reference_samples: int
    dual_bytes: int | None
    flops: int
    storing_flops: int | None

    @property
    def cache_bytes(self) -> int | None:
        """Of the reference's stored outputs; None: there are none, or nobody knows how many."""
        if self.reference is None or not self.stored or self.examples is None:
            return None
        return self.examples * self.reference.output_bytes


def forecast(config: RunConfig) -> Forecast:
    """What the training of a config will take on `dry_run.processes` processes.

    Raises:
        ConfigError: an option is out of range, the method does not fit the task, or the batch does
            not split over the processes.
        SteeringError: a network cannot be had.
    """
    ask, plan, processes = training(config), config.train, config.dry_run.processes
    require_even_parts(plan, processes)
    task: Task = find_task(config.task.name)(config.task)
    objection = ask.objection(task.risk.unit, bool(task.groups))
    if objection is not None:
        raise ConfigError(objection)
    sketch = task.sketch(config.target)
    target = _network(task, sketch, config.target, "losses")
    reference = _reference(ask, task)
    examples, unknown = _examples(config, task, sketch.model)
    method = _method(config, task, examples or plan.batch_size)
    drawn = examples_drawn(plan, method.selector, examples or 1 << 62, processes)
    steps, selects = plan.samples // plan.batch_size, drawn > plan.batch_size
    samples, scored = steps * plan.batch_size, steps * drawn if selects else 0
    asked = _asked(ask, method, samples, scored)
    flops = training_passes(samples, scored, plan.accumulation) * target.flops
    stored = reference is not None and ask.stores_reference
    each = 0 if reference is None else reference.flops
    return Forecast(
        target=target,
        reference=reference,
        stored=stored,
        examples=examples,
        unknown=unknown,
        processes=processes,
        steps=steps,
        samples=samples,
        drawn=steps * drawn,
        scored=scored,
        reference_samples=asked,
        dual_bytes=None if examples is None else _dual_bytes(method, examples, processes),
        flops=flops + asked * each,
        storing_flops=_storing(stored, examples, each),
    )


def _network(task: Task, sketch: Sketch, spec: ModelSpec, kind: str) -> Network:
    module = sketch.model.module.eval()
    # Some libraries ask tensors for numbers, but not those that say that they are fake.
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        found = compute(kind, task.risk, module, sketch.batch)
        flops = counted_flops(task.risk, module, sketch.batch)
    shapes = {name: tuple(value.shape[1:]) for name, value in found.items()}
    return Network(spec.name, parameters(sketch.model), flops, shapes)


def _reference(ask: Ask, task: Task) -> Network | None:
    if not ask.needs.reference:
        return None
    return _network(task, task.sketch(ask.reference), ask.reference, ask.needs.outputs)


def _examples(config: RunConfig, task: Task, model: Model) -> tuple[int | None, str]:
    """How many there are, or None and why nobody knows."""
    if config.dry_run.examples is not None:
        return config.dry_run.examples, ""
    try:
        return len(task.plain_data(model)), ""
    except SteeringError as error:
        return None, str(error)


def _method(config: RunConfig, task: Task, examples: int) -> Method:
    """On the meta device, as its tables grow with the data."""
    name = config.method.name
    with torch.device("meta"):
        method = build_method(name, config.method.options, examples, task.groups, task.risk.unit)
        return with_selection(method, config.method.select, name)


def _dual_bytes(method: Method, examples: int, processes: int) -> int:
    """Of a process's share of what the method keeps of every example or row."""
    proximal = [part for part in method.modules() if isinstance(part, ProximalDual)]
    whole = {id(x): x for part in proximal for x in part.buffers() if x.numel() >= examples}
    found = [*method.buffers(), *_mapped_tables(method)]
    tables = [x for x in found if x.numel() >= examples and id(x) not in whole]
    # A table that is split needs no marks of what has been visited.
    if processes > 1:
        tables = [value for value in tables if value.is_floating_point()]
    split = sum(math.ceil(x.numel() / processes) * x.element_size() for x in tables)
    # The proximal estimator's is not: each process has all of it.
    return split + sum(x.nbytes for x in whole.values())


def _mapped_tables(method: Method) -> list[Tensor]:
    """What lies in files: no buffers."""
    tables = [part for part in method.modules() if isinstance(part, RowTable)]
    return [part.mapped for part in tables if part.mapped is not None]


def _asked(ask: Ask, method: Method, samples: int, scored: int) -> int:
    """Examples that a live reference runs on: a selector that asks it asks for all that is drawn."""
    if not ask.needs.reference or ask.stores_reference:
        return 0
    selector = method.selector
    return scored if scored and selector is not None and selector.needs.reference else samples


def _storing(stored: bool, examples: int | None, flops: int) -> int | None:
    if not stored:
        return 0
    return None if examples is None else examples * flops
