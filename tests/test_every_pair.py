"""One contract over every valid pair of a task and a method: a step moves the target, and nothing
else, by finite gradients; and a short run leaves every tag in TensorBoard's files that the pages name."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steering.methods import build_method, find_method, registered
from steering.reference import LiveReference
from steering.runs.record import read_curves
from steering.schema import BoardConfig, TrainConfig
from steering.task import ModelSpec, find_task
from steering.training.log import RunLog
from steering.training.loop import Job, run
from steering.training.recipes import AdamW
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
        options.data.groups, options.data.label_noise = "class", 0.3
        return cls(options), ModelSpec("mlp", options={"width": 8}), ModelSpec("linear")
    if name == "language":
        options.data.modules, options.length, options.unit = ["email", "xml"], 16, unit
        options.data.corrupt, options.data.validation_blocks = {"xml": 0.4}, 2
        path = folder / "tiny.json"
        path.write_text(
            '{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 16}'
        )
        return cls(options), ModelSpec(str(path)), ModelSpec(str(path))
    for number in range(40):  # as many as jest draws for a batch of 8
        Image.new("RGB", (32, 32), (6 * number, 99, 255 - 6 * number)).save(
            folder / f"{number}.png"
        )
    table = "".join(f"{number}.png,square {number}\n" for number in range(40))
    (folder / "squares.csv").write_text(f"image,caption\n{table}")
    options.data.source, options.data.path = "table", str(folder / "squares.csv")
    options.data.caption_noise, options.retrieval = 0.5, {"seen": options.data.path}
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


# ---- TensorBoard

BOARD = (ROOT / "docs/tensorboard.md").read_text(encoding="utf-8")
ON_A_GPU = {"perf/gpu_gib"}
OF_GROUPS = {"group/NAME/loss", "group/NAME/weight"}
PICTURES = {"steer/map", "steer/examples", "eval/worst"}
DOCUMENTED = set(re.findall(r"^\| `((?:loss|steer|group|perf|items)/[\w/]+)`", BOARD, re.M))


def documented_of(unit: str, method: str) -> set[str]:
    """Every tag of the page that a run must have."""
    built = find_method(method)
    found = DOCUMENTED - ON_A_GPU - PICTURES
    if unit == "pair":
        found -= OF_GROUPS
    has_tau = unit == "pair" or "divergence" in built.options.__dataclass_fields__
    return found if has_tau else found - {"steer/tau"}


def tags_of(folder: Path) -> tuple[dict[str, int], set[str]]:
    """Scalars with the number of their entries, names of groups as NAME; everything else."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = {
        re.sub(r"^group/[\w-]+/", "group/NAME/", tag): len(events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }
    return scalars, {tag for kind in ("histograms", "images") for tag in events.Tags()[kind]}


@pytest.mark.parametrize(("name", "unit", "method"), VALID)
def test_a_run_has_every_tag_of_the_pages(setups, name, unit, method, tmp_path, monkeypatch):
    """Each picture is drawn once for each task: it takes as long as all the rest."""
    if method != "drrho":
        monkeypatch.setattr(RunLog, "figures", lambda *_: None)
        monkeypatch.setattr("steering_tasks.clip.task.retrieved_captions", lambda *_: None)
    task, target, reference = setups[name, unit]
    model = task.build(target)
    data = task.train_data(model, None, 0)
    built = build_method(method, find_method(method).options(), len(data), task.groups, unit)
    board = BoardConfig(histograms_every=1, pictures_every=1, examples=1)
    job = Job(
        folder=tmp_path,
        title="tags",
        task=task,
        target=model,
        reference=LiveReference(task.build(reference).module, task.risk, built.needs.logits),
        method=built,
        data=data,
        optimizer=AdamW(),
        train=TrainConfig(samples=8, batch_size=8, log_every=1, board=board),
        seed=0,
        device=torch.device("cpu"),
    )
    run(job)
    scalars, others = tags_of(tmp_path)
    ours = {tag for tag in scalars if not tag.startswith(("eval/", "train/"))}
    assert ours == {tag for tag in documented_of(unit, method) if not tag.startswith("items/")}
    assert scalars["loss/validation"] == 1
    told = {tag for tag in scalars if tag.startswith("train/") and "/outer_" not in tag}
    told = {re.sub(r"weight/[\w-]+$", "weight/NAME", tag) for tag in told}
    assert [tag for tag in told if f"`{tag}`" not in BOARD] == []
    assert {tag for tag in others if tag.startswith("items/")} == {
        tag for tag in DOCUMENTED if tag.startswith("items/")
    }
    if method == "drrho":
        assert others >= PICTURES
        assert all(f"`{tag}`" in BOARD for tag in PICTURES)
    curves = [row for row in read_curves(tmp_path / "metrics.jsonl") if "steer/noise_share" in row]
    assert all(0 <= row["steer/mass_on_noise"] <= 1 for row in curves)
    if method == "erm" and unit != "pair":
        for row in curves:
            assert row["steer/mass_on_noise"] == pytest.approx(row["steer/noise_share"], abs=1e-6)
