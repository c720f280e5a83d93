"""The study that answers "does it help?": the same target, trained by several methods with several seeds, and the reference."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from steering import distributed
from steering.analysis.report import curves_figure, markdown_report, print_results
from steering.config import RunConfig, with_overrides
from steering.errors import ConfigError
from steering.protocols.single import (
    cached_reference,
    evaluated_row,
    fitting_task,
    method_uses_reference,
    reference_model,
    result_row,
    run_folder,
    study_folder,
    train_run,
)
from steering.storage import write_atomically, write_text
from steering.task import find_task
from steering.training.checkpoint import read_json, write_json
from steering.training.log import CONSOLE, read_metrics
from steering.training.session import session


def compare(config: RunConfig) -> None:
    """`steering compare`: run what is not finished yet, then write and print the comparison.

    Writes compare.json, compare.md and compare.png into output/name, beside the runs' folders.

    Raises:
        ConfigError: `compare.methods` is empty, or names one "reference".
    """
    if not config.compare.methods:
        raise ConfigError("compare.methods: empty; name at least one, such as `drrho: {name: drrho}`")
    if "reference" in config.compare.methods:
        raise ConfigError("compare.methods.reference: this label is the reference's own in the tables; choose another")
    with session(config.device, config.train.threads) as device:
        start = time.monotonic()
        runs = {
            (label, seed): with_overrides(config, {"method": section, "seed": seed})
            for label, section in config.compare.methods.items()
            for seed in config.compare.seeds
        }
        for run in runs.values():
            fitting_task(run)  # before hours are spent on the others
        guided = any(method_uses_reference(run) for run in runs.values())
        rows = _reference_row(config, device) if guided or config.reference is not None else []
        for (label, seed), run in runs.items():
            title = label if len(config.compare.seeds) == 1 else f"{label} seed {seed}"
            rows.append(result_row(label, seed, train_run(run, run_folder(run, label), title, device)))
        if distributed.rank() == 0:
            _report(config, runs, rows, time.monotonic() - start)


def _reference_row(config: RunConfig, device: torch.device) -> list[dict[str, Any]]:
    """The reference as a contestant, with the cost of training it here (if it was) and of caching it."""
    assert config.reference is not None
    task = find_task(config.task.name)(config.task)
    model, digest = reference_model(config, task, device)
    row = evaluated_row("reference", task, model, device)
    if config.reference.cache is not None:
        row["cache_seconds"] = cached_reference(config, task, model, digest, device).seconds
    trained = study_folder(config) / "reference" / "result.json"
    if config.reference.train is not None and config.reference.checkpoint is None and trained.is_file():
        row |= {key: read_json(trained)[key] for key in ("samples", "seconds")}
    return [row]


def _report(
    config: RunConfig, runs: dict[tuple[str, int], RunConfig], rows: list[dict[str, Any]], seconds: float
) -> None:
    folder, styles = study_folder(config), find_task(config.task.name).metrics
    write_json(folder / "compare.json", rows)
    markdown = markdown_report(rows, f"{config.name}: {', '.join(config.compare.methods)}", styles)
    write_text(folder / "compare.md", markdown)
    curves: dict[str, list[list[dict[str, float]]]] = {label: [] for label in config.compare.methods}
    for (label, _), run in runs.items():
        curves[label].append(read_metrics(run_folder(run, label) / "metrics.jsonl"))
    figure = curves_figure(curves, rows, config.train.batch_size, styles)
    write_atomically(folder / "compare.png", lambda path: figure.savefig(path, format="png", dpi=150))
    with SummaryWriter(str(folder / "comparison")) as writer:
        writer.add_text("compare", markdown)
        writer.add_figure("compare", figure)
    print_results(rows, f"{config.name}, {seconds:.0f} s", styles)
    CONSOLE.print(
        f"table: {folder}/compare.md   rows: {folder}/compare.json   curves: {folder}/compare.png", soft_wrap=True
    )
    CONSOLE.print(f"TensorBoard: tensorboard --logdir {folder}", soft_wrap=True)
