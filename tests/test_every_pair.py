"""One contract over every valid pair of a task and a method: a step moves the target, and nothing
else, by finite gradients."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steering.methods import build_method, find_method, registered
from steering.reference import LiveReference
from steering.task import ModelSpec, find_task
from steering.training.selection import Selection, who_asks
from steering.training.step import Gradient

ROOT = Path(__file__).parents[1]
TASKS = ("classification", "clip", "language")
VALID = [
    (task, unit, method)
    for task in TASKS
    for unit in find_task(task).units
    for method in registered()
    if find_method(method).objection(unit, find_task(task).may_have_groups) is None
]


def make(name: str, unit: str, folder: Path):
    """The task with little data, and the specs of its target and reference."""
    cls = find_task(name)
    options = cls.Options()
    if name == "classification":
        options.data.groups = "class"
        return cls(options), ModelSpec("mlp", options={"width": 8}), ModelSpec("linear")
    if name == "language":
        options.data.modules, options.length, options.unit = ["email", "xml"], 16, unit
        path = folder / "tiny.json"
        path.write_text(
            '{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}'
        )
        return cls(options), ModelSpec(str(path)), ModelSpec(str(path))
    for number in range(16):
        Image.new("RGB", (32, 32), (16 * number, 99, 255 - 16 * number)).save(
            folder / f"{number}.png"
        )
    table = "".join(f"{number}.png,square {number}\n" for number in range(16))
    (folder / "squares.csv").write_text(f"image,caption\n{table}")
    options.data.source, options.data.path = "table", str(folder / "squares.csv")
    models = ROOT / "configs/clip/models"
    return (
        cls(options),
        ModelSpec(str(models / "glyph-target.json")),
        ModelSpec(str(models / "glyph-reference.json")),
    )


@pytest.fixture(scope="module")
def setups(tmp_path_factory):
    """Each task once: opening the data is what takes time."""
    return {
        (name, unit): make(name, unit, tmp_path_factory.mktemp(name))
        for name in TASKS
        for unit in find_task(name).units
    }


def test_every_task_and_method_is_in_some_pair():
    assert {task for task, _, _ in VALID} == {*TASKS}
    assert {method for _, _, method in VALID} == {*registered()}
    assert len(VALID) == 8 + 6 + 7 + 7


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("name", "unit", "method"), VALID)
def test_a_step(setups, name, unit, method, micro_batches):
    task, target_spec, reference_spec = setups[name, unit]
    torch.manual_seed(0)
    target, reference = task.build(target_spec), task.build(reference_spec)
    assert task.risk.unit == unit
    data = task.train_data(target, reference, 0)
    built = build_method(
        method, find_method(method).options(), len(data), task.groups, task.risk.unit
    )
    frozen = LiveReference(reference.module, task.risk, built.needs.logits)
    before = [value.clone() for value in reference.module.state_dict().values()]
    batch = data.batch(np.arange(8), 0)
    asked, given = who_asks(frozen if built.needs.reference else None, built.selector)
    if built.selector is not None:
        selection = Selection(target.module, built.selector, task.risk, asked, 4, micro_batches)
        batch = selection(batch)
    step = Gradient(target.module, built, task.risk, given, micro_batches)
    made = step(batch)
    assert made.loss.isfinite()
    assert all(value.isfinite() for value in made.scalars().values())
    gradients = [
        parameter.grad for parameter in target.module.parameters() if parameter.grad is not None
    ]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0
    assert all(parameter.grad is None for parameter in reference.module.parameters())
    for value, old in zip(reference.module.state_dict().values(), before, strict=True):
        assert torch.equal(value, old)
