"""Two gloo processes train what one process trains on the same global batch; and the same through
torchrun."""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import toys
from safetensors.torch import load_file

from steering import distributed
from steering.cli import main
from steering.commands.single import cache
from steering.config import load_config
from steering.dro.online.row_table import merged
from steering.errors import SteeringError
from steering.methods.rho_loss import RhoLossOptions
from steering.runs.record import read_curves
from steering.training.checkpoint import load_newest, load_parts
from steering.training.loop import run
from steering.training.observers import EmaOptions

PATIENCE = 100  # seconds until a test that hangs is ended

# float64, so that a wrong factor cannot hide behind rounding; the running estimates are float32.
BASE = {"dtype": "float64", "gamma": 0.5, "tau": 0.2, "unreadable": 3, "eval_every": 10}
SAME = {
    "pairs": BASE,
    "pairs, accumulated": BASE | {"accumulation": 2},
    "pairs, temperatures of their own": BASE
    | {"radius": 0.3, "individual_tau": True, "gamma": 0.5},
    "pairs, learned temperature": BASE | {"radius": 0.3, "accumulation": 2},
    "pairs, dro": BASE | {"method": "dro", "guided": False},
    "pairs, erm": {"dtype": "float64", "method": "erm", "guided": False, "accumulation": 4},
    "units": BASE | {"kind": "units", "gamma": 0.3},
    "units, accumulated": BASE | {"kind": "units", "gamma": 0.3, "accumulation": 2},
    "units, erm": {"dtype": "float64", "kind": "units", "method": "erm", "guided": False},
}
RANDOM = {
    "dropout": 0.3,
    "augment": True,
    "gamma": 0.5,
    "accumulation": 2,
    "save_every": 4,
    "unreadable": 3,
}


HALF = {"dtype": "float64", "gamma": 0.5, "tau": 0.2, "save_every": 5}


class Killed(Exception):  # noqa: N818
    """The end of both processes, simulated."""


def _identical(job):
    return replace(job, identity={"config": "0"})


def _frozen_and_alone(folder):
    """The reference is neither wrapped, nor trained, nor synchronised."""
    job = toys.make_job(folder)
    with torch.no_grad():  # were it in DDP, both ranks would get rank 0's
        job.reference.module.text.bias += distributed.rank()
    before = {key: value.clone() for key, value in job.reference.module.state_dict().items()}
    run(job)
    torch.testing.assert_close(job.reference.module.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in job.reference.module.parameters())


def _interrupted(folder):
    run(toys.make_job(folder / "whole", **RANDOM))
    job = toys.make_job(folder / "cut", **RANDOM)
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 14:
            raise Killed

    job.method.register_forward_hook(stop)
    try:
        run(job)
    except Killed:
        distributed.barrier()
        run(toys.make_job(folder / "cut", **RANDOM))


def _cache(folder):
    if distributed.rank() == 0:  # one writes, or another reads half a file
        toys.write_config(folder)
    distributed.barrier()
    config = load_config(folder / "toy.yaml", ["task.n=50"])
    cache(config)


def _half(folder):
    """A run of twice as many steps, ended in the middle: the learning rate must not see the end."""
    job = toys.make_job(folder, **HALF, samples=320)
    calls = iter(range(1000))

    def stop(*_):
        if next(calls) == 10:
            raise Killed

    job.method.register_forward_pre_hook(stop)
    with contextlib.suppress(Killed):
        run(job)
    distributed.barrier()


def _nan_loss(folder, clip_norm=1.0):
    run(toys.make_job(folder, nan_at=5, clip_norm=clip_norm, save_every=5))


def _nan_gradient(folder):
    job = toys.make_job(folder, clip_norm=None)
    job.target.module.text.weight.register_hook(lambda gradient: gradient * torch.nan)
    run(job)


def _selected(folder):
    """Each rank chooses of what it has drawn, steers by the reference's word on that alone, and its
    average is that of the other."""
    select = RhoLossOptions(share=0.25)
    options = {"kind": "units", "n": 256, "select": select, "observers": (EmaOptions(0.8),)}
    job = toys.make_job(folder, **options)
    chosen, choose, losses = [], job.method.selector.choose, job.task.risk.losses

    def watched(items, count):
        chosen.append((len(items.target), count, choose(items, count)))
        return chosen[-1][-1]

    def judged(target, reference, batch):
        expected = job.task.risk.outputs(job.reference.module, batch)["loss"]
        torch.testing.assert_close(reference["loss"], expected.detach())
        return losses(target, reference, batch)

    job.method.selector.choose, job.task.risk.losses = watched, judged
    result = run(job)
    assert {(drawn, count) for drawn, count, _ in chosen} == {(32, 8)}
    assert len({tuple(rows.tolist()) for *_, rows in chosen}) > 10
    counts = [result[key] for key in ("samples", "drawn", "scored", "reference_samples")]
    assert counts == [320, 1280, 1280, 1280]
    mine = torch.cat([value.flatten() for value in job.target.module.state_dict().values()])
    assert torch.equal(*distributed.gather(mine[None]))


OTHERS = {
    "selected": _selected,
    "reference": _frozen_and_alone,
    "interrupted": _interrupted,
    "half": _half,
    "cache": _cache,
    "nan loss": _nan_loss,
    "nan gradient": _nan_gradient,
    "uneven": lambda folder: run(toys.make_job(folder, batch_size=15, samples=300)),
    "another run": lambda folder: run(_identical(toys.make_job(folder.parent / "pairs"))),
}


def _work(rank, folder):
    """Everything that the tests look at, in one pair of processes, since starting one takes
    seconds."""
    os.dup2(os.open(folder / f"stderr.{rank}", os.O_CREAT | os.O_WRONLY), 2)
    faulthandler.enable()  # should one of them abort, say where
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE // 2),
    )
    jobs = {
        name: lambda at, options=options: run(toys.make_job(at, **options))
        for name, options in SAME.items()
    }
    for name, job in (jobs | OTHERS).items():
        said = "nothing"
        (folder / name).mkdir(exist_ok=True)
        try:
            job(folder / name)
        except SteeringError as error:
            said = str(error)
        (folder / f"{name}.{rank}.txt").write_text(said)
    distributed.barrier()
    group = weakref.ref(dist.group.WORLD)
    distributed.leave()
    assert group() is None, "a run keeps the process group, so that gloo's threads live on"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder where two processes did all of `_work`."""
    folder = tmp_path_factory.mktemp("two")
    context = mp.start_processes(_work, (folder,), nprocs=2, join=False, start_method="forkserver")
    end = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, "two processes wait for each other"
    except mp.ProcessExitedException as error:
        last = "\n".join((folder / f"stderr.{rank}").read_text()[-1000:] for rank in (0, 1))
        pytest.fail(f"{error}\n{last}", pytrace=False)
    finally:
        for process in context.processes:
            process.kill()
    return folder


def _said(two, name):
    first, second = ((two / f"{name}.{rank}.txt").read_text() for rank in (0, 1))
    assert first == second
    return first


def _checkpoint(folder, job):
    """The last checkpoint of a run, its running estimates as a single process holds them."""
    step, state = load_newest(folder / "checkpoints", torch.device("cpu"))
    parts = load_parts(folder / "checkpoints", step, state["parts"])
    assert len(parts) in (0, 2)
    job.method.load_state_dict(state["method"] | (merged(parts, job.method) if parts else {}))
    return state | {"method": job.method.state_dict()}


def test_no_process_holds_all_running_estimates(two):
    parts = [
        torch.load(two / f"pairs/checkpoints/step-000000020.part-{rank}-of-2.pt", weights_only=True)
        for rank in (0, 1)
    ]
    assert [part["risk.estimator.duals.extent"].tolist() for part in parts] == [
        [0, 64, 128],
        [64, 128, 128],
    ]
    assert [len(part["risk.estimator.duals.part"]) for part in parts] == [64, 64]
    whole = torch.load(two / "pairs/checkpoints/step-000000020.pt", weights_only=True)
    assert not any("duals" in key for key in whole["method"])


def test_a_run_of_two_processes_goes_on_in_one(two, tmp_path):
    shutil.copytree(two / "half", tmp_path / "half")
    result = run(toys.make_job(tmp_path / "half", **HALF, samples=320))
    whole = run(toys.make_job(tmp_path / "whole", **HALF, samples=320))
    assert result["steps"] == whole["steps"] == 20
    found, expected = (
        load_file(tmp_path / name / "model.safetensors") for name in ("half", "whole")
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_run_with_a_damaged_part_goes_back_to_the_checkpoint_before(two, tmp_path, caplog):
    shutil.copytree(two / "half", tmp_path / "half")
    folder = tmp_path / "half/checkpoints"
    part = next(folder.glob("step-000000010.part-1-of-2.pt"))
    part.write_bytes(part.read_bytes()[:-7])
    step, _ = load_newest(folder, torch.device("cpu"))
    assert step == 5
    assert "step-000000010.pt is incomplete or damaged" in caplog.text


@pytest.mark.parametrize("name", SAME)
def test_two_processes_end_where_one_does(two, tmp_path, name):
    assert _said(two, name) == "nothing"
    one = toys.make_job(tmp_path, **SAME[name])
    start = {key: value.clone() for key, value in one.target.module.state_dict().items()}
    result = run(one)
    found = load_file(two / name / "model.safetensors")
    expected = load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (expected["text.weight" if "image.1.weight" in expected else "weight"]).abs().max() > 0
    assert any((expected[key] - start[key]).abs().max() > 0.05 for key in expected)
    mine, theirs = (
        _checkpoint(folder, toys.make_job(tmp_path, **SAME[name]))
        for folder in (tmp_path, two / name)
    )
    torch.testing.assert_close(theirs["method"], mine["method"], rtol=1e-4, atol=1e-5)
    # Without gradient in one process, with a zero one in two: the same parameters.
    steps = [
        {k: v for k, v in s["optimizer"]["state"].items() if k in mine["optimizer"]["state"]}
        for s in (mine, theirs)
    ]
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-4, atol=1e-5)
    assert json.loads((two / name / "result.json").read_text())["skipped"] == result["skipped"]


@pytest.mark.parametrize("name", SAME)
def test_two_processes_log_what_one_does(two, tmp_path, name):
    run(toys.make_job(tmp_path, **SAME[name]))
    rows, expected = (read_curves(folder / "metrics.jsonl") for folder in (two / name, tmp_path))
    # Of a split batch, the spread and the effective size are means over the ranks' own parts.
    inexact = (
        "samples_per_second",
        "seconds",
        "excess_variance",
        "effective_sample_share",
        "tau_deviation",
    )
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        # Of pairs `steer/` shows the same numbers; of losses its own, which are of the whole batch.
        parts = {"steer/excess_std", "steer/ess"} if name.startswith("pairs") else set()
        for key in row.keys() - {f"train/{name}" for name in inexact} - parts:
            assert row[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-5), key


def test_each_process_selects_of_its_own_draw(two):
    assert _said(two, "selected") == "nothing"
    result = json.loads((two / "selected/result.json").read_text())
    assert (result["samples"], result["drawn"]) == (320, 1280)
    assert load_file(two / "selected/model-ema.safetensors").keys() == {"weight", "bias"}
    assert result["summary"]["ema"]["metrics"].keys() == result["metrics"].keys()


def test_the_reference_stays_each_ranks_own_and_frozen(two):
    assert _said(two, "reference") == "nothing"


def test_two_killed_processes_resume_bit_identically(two):
    assert _said(two, "interrupted") == "nothing"
    whole, cut = two / "interrupted/whole", two / "interrupted/cut"
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    clockless = [
        [
            {k: v for k, v in row.items() if k not in ("train/samples_per_second", "train/seconds")}
            for row in read_curves(at / "metrics.jsonl")
        ]
        for at in (whole, cut)
    ]
    assert clockless[0] == clockless[1]
    states = [
        torch.load(at / "checkpoints/step-000000020.pt", weights_only=True) for at in (whole, cut)
    ]
    assert not torch.equal(
        *(state[0] for state in states[0]["random"])
    )  # each rank has random numbers of its own
    for state in states:
        del state["seconds"], state["evaluation_seconds"]
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_two_processes_build_the_cache_of_one(two, tmp_path):
    assert _said(two, "cache") == "nothing"
    _cache(tmp_path)
    names = ["image.npy", "text.npy", "valid.npy"]
    (one,), (other,) = (
        [*place.glob("runs/study/outputs/*/")] for place in (tmp_path, two / "cache")
    )
    assert sorted(path.name for path in other.glob("*.npy")) == names
    assert (one / "valid.npy").read_bytes() == (other / "valid.npy").read_bytes()
    for name in names[
        :2
    ]:  # of references trained by one and by two processes, which round differently
        np.testing.assert_allclose(np.load(other / name), np.load(one / name), rtol=1e-4, atol=1e-5)


def test_a_nan_ends_both_processes_with_one_message(two):
    for name, step in {"nan loss": 5, "nan gradient": 5}.items():
        assert f"not finite by step {step} of 20" in _said(two, name)
        assert not list((two / name).rglob("*.pt"))
        assert not (two / name / "model.safetensors").exists()


def test_both_processes_refuse_an_uneven_batch_and_another_run(two):
    assert "train.batch_size: 15 does not split into equal parts for 2 processes" in _said(
        two, "uneven"
    )
    assert "config: none stored, 0 wanted" in _said(two, "another run")


def _start(*words):
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )


def _wait(process):
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output


ALONE = """
import sys
from pathlib import Path
from steering.cli import main
from steering.commands.single import cache
code = main()
left = [name for name in map(Path.read_text, Path("/proc/self/task").glob("*/comm")) if "gloo" in name]
sys.exit(f"threads outlive the process group: {left}" if left else code)
"""


def test_torchrun_trains_what_one_process_trains(tmp_path):
    config, rest = (
        str(toys.write_config(tmp_path)),
        ["train.accumulation=2", "train.workers=1", "seed=3"],
    )
    (tmp_path / "alone.py").write_text(ALONE)  # what `-m steering` does, and then looks for threads
    run_two = [
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        f"{tmp_path}/alone.py",
    ]
    two = _start(*run_two, "train", config, f"output={tmp_path}/two", *rest)
    assert main(["train", config, f"output={tmp_path}/one", *rest]) == 0
    _wait(two)
    runs = [toys.folder_of(tmp_path / name / "study", "drrho-seed3") for name in ("one", "two")]
    expected, found = (load_file(folder / "model.safetensors") for folder in runs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (toys.folder_of(tmp_path / "two/study", "drrho-seed3") / "record.json").is_file()


def test_a_process_that_is_killed_resumes_bit_identically(tmp_path):
    config = str(toys.write_config(tmp_path))
    options = [
        "train.samples=4800",
        "train.save_every=10",
        "train.log_every=10",
        "reference=null",
        "method=dro",
    ]
    process = _start("steering", "train", config, f"output={tmp_path}/killed", *options)
    study = tmp_path / "killed/study"
    end = time.monotonic() + PATIENCE
    while not list(study.glob("*/checkpoints/*.sha256")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    folder = toys.folder_of(study, "dro-seed0")
    assert not (folder / "result.json").exists(), "the run was over before it could be killed"
    assert main(["train", config, f"output={tmp_path}/killed", *options]) == 0
    assert main(["train", config, f"output={tmp_path}/whole", *options]) == 0
    whole = toys.folder_of(tmp_path / "whole/study", "dro-seed0")
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("train/samples_per_second", "train/seconds")}
            for row in read_curves(at / "metrics.jsonl")
        ]
        for at in (folder, whole)
    ]
    assert rows[0] == rows[1]
