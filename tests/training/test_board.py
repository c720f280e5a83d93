"""What a run leaves in TensorBoard's event files, and that the page of docs names all of it."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steering.dro.online.told import spent_metrics
from steering.exhibits import Exhibit, Labels
from steering.items import Pairs, Units
from steering.methods.nested import NestedOptions
from steering.methods.registry import Step
from steering.runs.record import read_curves
from steering.schema import BoardConfig
from steering.training.board.layout import settings
from steering.training.board.look import look_at
from steering.training.board.pictures import extremes, gallery_figure
from steering.training.board.scalars import board_scalars, group_scalars, noise_scalars
from steering.training.loop import run
from steering.typed import plain

PAGE = (Path(__file__).parents[2] / "docs/tensorboard.md").read_text(encoding="utf-8")
DOCUMENTED = set(re.findall(r"`((?:loss|steer|group|perf|items)/[\w/]+)`", PAGE))
COMMON = {
    *("loss/objective", "loss/train_mean", "perf/step_seconds", "perf/evaluation_share"),
    *(f"steer/{name}" for name in ("ess", "weight_max", "kl_spent", "excess_mean", "excess_std")),
    *("steer/strength", "steer/prior"),
}
NOISE = {"steer/mass_on_noise", "steer/noise_share"}


def _job(folder: Path, **changes: object):
    """A toy whose first eight labels are wrong, with every histogram and picture."""
    job = toys.make_job(folder, **changes)
    job.task.labels = lambda: Labels(wrong=np.arange(64) < 8)
    job.task.exhibits = lambda numbers: [Exhibit(f"number $ {n} \N{SNOWMAN} 漢") for n in numbers]
    board = BoardConfig(histograms_every=10, pictures_every=20, examples=3)
    return replace(
        job, train=replace(job.train, board=board), config="seed: 0\nmethod: {name: dro, tau: 4}\n"
    )


def _tags(folder: Path) -> dict[str, list[str]]:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload().Tags()


@pytest.mark.parametrize("kind", ["units", "pairs"])
@pytest.mark.parametrize("method", ["erm", "dro", "drrho", "distillation"])
def test_every_method_has_the_same_tags(tmp_path: Path, kind: str, method: str) -> None:
    changes = {"weight": 0.0} if method == "distillation" else {}
    run(_job(tmp_path, kind=kind, method=method, **changes))
    tags = _tags(tmp_path)
    ours = {tag for tag in tags["scalars"] if tag.split("/")[0] in ("loss", "steer", "perf")}
    has_tau = kind == "pairs" or method in ("dro", "drrho")
    assert ours == COMMON | NOISE | ({"steer/tau"} if has_tau else set())
    items = {f"items/{name}" for name in ("loss", "weight", "reference_loss", "excess")}
    assert set(tags["histograms"]) == items
    assert {"steer/map", "steer/examples"} <= set(tags["images"])
    assert {"config/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])
    assert ours | set(tags["histograms"]) | {"steer/map", "steer/examples"} <= DOCUMENTED
    rows = [row for row in read_curves(tmp_path / "metrics.jsonl") if "steer/ess" in row]
    assert all(0 < row["steer/ess"] <= 1 + 1e-6 for row in rows)
    assert all(row["loss/objective"] == row["train/loss"] for row in rows)


def test_the_axis_may_count_samples(tmp_path: Path) -> None:
    """A step of TensorBoard is then a batch of examples; what scripts read keeps steps."""
    for axis in ("steps", "samples"):
        job = _job(tmp_path / axis, kind="units", method="erm")
        board = replace(job.train.board, axis=axis)
        run(replace(job, train=replace(job.train, board=board)))
    steps, samples = (
        [one.step for one in EventAccumulator(str(tmp_path / axis)).Reload().Scalars("train/loss")]
        for axis in ("steps", "samples")
    )
    assert samples == [step * job.train.batch_size for step in steps]
    rows = [read_curves(tmp_path / axis / "metrics.jsonl") for axis in ("steps", "samples")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def test_plain_training_is_uniform(tmp_path: Path) -> None:
    run(_job(tmp_path, kind="units", method="erm"))
    for row in (row for row in read_curves(tmp_path / "metrics.jsonl") if "steer/ess" in row):
        assert row["steer/ess"] == pytest.approx(1)
        assert row["steer/weight_max"] == pytest.approx(1)
        assert row["steer/kl_spent"] == pytest.approx(0, abs=1e-6)
        assert row["steer/mass_on_noise"] == pytest.approx(row["steer/noise_share"])
        assert row["loss/train_mean"] == pytest.approx(row["loss/objective"])


def test_numbers_by_hand() -> None:
    weights = torch.tensor([0.5, 0.25, 0.25, 9.0])
    units = Units(
        torch.tensor([2.0, 1.0, 4.0, 77.0]),
        torch.tensor([1.0, 1.0, 1.0, 55.0]),
        mask=torch.tensor([True, True, True, False]),
        groups=torch.tensor([0, 0, 1, 1]),
    )
    step = Step(torch.tensor(0.0), {}, weights, units, torch.tensor([5, 6]))
    # The second example: items 2 and 3, of which one counts.
    wrong = (torch.arange(7) == 6)[:, None]
    found = board_scalars(step, look_at(step), {"loss": 3.0, "strength": 0.5}, wrong, ("a", "b"))
    h = np.array([1.5, 0.5, 3.5])
    p = np.array([0.5, 0.25, 0.25])
    assert found == pytest.approx(
        {
            "loss/objective": 3.0,
            "loss/train_mean": 7 / 3,
            "steer/ess": 1 / (p**2).sum() / 3,
            "steer/weight_max": 1.5,
            "steer/kl_spent": (p * np.log(3 * p)).sum(),
            "steer/excess_mean": h.mean(),
            "steer/excess_std": h.std(),
            "steer/strength": 0.5,
            "steer/prior": 0.0,
            "steer/mass_on_noise": 0.25,
            "steer/noise_share": 1 / 3,
            "group/a/loss": 1.5,
            "group/b/loss": 4.0,
            "group/a/weight": 0.75,
            "group/b/weight": 0.25,
        },
        rel=1e-6,
    )
    # Of each item its own: the first of the one example, half of the first of the other.
    each = torch.zeros(7, 2)
    each[5, 0], each[6, 0], each[6, 1] = 1.0, 0.5, 1.0
    assert noise_scalars(look_at(step), each) == pytest.approx(
        {"mass_on_noise": 0.5 + 0.125, "noise_share": 1.5 / 3}
    )
    assert set(group_scalars(look_at(step), ("a", "b", "nobody"))) == {
        f"group/{name}/{what}" for name in "ab" for what in ("loss", "weight")
    }


def test_loss_of_a_pair_against_loops() -> None:
    torch.manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 3).double(), dim=-1)
    pairs = Pairs(image, text, torch.arange(5))
    look = look_at(Step(torch.tensor(0.0), {}, torch.ones(2, 5), pairs, pairs.index))
    for i in range(5):
        others = [j for j in range(5) if j != i]
        own = [image[i] @ text[j] + text[i] @ image[j] - 2 * image[i] @ text[i] for j in others]
        assert look.loss[0, i].item() == pytest.approx(sum(own).item() / 8)


def test_weights_of_uniform_and_single_items() -> None:
    uniform, single = torch.ones(2, 4), torch.tensor([[0.0, 3.0, 0.0, 0.0]])
    assert spent_metrics(uniform, 4.0)["kl_spent"] == 0
    found = spent_metrics(single, 4.0)
    assert found["kl_spent"].item() == pytest.approx(math.log(4))
    assert found["weight_max"].item() == 4


def test_extremes_and_a_batch_that_is_too_small() -> None:
    units = Units(torch.zeros(4))
    step = Step(units.target.sum(), {}, torch.tensor([1.0, 4.0, 2.0, 1.0]), units, torch.arange(4))
    heavy, light = extremes(look_at(step), 8)
    assert [number for number, _ in heavy] == [1, 2]
    assert [number for number, _ in light] == [3, 0]
    assert heavy[0][1] == pytest.approx(2)
    one = Units(torch.zeros(1))
    alone = look_at(Step(one.target.sum(), {}, None, one, torch.arange(1)))
    assert gallery_figure(alone, 8, lambda _: [], None) is None


def test_hparams_are_what_was_told() -> None:
    """Of a method what is not as it has it anyway; what only says how a run is shown is left out."""
    method = {"name": "drrho", "tau": 4.0, "distill": 0.0, "divergence": {"name": "kl"}}
    config = {
        "method": method | {"strength": {"name": "linear", "start": 0.0, "end": 1.0}},
        "train": {"samples": 64, "log_every": 5, "board": {"examples": 8}},
        "seed": 3,
        "device": "cpu",
    }
    assert settings(config) == {
        "method.name": "drrho",
        "method.tau": 4.0,
        "method.strength.name": "linear",
        "method.strength.start": 0.0,
        "method.strength.end": 1.0,
        "train.samples": 64,
        "seed": 3,
    }


def test_hparams_of_a_section_within_a_method_are_what_was_told() -> None:
    whole = plain(NestedOptions())
    inner = whole["inner"] | {"tau": 0.07, "divergence": {"name": "cvar", "level": 0.3}}
    config = {"method": whole | {"name": "nested", "inner": inner}}
    assert settings(config) == {
        "method.name": "nested",
        "method.inner.tau": 0.07,
        "method.inner.divergence.name": "cvar",
        "method.inner.divergence.level": 0.3,
    }


def test_the_board_changes_nothing_that_is_trained(tmp_path: Path) -> None:
    run(_job(tmp_path / "shown", kind="units", dropout=0.0))
    run(toys.make_job(tmp_path / "plain", kind="units", log_every=1000))
    one, other = (tmp_path / name / "model.safetensors" for name in ("shown", "plain"))
    assert one.read_bytes() == other.read_bytes()
