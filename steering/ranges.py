"""Which values a config may hold: ranges of numbers, choices, and what two keys say together."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import reduce
from typing import Any

from steering.schema import RunConfig
from steering.training.recipes import Recipe

_AT_LEAST = {
    **dict.fromkeys(("seed", "train.workers", "train.eval_every", "train.save_every"), 0),
    **dict.fromkeys(("optimizer.lr", "optimizer.final_lr", "optimizer.temperature_lr"), 0),
    "restart.noise": 0,
    **dict.fromkeys(
        (
            "train." + key
            for key in ("samples", "batch_size", "accumulation", "log_every", "threads")
        ),
        1,
    ),
    **dict.fromkeys(
        (f"train.board.{key}" for key in ("histograms_every", "pictures_every", "examples")), 0
    ),
    **dict.fromkeys(("jobs", "dry_run.examples", "dry_run.processes"), 1),
}


_OF_SOME_OPTIMIZERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "betas": (lambda betas: all(0 <= beta < 1 for beta in betas), "two numbers in [0, 1)"),
    "eps": (lambda eps: 0 < eps < math.inf, "a positive number"),
    "momentum": (lambda momentum: 0 <= momentum < 1, "a number in [0, 1)"),
}


def problems(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Dotted key and message of every value outside its range."""
    for path, low in _AT_LEAST.items():
        value: Any = reduce(getattr, path.split("."), config)
        if value is not None and not low <= value < math.inf:
            yield path, f"{path}: expected at least {low}, got {value}"
    for path, valid, expected in _rules(config):
        if not valid:
            yield (
                path,
                f"{path}: expected {expected}, got {reduce(getattr, path.split('.'), config)!r}",
            )
    yield from _of_the_optimizer(config.optimizer)
    samples, batch = config.train.samples, config.train.batch_size
    if samples < batch:
        yield (
            "train.samples",
            f"train.samples: {samples} is less than one batch, train.batch_size {batch}",
        )


def _of_the_optimizer(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """What only some optimisers have, and a weight decay that may be a schedule."""
    for key in (one.name for one in fields(recipe) if one.name in _OF_SOME_OPTIMIZERS):
        valid, expected = _OF_SOME_OPTIMIZERS[key]
        value = getattr(recipe, key)
        if not valid(value):
            yield f"optimizer.{key}", f"optimizer.{key}: expected {expected}, got {value!r}"
    for value in map(recipe.weight_decay, (0.0, 1.0)):
        if not 0 <= value < math.inf:
            key = "optimizer.weight_decay"
            yield key, f"{key}: expected at least 0, got {value}"
            return


def _rules(config: RunConfig) -> Iterator[tuple[str, bool, str]]:
    """Dotted key, whether its value is in range, and what was expected."""
    optimizer, train, compare = config.optimizer, config.train, config.compare
    yield "name", config.name.strip() != "", "a name that is not empty"
    yield "output", config.output.strip() != "", "a folder"
    yield (
        "device",
        re.fullmatch(r"auto|cpu|cuda(:\d+)?", config.device) is not None,
        "auto, cpu, cuda or cuda:N",
    )
    warmup_ok = 0 <= optimizer.warmup < 1 or (
        optimizer.warmup > 0 and optimizer.warmup.is_integer()
    )
    yield "optimizer.warmup", warmup_ok, "a fraction in [0, 1) or a number of steps"
    yield "optimizer.final_lr", optimizer.final_lr <= 1, "a fraction in [0, 1]"
    divides = train.batch_size % train.accumulation == 0
    yield "train.accumulation", divides, f"a divisor of train.batch_size {train.batch_size}"
    yield "train.board.axis", train.board.axis in ("steps", "samples"), "steps or samples"
    yield "train.precision", train.precision in ("fp32", "bf16", "fp16"), "fp32, bf16 or fp16"
    yield (
        "train.clip_norm",
        train.clip_norm is None or train.clip_norm > 0,
        "null or a positive number",
    )
    seeds_ok = (
        all(seed >= 0 for seed in compare.seeds)
        and len(set(compare.seeds)) == len(compare.seeds) > 0
    )
    yield "compare.seeds", seeds_ok, "one or more different numbers >= 0"
    labels_ok = all(label.strip() and "/" not in label for label in compare.methods)
    yield "compare.methods", labels_ok, "labels that are not empty and have no '/'"
    baseline_ok = compare.baseline is None or compare.baseline in compare.methods
    yield "compare.baseline", baseline_ok, f"one of {', '.join(compare.methods)}"
