"""A dry run: the numbers that the finished run's record has, known before it; from shapes alone."""

import json

import numpy as np
import pytest
import torch
import toys

from steering.cli import main
from steering.commands.dry_run import dry_run
from steering.config import load_config
from steering.errors import ConfigError, SteeringError
from steering.packaged import packaged_configs
from steering.runs import forecast as forecasting
from steering.runs.ask import training
from steering.runs.forecast import forecast
from steering.runs.gpus import GPUS, MEASURED, Gpu
from steering.runs.measure import counted_flops
from steering.runs.record import read_record
from steering.task import ModelSpec
from steering_tasks.clip import ClipRisk
from steering_tasks.clip.models import build_clip, sketch_clip

NAMES = [one.name for one in packaged_configs()]


def config_of(tmp_path, *words):
    return load_config(toys.write_config(tmp_path), ["train.samples=32", *words])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["reference.cache=auto"],
        ["method={name: jest, share: 0.5, reference_scale: 100, chunks: 4}"],
        ["method={name: erm}", "train.accumulation=2"],
        ["task.kind=units", "method={name: drrho, select: {name: rho_loss, share: 0.25}}"],
        ["task.kind=units", "method={name: rho_loss, share: 0.25}", "reference.cache=auto"],
    ],
)
def test_it_tells_what_the_record_will_say(tmp_path, words):
    config = config_of(tmp_path, *words)
    found = forecast(config)
    path = toys.write_config(tmp_path)
    assert main(["train", str(path), "train.samples=32", *words]) == 0
    (folder,) = (tmp_path / "runs/study").glob(f"{config.method.name}-seed0")
    cost = read_record(folder).cost
    assert (found.steps, found.samples) == (cost.steps, cost.trained)
    assert (found.drawn, found.scored) == (cost.drawn, cost.scored)
    assert found.reference_samples == cost.reference
    assert found.target.parameters == cost.parameters
    assert found.target.flops == cost.forward_flops > 0
    assert found.flops == cost.flops
    if found.stored:
        assert found.storing_flops == cost.stored * cost.reference_flops > 0
        written = sum(len(np.load(file)) * np.load(file)[0].nbytes for file in stored(tmp_path))
        assert found.cache_bytes == written


def stored(tmp_path):
    return list((tmp_path / "runs/study/outputs").rglob("*.npy"))


@pytest.fixture(scope="module")
def counted():
    """`_network` that counts what is the same network once: eight configs share two CLIP models."""
    found, count = {}, forecasting._network

    def once(task, sketch, spec, kind):
        shapes = {key: tuple(value.shape) for key, value in sketch.batch.items()}
        place = f"{type(task)} {vars(task.risk)} {spec} {kind} {shapes}"
        if place not in found:
            found[place] = count(task, sketch, spec, kind)
        return found[place]

    return once


@pytest.mark.parametrize("name", NAMES)
def test_every_packaged_config_has_a_dry_run(name, tmp_path, monkeypatch, counted):
    """Without weights, and without data but where the data say how many classes there are."""
    monkeypatch.setattr(forecasting, "_network", counted)
    for network in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(network, "1")
    monkeypatch.chdir(tmp_path)
    words = [f"output={tmp_path}"]
    task = load_config(name).task
    if task.name == "classification" and task.data.path is not None:  # a file says the classes
        words += made_images(tmp_path)
    found = dry_run(load_config(name, words))
    assert found.target.parameters > 0
    assert found.target.flops > 0
    assert not list(tmp_path.glob("**/record.json"))


def made_images(folder):
    """Words that put sixty random images of ten classes in the place of CIFAR-10."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (60, 32, 32, 3)).astype(np.uint8)
    np.savez(folder / "made.npz", image=image, label=np.arange(60) % 10)
    made = f"{{source: arrays, path: {folder}/made.npz, test_path: {folder}/made.npz}}"
    return [f"task.data={made}"]


def test_nothing_is_allocated(tmp_path):
    """Two billion examples: 16 GB of running estimates, of which a process has its share."""
    config = config_of(tmp_path, "dry_run={examples: 2000000000, processes: 8}")
    found = forecast(config)
    assert found.dual_bytes == 2 * 2_000_000_000 * 4 // 8
    half = config_of(tmp_path, "dry_run.examples=2000000000", "method.duals=float16")
    assert forecast(half).dual_bytes == (2 * 2_000_000_000 + 1) * 2  # a row of waste
    assert forecast(config_of(tmp_path, "method=erm")).dual_bytes == 0
    # The proximal estimator's ν and visits, 4 bytes each, stand whole in every process.
    method = "method={name: dro, divergence: chi2, estimator: proximal, tau: 1.0}"
    chi2 = forecast(config_of(tmp_path, "dry_run={examples: 1000, processes: 8}", method))
    assert chi2.dual_bytes == 2 * 1000 * (4 + 4)


def test_estimates_in_a_file_count_too(tmp_path):
    words = ["dry_run={examples: 1000, processes: 2}", f"method.duals_folder={tmp_path}"]
    assert forecast(config_of(tmp_path, *words)).dual_bytes == 4000 + 4  # a row of waste


def test_the_run_is_the_same_whatever_a_dry_run_reckons_with(tmp_path):
    plain, other = config_of(tmp_path), config_of(tmp_path, "dry_run.processes=2")
    assert training(plain).key == training(other).key


def test_what_cannot_be_is_said(tmp_path, capsys):
    path = str(toys.write_config(tmp_path))
    assert main(["dry-run", path, "dry_run.processes=3"]) == 2
    assert "does not split into equal parts for 3 processes" in capsys.readouterr().err
    assert main(["dry-run", path, "dry_run.processes=0"]) == 2
    assert "dry_run.processes: expected at least 1, got 0" in capsys.readouterr().err
    assert main(["dry-run", path, "target=nonsense"]) != 0
    with pytest.raises(ConfigError, match="works on losses of"):
        forecast(config_of(tmp_path, "method=rho1"))
    with pytest.raises(SteeringError, match="selects a batch of"):
        forecast(config_of(tmp_path, "method={name: jest, share: 0.01}", "dry_run.examples=64"))


def test_json_is_one_object(tmp_path, capsys):
    path = str(toys.write_config(tmp_path))
    assert main(["dry-run", path, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["processes"] == 1
    assert set(values["hours"]) >= {f"{gpu.name} at {MEASURED}" for gpu in GPUS}


def test_hours_by_hand():
    gpu = Gpu("x", half=100, single=10)
    assert gpu.seconds(8e14, 4, "bf16", 0.5) == pytest.approx(4.0)
    assert gpu.seconds(8e14, 4, "fp32", 0.5) == pytest.approx(40.0)


def test_the_assumed_share_gives_the_published_time():
    """2 days on 8 H100 for 1.28e9 pairs, with the operations that open_clip lists for both models:
    41.09 and 14.78 GFLOPs a pair."""
    h100 = next(gpu for gpu in GPUS if gpu.name == "H100 SXM")
    flops = 1.28e9 * (3 * 41.09e9 + 14.78e9)
    assert h100.seconds(flops, 8, "bf16", MEASURED) / 86400 == pytest.approx(2, rel=0.02)


def test_a_transformer_on_the_meta_device_counts_what_it_counts_on_a_cpu():
    """And what open_clip's own profiles list for ViT-B/32."""
    image, text = torch.zeros(1, 3, 224, 224), torch.zeros(1, 77, dtype=torch.long)
    counts = []
    for made in (build_clip, sketch_clip):
        module = made(ModelSpec("ViT-B-32")).module.eval()
        device = next(module.parameters()).device
        with torch.no_grad():
            batch = {"image": image.to(device), "text": text.to(device)}
            counts.append(counted_flops(ClipRisk(), module, batch))
    assert counts[0] == counts[1] == pytest.approx(14.78e9, rel=1e-3)


def test_a_switch_of_that_name_points_to_the_command(tmp_path, capsys):
    assert main(["train", str(toys.write_config(tmp_path)), "dry_run=true"]) == 2
    said = "dry_run: expected a section, got True (bool); a dry run is a command: steering dry-run"
    assert said in capsys.readouterr().err
