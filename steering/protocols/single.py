"""One run from a config: train it, evaluate it, or cache its reference."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from steering import distributed
from steering.analysis.report import print_results
from steering.config import RunConfig, config_digest, to_yaml, with_overrides
from steering.errors import ConfigError, SteeringError
from steering.methods import Method, build_method, find_method
from steering.reading import user_path
from steering.reference import (
    CachedReference,
    Fingerprint,
    LiveReference,
    Reference,
    ReferenceCache,
    build_cache,
    weights_fingerprint,
)
from steering.task import Model, ModelSpec, Task, find_task
from steering.training.checkpoint import read_json, require_same_run
from steering.training.loader import load
from steering.training.log import CONSOLE
from steering.training.loop import Job, run
from steering.training.session import session

_LOG = logging.getLogger("steering")


def study_folder(config: RunConfig) -> Path:
    """Where everything of a config goes: output/name, or output/name-smoke, so that a trial never stands in a real run's way."""
    return user_path(config.output) / (f"{config.name}-smoke" if config.smoke else config.name)


def run_folder(config: RunConfig, label: str | None = None) -> Path:
    """Folder of one run; the label is the method's unless a study gives its own."""
    name = config.method.name.rpartition(":")[2]  # "file.py:name" is a method from outside
    return study_folder(config) / f"{label or name}-seed{config.seed}"


def train(config: RunConfig) -> None:
    """`steering train`: one run to its end, resumed if it was interrupted, and its metrics."""
    with session(config.device, config.train.threads) as device:
        folder = run_folder(config)
        result = train_run(config, folder, config.method.name, device)
        styles = find_task(config.task.name).metrics
        if distributed.rank() == 0:
            print_results([result_row(config.method.name, config.seed, result)], str(folder), styles)
            CONSOLE.print(f"weights: {folder}/model.safetensors   TensorBoard: tensorboard --logdir {folder}")


def evaluate(config: RunConfig) -> None:
    """`steering evaluate`: the target (its given weights, else those of the finished run) and the reference, if any."""
    with session(config.device, config.train.threads) as device:
        task = find_task(config.task.name)(config.task)
        spec, folder = config.target, run_folder(config)
        if spec.checkpoint is None and spec.pretrained is None:
            spec = replace(spec, checkpoint=str(folder / "model.safetensors"))
            if not Path(str(spec.checkpoint)).is_file():
                raise SteeringError(
                    f"evaluate: no finished run in {folder}; train it, or set target.checkpoint or target.pretrained"
                )
        rows = [evaluated_row("target", task, task.build(spec), device)]
        if config.reference is not None:
            reference, _ = reference_model(config, task, device)
            rows.append(evaluated_row("reference", task, reference, device))
        if distributed.rank() == 0:
            print_results(rows, f"{spec.name} {spec.checkpoint or spec.pretrained}", task.metrics)


def cache(config: RunConfig) -> None:
    """`steering cache`: run the reference once over the training data and keep its outputs."""
    with session(config.device, config.train.threads) as device:
        if config.reference is None:
            raise ConfigError("reference: the config names none, so there is nothing to cache")
        task = fitting_task(config)
        found = cached_reference(config, task, *reference_model(config, task, device), device)
        if distributed.rank() == 0:
            missing = f", {found.missing:,} could not be read" if found.missing else ""
            CONSOLE.print(
                f"{len(found) - found.missing} examples cached in {found.folder} ({found.seconds:.1f} s){missing}"
            )


def train_run(config: RunConfig, folder: Path, title: str, device: torch.device) -> dict[str, Any]:
    """Train one config into a folder, or hand out its result if that has been done.

    Raises:
        SteeringError: the folder holds another run.
    """
    task = fitting_task(config)
    torch.manual_seed(config.seed)
    target = task.build(config.target)
    guide = _Guide(None, None, {})
    if method_uses_reference(config):
        guide = _guide(config, task, device)
        torch.manual_seed(config.seed)
    data = task.train_data(target, guide.live, config.seed)
    identity = {
        "config": config_digest(config),
        "preprocessing": target.inputs_fingerprint,
        "data": data.fingerprint(),
        **guide.identity,
    }
    done = finished(folder, identity, to_yaml(config))
    if done is not None:
        return done
    distributed.barrier()  # nobody may find a result that another rank has just written
    counts = data.group_counts(len(task.groups))
    method = build_method(
        config.method.name, config.method.options, len(data), task.groups, task.risk.unit, group_counts=counts
    )
    return run(
        Job(
            folder=folder,
            title=title,
            task=task,
            target=target,
            reference=guide.reference,
            method=method,
            data=data,
            optimizer=config.optimizer,
            train=config.train,
            seed=config.seed,
            device=device,
            identity=identity,
            config=to_yaml(config),
        )
    )


def finished(folder: Path, identity: dict[str, str], config: str | None = None) -> dict[str, Any] | None:
    """The result of a finished run, None when there is none yet; SteeringError when it is another's."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    result = read_json(path)
    require_same_run(folder, result["identity"], identity, config)
    return result


@dataclass(frozen=True)
class _Guide:
    """What steers a run: the reference, the live model if it needs its own view of the data, and what says who it is."""

    reference: Reference | None
    live: Model | None
    identity: dict[str, str]


def fitting_task(config: RunConfig) -> Task:
    """The config's task, set up for its method; ConfigError when the two do not fit, or an option is out of range."""
    method = _small_method(config)  # before the data are opened, which may take a while
    task = find_task(config.task.name)(config.task)
    objection = find_method(config.method.name).objection(task.risk.unit, bool(task.groups))
    if objection is not None:
        raise ConfigError(f"method.name: {config.method.name} {objection} (task {config.task.name})")
    if task.risk.unit == "pair" and config.train.batch_size < 2:
        raise ConfigError(
            f"train.batch_size: a pair is compared with the others of its batch; expected at least 2, got "
            f"{config.train.batch_size}"
        )
    task.risk.with_logits = method.needs_logits
    return task


def _small_method(config: RunConfig) -> Method:
    """The config's method for one example, to ask what it needs."""
    return build_method(config.method.name, config.method.options, 1, ("all",))


def method_uses_reference(config: RunConfig) -> bool:
    """Whether the method asks for a reference; ConfigError when it does and the config has none."""
    uses = _small_method(config).uses_reference
    if uses and config.reference is None:
        raise ConfigError(f"method.name: {config.method.name} needs a reference; add a reference: section")
    return uses


def _guide(config: RunConfig, task: Task, device: torch.device) -> _Guide:
    assert config.reference is not None
    model, digest = reference_model(config, task, device)
    identity = {"reference weights": digest, "reference preprocessing": model.inputs_fingerprint}
    if config.reference.cache is None:
        return _Guide(LiveReference(model.module.to(device), task.risk), model, identity)
    return _Guide(CachedReference(cached_reference(config, task, model, digest, device)), None, identity)


def reference_model(config: RunConfig, task: Task, device: torch.device) -> tuple[Model, str]:
    """The frozen reference and its weights' digest; trained first if the config says how and there are no weights yet."""
    assert config.reference is not None
    spec = ModelSpec(**{field.name: getattr(config.reference, field.name) for field in fields(ModelSpec)})
    if config.reference.train is not None and spec.checkpoint is None:
        folder = study_folder(config) / "reference"
        train_run(reference_run(config), folder, "reference", device)
        spec = replace(spec, checkpoint=str(folder / "model.safetensors"))
    model = task.build(spec)
    model.module.eval().requires_grad_(False)
    return model, weights_fingerprint(model.module)


def reference_run(config: RunConfig) -> RunConfig:
    """The run that trains the reference itself: plain training of its architecture, with the changes of `reference.train`."""
    assert config.reference is not None
    spec = {field.name: getattr(config.reference, field.name) for field in fields(ModelSpec)}
    base = with_overrides(config, {"target": spec, "reference": None, "method": {"name": "erm"}, "seed": 0})
    return with_overrides(base, config.reference.train or {}, "reference.train")


def cached_reference(config: RunConfig, task: Task, model: Model, weights: str, device: torch.device) -> ReferenceCache:
    """The reference's cache for the config's data, built if it is not there; `weights` is the digest of the model's."""
    assert config.reference is not None
    data = task.plain_data(model)
    where = config.reference.cache
    kind = "with logits" if task.risk.with_logits else "losses"
    name = "reference-cache-logits" if task.risk.with_logits else "reference-cache"
    folder = study_folder(config) / name if where in (None, "auto") else user_path(str(where))
    wanted = Fingerprint(weights, model.inputs_fingerprint, data.fingerprint(), outputs=kind)
    if (folder / "cache.json").is_file():
        return ReferenceCache(folder, wanted)
    size, rank, world = config.train.batch_size, distributed.rank(), distributed.world_size()
    steps = -(-len(data) // (size * world))
    # Every rank takes the same number of batches, since opening the files is a joint step; the last ones wrap around.
    order = torch.arange(steps * size * world).remainder(len(data)).numpy().reshape(steps, world, size)
    batches = load(data, ((0, rows[rank]) for rows in order), config.train.workers, pin=False)
    build_cache(folder, task.risk, model.module.to(device), batches, data, wanted, device)
    return ReferenceCache(folder, wanted)


def result_row(method: str, seed: int | None, result: dict[str, Any]) -> dict[str, Any]:
    """A row of `compare.json`."""
    keys = ("metrics", "samples", "drawn", "scored", "reference_samples", "seconds", "summary")
    return {"method": method, "seed": seed, **{key: result[key] for key in keys if key in result}}


def evaluated_row(label: str, task: Task, model: Model, device: torch.device) -> dict[str, Any]:
    """A row for a model that was not trained here."""
    model.module.to(device).eval()
    return {"method": label, "seed": None, "metrics": task.evaluate(model, device), "samples": None, "seconds": None}
