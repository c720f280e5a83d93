"""Whole studies and single runs on the toy task: what they write, that they do nothing twice, and
their errors."""

import json
import logging
import math
import time

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from steering.cli import main
from steering.commands.single import cache, evaluate, train
from steering.commands.studies import compare, report
from steering.config import load_config
from steering.errors import SteeringError
from steering.training.session import choose_device


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished comparison: three methods, two seeds; (config file, folder of the study)."""
    folder = tmp_path_factory.mktemp("study")
    path = toys.write_config(folder)
    compare(load_config(path))
    return path, folder / "runs/study"


def _files(folder):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _record(folder, label):
    return json.loads((toys.folder_of(folder, label) / "record.json").read_text())


def test_compare_writes_a_row_for_every_run_and_the_reference(study):
    _, folder = study
    rows = json.loads((folder / "compare.json").read_text())
    expected = [
        ("reference", None),
        *((label, seed) for label in ("plain", "global", "drrho") for seed in (0, 1)),
    ]
    assert [(row["method"], row["seed"]) for row in rows] == expected
    for row in rows[1:]:
        record = _record(folder, f"{row['method']}-seed{row['seed']}")
        assert row["metrics"] == record["metrics"]
        assert row["summary"] == record["summary"]
        assert (row["seconds"], row["flops"]) == (
            record["cost"]["seconds"],
            record["cost"]["flops"],
        )
        assert (row["samples"], row["drawn"], row["scored"], row["reference_samples"]) == (
            320,
            320,
            0,
            0,
        )
    trained = _record(folder, "reference")
    assert rows[0]["metrics"] == trained["metrics"]
    assert (rows[0]["samples"], rows[0]["seconds"]) == (64, trained["cost"]["seconds"])
    (stored,) = folder.glob("outputs/*/outputs.json")
    assert rows[0]["cache_seconds"] == json.loads(stored.read_text())["kinds"]["losses"]["seconds"]


def test_a_record_says_what_the_run_was_and_cost(study):
    """Numbers by hand: two linear maps of 6 x 5 and a bias of 5 each, and a logit scale; 2 FLOPs a
    weight, 3 passes."""
    _, folder = study
    record = _record(folder, "drrho-seed1")
    cost = record["cost"]
    assert (record["schema"], record["kind"], record["label"]) == (1, "train", "drrho-seed1")
    assert record["axes"] == {"method": "drrho", "seed": 1}
    assert cost["parameters"] == 2 * (6 * 5 + 5) + 1
    assert cost["forward_flops"] == cost["reference_flops"] == 2 * 2 * 6 * 5
    assert cost["flops"] == 3 * 320 * cost["forward_flops"]
    assert (cost["trained"], cost["steps"], cost["stored"], cost["reference"]) == (320, 20, 64, 0)
    assert cost["peak_bytes"] > 10**7
    assert record["parents"] == {"reference": _record(folder, "reference")["key"]}
    assert {"torch", "python", "device", "threads"} <= record["environment"].keys()
    assert record["meaning"]["seen/image_to_text_R@1"]["of"] == ["seen/image_to_text_R@1"]
    with np.load(toys.folder_of(folder, "drrho-seed1") / "scores.npz") as scores:
        assert (
            scores["seen/image_to_text_R@1"].mean() == record["metrics"]["seen/image_to_text_R@1"]
        )
        assert len(scores["seen/image_to_text_R@1"]) == 16


def test_the_tables_hold_mean_and_standard_error_by_hand(study):
    _, folder = study
    rows = json.loads((folder / "compare.json").read_text())
    text = (folder / "compare.md").read_text()
    assert text.startswith("# study: plain, global, drrho\n")
    lines = {
        line.split(" | ")[0].removeprefix("| "): line
        for line in text.split("## ")[1].splitlines()[2:]
    }
    for label in ("plain", "global", "drrho"):
        one, two = (
            row["metrics"]["seen/image_to_text_R@1"] for row in rows if row["method"] == label
        )
        mean, error = (
            100 * (one + two) / 2,
            100 * abs(one - two) / 2,
        )  # s = |a − b|/√2, and s/√2 is the error
        assert lines[label].startswith(f"| {label} | {mean:.1f} ± {error:.1f} |")
    assert "±" not in lines["reference"]
    assert "| plain | 2 | 320 |" in text.split("## ")[3]


def test_compare_draws_curves_and_writes_tensorboard(study):
    _, folder = study
    with Image.open(folder / "compare.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
    events = EventAccumulator(str(folder / "comparison")).Reload()
    assert events.Tags()["images"] == ["compare"]
    assert events.Tags()["tensors"] == ["compare/text_summary"]
    (text,) = events.Tensors("compare/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (folder / "compare.md").read_text()


def test_a_second_compare_trains_nothing(study, monkeypatch):
    path, folder = study
    before, rows = _files(folder), (folder / "compare.json").read_bytes()

    def never(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr("steering.runs.execute.run", never)
    monkeypatch.setattr("steering.runs.workshop.build", never)
    start = time.monotonic()
    compare(load_config(path))
    assert time.monotonic() - start < 20
    assert (folder / "compare.json").read_bytes() == rows
    (folder / "compare.md").unlink()
    report([str(folder)])
    assert (folder / "compare.json").read_bytes() == rows
    assert (folder / "compare.md").is_file()
    changed = {path for path, stamp in _files(folder).items() if before.get(path) != stamp}
    drawn = {"compare.json", "compare.md", "compare.html", "compare.png", "comparison"}
    assert {path.relative_to(folder).parts[0] for path in changed} == drawn
    (folder / "compare.md").write_text("somebody's own")
    compare(load_config(path))
    assert (folder / "compare.md").read_text().startswith("# study: plain")


def test_a_study_can_grow(study):
    path, folder = study
    before = {(path, stamp) for path, stamp in _files(folder).items() if "seed" in path.parent.name}
    compare(
        load_config(
            path, ["compare.methods={drrho: {name: drrho}, half: {name: drrho, strength: 0.5}}"]
        )
    )
    assert before <= set(_files(folder).items())
    rows = json.loads((folder / "compare.json").read_text())
    assert [row["method"] for row in rows] == ["reference", "drrho", "drrho", "half", "half"]


def test_a_label_may_not_be_the_references(tmp_path):
    config = load_config(toys.write_config(tmp_path), ["compare.methods={reference: {name: erm}}"])
    with pytest.raises(
        SteeringError, match=r"compare.methods.reference: this label is the reference's own"
    ):
        compare(config)


def test_compare_needs_methods(tmp_path):
    with pytest.raises(SteeringError, match=r"compare.methods: empty"):
        compare(load_config(toys.write_config(tmp_path), ["compare.methods={}"]))


def test_two_names_of_one_run_are_refused(tmp_path):
    methods = "compare.methods={plain: {name: erm}, usual: {name: erm}}"
    with pytest.raises(
        SteeringError, match=r"compare.methods: plain-seed0 and usual-seed0 are the same run"
    ):
        compare(load_config(toys.write_config(tmp_path), [methods]))


def test_a_reference_that_is_one_of_the_runs_keeps_its_row(tmp_path, capsys):
    words = [
        "train.samples=64",
        "reference={name: linear, train: {}}",
        "compare.methods={plain: {name: erm}, drrho: {name: drrho}}",
        "compare.seeds=[0]",
    ]
    compare(load_config(toys.write_config(tmp_path), words))
    page = tmp_path / "runs/study/compare.json"
    rows = json.loads(page.read_text())
    names = [("reference", None), ("plain", 0), ("drrho", 0)]
    assert [(row["method"], row["seed"]) for row in rows] == names
    assert rows[0]["metrics"] == rows[1]["metrics"]
    assert rows[0]["samples"] == rows[1]["samples"] == 64
    assert not list(page.parent.glob("reference*/record.json"))  # it was trained once
    capsys.readouterr()
    assert main(["report", str(page.parent)]) == 0
    assert json.loads(page.read_text()) == rows


def test_compare_without_a_reference(tmp_path):
    methods = "compare.methods={plain: {name: erm}, global: {name: dro}}"
    compare(
        load_config(toys.write_config(tmp_path), ["reference=null", methods, "compare.seeds=[4]"])
    )
    rows = json.loads((tmp_path / "runs/study/compare.json").read_text())
    assert [(row["method"], row["seed"]) for row in rows] == [("plain", 4), ("global", 4)]
    with pytest.raises(
        SteeringError, match=r"method.name: drrho needs a reference; add a reference: section"
    ):
        compare(load_config(toys.write_config(tmp_path), ["reference=null"]))


def test_given_weights_are_not_trained_again(study, tmp_path):
    """And a reference that no method asks for is still shown, without a cost that was paid
    elsewhere."""
    path, folder = study
    checkpoint = f"reference.checkpoint={toys.folder_of(folder, 'reference')}/model.safetensors"
    methods = "compare.methods={plain: {name: erm}}"
    compare(
        load_config(
            path,
            [
                f"output={tmp_path}",
                checkpoint,
                methods,
                "compare.seeds=[0]",
                "reference.cache=null",
            ],
        )
    )
    assert (tmp_path / "study/reference/record.json").is_file()  # evaluated, not trained
    assert not (tmp_path / "study/reference/model.safetensors").exists()
    reference, _ = json.loads((tmp_path / "study/compare.json").read_text())
    assert (reference["method"], reference["samples"], reference["seconds"]) == (
        "reference",
        None,
        None,
    )
    assert "cache_seconds" not in reference


def test_train_stores_the_references_outputs_and_keeps_its_config(tmp_path, capsys):
    config = load_config(toys.write_config(tmp_path))
    train(config)
    folder = tmp_path / "runs/study"
    assert sorted(path.name for path in folder.iterdir()) == ["drrho-seed0", "outputs", "reference"]
    run = toys.folder_of(folder, "drrho-seed0")
    assert load_config(run / "config.yaml") == config
    found = json.loads((run / "record.json").read_text())["found"]
    assert found.keys() == {
        "target: inputs",
        "task: data",
        "task: first data",
        "reference: weights",
        "reference: inputs",
    }
    assert "drrho" in capsys.readouterr().out


def test_a_live_and_a_cached_reference_give_the_same_run(tmp_path):
    path = toys.write_config(tmp_path)
    records = []
    for name, where in {"live": "null", "cached": "auto"}.items():
        train(load_config(path, [f"name={name}", f"reference.cache={where}"]))
        records.append(_record(tmp_path / "runs" / name, "drrho-seed0"))
    assert not (tmp_path / "runs/live/outputs").exists()
    assert records[0]["found"]["reference: weights"] == records[1]["found"]["reference: weights"]
    assert records[0]["key"] != records[1]["key"]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], abs=0.07)


def test_a_sweep_never_collides(tmp_path):
    path = toys.write_config(tmp_path)
    for rate in (0.02, 0.03, 0.02):
        train(load_config(path, ["method=erm", "reference=null", f"optimizer.lr={rate}"]))
    made = sorted(path.parent.name for path in (tmp_path / "runs/study").glob("*/record.json"))
    assert [name[:10] for name in made] == [
        "erm-seed0",
        "erm-seed0-",
    ]  # the second found the label taken


def test_stored_outputs_of_other_data_lie_beside(tmp_path):
    path = toys.write_config(tmp_path)
    cache(load_config(path, [f"reference.cache={tmp_path}/cache"]))
    checkpoint = toys.folder_of(tmp_path / "runs/study", "reference") / "model.safetensors"
    other = [
        "task.n=80",
        f"reference.cache={tmp_path}/cache",
        f"reference.checkpoint={checkpoint}",
        "name=other",
    ]
    train(load_config(path, other))
    assert len(list((tmp_path / "cache").glob("*/outputs.json"))) == 2


def test_one_explicit_cache_serves_methods_that_need_different_outputs(tmp_path):
    """Distillation needs more than drrho does; once such a comparison was refused midway."""
    methods = "compare.methods={plain: {name: erm}, drrho: {name: drrho}, kd: {name: distillation, reference_scale: 20}}"
    config = load_config(
        toys.write_config(tmp_path),
        [f"reference.cache={tmp_path}/cache", methods, "compare.seeds=[0]"],
    )
    compare(config)
    (about,) = (tmp_path / "cache").glob("*/outputs.json")
    kinds = json.loads(about.read_text())["kinds"]
    assert kinds.keys() == {"losses", "logits"}
    # Features of pairs are all that either asks for, so the second kind is a second name for them.
    assert kinds["losses"]["tensors"] == kinds["logits"]["tensors"] == ["image", "text"]
    assert kinds["logits"]["seconds"] == 0.0
    assert {path.name for path in about.parent.glob("*.npy")} == {
        "image.npy",
        "text.npy",
        "valid.npy",
    }


@pytest.mark.parametrize(
    ("methods", "kinds"),
    [
        ("{plain: {name: erm}, global: {name: dro}}", set()),
        ("{plain: {name: erm}, drrho: {name: drrho}}", {"losses"}),
        ("{kd: {name: distillation, reference_scale: 20}}", {"logits"}),
    ],
)
def test_a_comparison_stores_what_its_methods_read_and_nothing_else(tmp_path, methods, kinds):
    changes = [f"compare.methods={methods}", "compare.seeds=[0]", "reference.cache=auto"]
    compare(load_config(toys.write_config(tmp_path), changes))
    found = {
        kind
        for path in tmp_path.rglob("outputs.json")
        for kind in json.loads(path.read_text())["kinds"]
    }
    assert found == kinds


def test_cache_builds_once_and_says_where(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    config = load_config(path, [f"reference.cache={tmp_path}/cache", "task.n=50"])
    cache(config)
    assert f"50 examples cached in {tmp_path}/cache/" in capsys.readouterr().out.replace("\n", "")
    before = _files(tmp_path / "cache")
    cache(config)
    assert _files(tmp_path / "cache") == before


def test_cache_needs_a_reference(tmp_path):
    with pytest.raises(
        SteeringError, match="reference: the config names none, so there is nothing to cache"
    ):
        cache(load_config(toys.write_config(tmp_path), ["reference=null", "method=erm"]))


def test_evaluate_shows_target_and_reference(study, capsys):
    path, folder = study
    config = load_config(path, ["method.estimator.gamma=null"])
    train(config)  # the same run as the study's, so it is there already
    capsys.readouterr()
    evaluate(config)
    shown = capsys.readouterr().out
    result = _record(folder, "drrho-seed0")["metrics"]
    assert f"{100 * result['seen/image_to_text_R@1']:.1f}" in shown
    assert "target" in shown
    assert "reference" in shown


def test_evaluate_of_given_weights(study, capsys):
    path, folder = study
    weights = toys.folder_of(folder, "plain-seed1") / "model.safetensors"
    evaluate(load_config(path, [f"target.checkpoint={weights}", "reference=null"]))
    metrics = _record(folder, "plain-seed1")["metrics"]
    shown = capsys.readouterr().out
    assert f"{100 * metrics['seen/image_to_text_R@1']:.1f}" in shown
    assert "reference" not in shown


def test_evaluate_needs_a_finished_run(tmp_path):
    with pytest.raises(
        SteeringError,
        match=r"evaluate: no finished run of this config in .*study; train it, or set target",
    ):
        evaluate(load_config(toys.write_config(tmp_path)))


def test_the_command_line_shows_one_line_for_an_error(tmp_path, capsys):
    path = toys.write_config(tmp_path)
    assert (
        main(["train", str(path), "train.accumulation=8", "train.batch_size=32", "task.nan_at=1"])
        == 1
    )
    error = [
        line
        for line in capsys.readouterr().err.splitlines()
        if not line.startswith(("reference:", "drrho:"))
    ]
    assert len(error) == 1
    assert error[0].startswith(
        "steering: error: training: the loss or its gradient was not finite by step "
    )


@pytest.mark.parametrize(
    ("device", "local_rank"), [("auto", None), ("cpu", None), ("cpu", 1), ("auto", 1)]
)
def test_without_a_gpu_the_device_is_the_cpu(monkeypatch, device, local_rank):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device(device, local_rank) == torch.device("cpu")


def test_the_device_of_a_process(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    cases = {
        ("auto", None): 0,
        ("cuda", None): 0,
        ("cuda:2", None): 2,
        ("cuda:2", 1): 1,
        ("auto", 3): 3,
    }
    for (device, local_rank), number in cases.items():
        assert choose_device(device, local_rank) == torch.device("cuda", number)
    for device, local_rank in [("cuda:4", None), ("cuda", 4)]:
        with pytest.raises(
            SteeringError, match="device: cuda:4 was asked for, but 4 GPUs are visible"
        ):
            choose_device(device, local_rank)


def test_progress_goes_to_stderr_and_the_log_is_quiet(tmp_path, capsys, caplog):
    with caplog.at_level(logging.WARNING, "steering"):
        train(
            load_config(
                toys.write_config(tmp_path), ["task.unreadable=3", "reference=null", "method=dro"]
            )
        )
    assert "20/20 steps" in capsys.readouterr().err
    folder = toys.folder_of(tmp_path / "runs/study", "dro-seed0")
    assert [record.getMessage() for record in caplog.records] == [
        f"{folder}: 5 unreadable examples were replaced by others"
    ]
    record = json.loads((folder / "record.json").read_text())
    assert record["cost"]["skipped"] == 5
    assert math.isfinite(record["cost"]["seconds"])
