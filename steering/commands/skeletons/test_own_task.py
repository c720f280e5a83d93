"""The task of own_task.py keeps the promises on which steering relies: python -m pytest test_own_task.py"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from steering.cli import main
from steering.config import load_config
from steering.extend import find_task

CONFIG = str(Path(__file__).with_name("own_task.yaml"))


def _task():  # type: ignore[no-untyped-def]
    run = load_config(CONFIG, [])
    return run, find_task(run.task.name)(run.task)


def test_an_example_is_the_same_in_any_batch() -> None:
    _, task = _task()
    data = task.train_data(None, None, 0)
    alone, together = data.batch(np.array([3]), 0), data.batch(np.array([7, 3]), 0)
    assert all(torch.equal(alone[key][0], together[key][1]) for key in alone)


def test_a_loss_for_each_example_and_none_of_the_others_in_it() -> None:
    run, task = _task()
    data, model = task.train_data(None, None, 0), task.network(run.target).module
    together = task.risk.outputs(model, data.batch(np.arange(5), 0))["loss"]
    alone = [task.risk.outputs(model, data.batch(np.array([i]), 0))["loss"][0] for i in range(5)]
    torch.testing.assert_close(together, torch.stack(alone))


def test_the_reference_has_not_seen_the_examples_of_the_target() -> None:
    run, task = _task()
    part = run.reference.train["task.part"]
    assert part[1] <= task.options.part[0]


def test_a_short_run_of_each_method_ends(tmp_path: Path) -> None:
    words = ["smoke=true", "compare.seeds=[0]", f"output={tmp_path}"]
    assert main(["compare", CONFIG, *words]) == 0
