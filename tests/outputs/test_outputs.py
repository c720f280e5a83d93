"""Outputs on disk: what the model gives now, or one clear error; a kill costs little, and nothing
is computed twice."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from torch import nn

from steering.commands.single import cache
from steering.config import load_config
from steering.errors import SteeringError
from steering.items import Units
from steering.outputs import Artefact, Fingerprint, WithOutputs, build, compute, weights_fingerprint
from steering.reference import STORED, LiveReference, StoredReference
from steering.risk import ReferenceRisk
from steering.runs.ask import model_outputs, reference_target, reference_training
from steering.runs.execute import execute
from steering.runs.store import Store
from steering.runs.workshop import Workshop
from steering.storage import write_text
from steering.training.loader import load
from steering.training.loop import run

CPU = torch.device("cpu")
MINE = Fingerprint("a" * 64, "b" * 64, "c" * 64)


def _batches(job, size):
    """From a batch number on; the last batch is short."""
    n = len(job.data)
    keys = [(0, np.arange(first, min(first + size, n))) for first in range(0, n, size)]
    return lambda start: load(job.data, keys[start:], workers=0, pin=False)


def _build(root, job, fingerprint=MINE, size=7, kind="losses", batches=None):
    """Outputs of the job's reference on its data."""
    batches = batches or _batches(job, size)
    return build(
        root, fingerprint, kind, job.task.risk, job.reference.module, batches, len(job.data), CPU
    )


@pytest.fixture
def job(tmp_path):
    return toys.make_job(tmp_path / "run")


@pytest.fixture
def folder(tmp_path, job):
    return _build(tmp_path / "outputs", job).folder


def test_they_are_what_the_live_reference_gives(tmp_path, job):
    stored = _build(tmp_path / "outputs", job)
    assert len(stored) == len(job.data)
    assert stored.tensors == {"image": (64, 5), "text": (64, 5)}
    live, index = LiveReference(job.reference.module, job.task.risk), np.array([63, 0, 5, 5])
    batch = WithOutputs(job.data, stored, STORED).batch(index, 0)
    found = StoredReference().outputs(batch)
    torch.testing.assert_close(found, live.outputs(job.data.batch(index, 0)), rtol=0, atol=1e-6)
    assert not any(value.requires_grad for value in found.values())
    assert [key for key in batch if key.startswith("reference:")] == [
        "reference:image",
        "reference:text",
    ]


@pytest.mark.parametrize("kind", ["pairs", "units"])
@pytest.mark.parametrize("workers", [0, 2])
def test_stored_and_live_references_train_alike_without_augmentation(tmp_path, kind, workers):
    """docs/facts.md, DRRho-CLIP, fact 13: identical losses, hence identical runs; the loader's
    workers read the rows."""
    changes = {"kind": kind, "log_every": 1, "workers": workers}
    live, stored = (toys.make_job(tmp_path / name, **changes) for name in ("live", "stored"))
    artefact = _build(tmp_path / "outputs", stored, size=16)
    stored.reference, stored.data = StoredReference(), WithOutputs(stored.data, artefact, STORED)
    losses = []
    for job in (live, stored):
        job.method.register_forward_hook(lambda _, __, step: losses.append(step.loss.item()))
        run(job)
    assert losses[:20] == pytest.approx(losses[20:], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(
        live.target.module.state_dict(), stored.target.module.state_dict(), rtol=1e-4, atol=1e-5
    )


def test_plain_data_know_no_augmentation(tmp_path):
    job = toys.make_job(tmp_path, augment=True)
    plain = job.task.plain_data(job.target)
    index = np.arange(8)
    assert torch.equal(plain.batch(index, 0)["image"], plain.batch(index, 1)["image"])
    assert not torch.equal(job.data.batch(index, 0)["image"], job.data.batch(index, 1)["image"])


@pytest.mark.parametrize(
    ("field", "meaning"),
    [
        ("weights", "weights"),
        ("inputs", "preprocessing"),
        ("data", "data set"),
        ("dtype", "number format"),
    ],
)
def test_every_part_of_the_fingerprint_counts_and_both_sides_are_named(
    tmp_path, job, folder, field, meaning
):
    other = replace(MINE, **{field: "other"})
    assert other.digest() != MINE.digest()
    assert (
        _build(tmp_path / "outputs", job, other).folder != folder
    )  # computed anew, beside the others
    with pytest.raises(SteeringError) as caught:
        Artefact(folder, other, "losses")
    assert f"{meaning}: {getattr(MINE, field)[:12]} stored, other wanted" in str(caught.value)
    assert str(caught.value).count("stored") == 1
    assert str(folder) in str(caught.value)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["image.npy", "text.npy", "valid.npy"])
@pytest.mark.parametrize(
    "damage",
    [_flip, lambda path: path.write_bytes(path.read_bytes()[:-8]), lambda path: path.unlink()],
)
def test_a_damaged_file_is_found(folder, name, damage):
    damage(folder / name)
    with pytest.raises(
        SteeringError, match=rf"outputs in .* are damaged: {name} is not the file that was written"
    ):
        Artefact(folder, MINE, "losses")


def _without(key):
    def drop(path):
        record = json.loads(path.read_text())
        del record[key]
        path.write_text(json.dumps(record))

    return drop


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:-20]),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text("[1]"),
        _without("fingerprint"),
        _without("files"),
        _without("kinds"),
    ],
)
def test_a_damaged_record_is_found(tmp_path, job, folder, damage):
    damage(folder / "outputs.json")
    for use in (
        lambda: Artefact(folder, MINE, "losses"),
        lambda: _build(tmp_path / "outputs", job),
    ):
        with pytest.raises(SteeringError, match=r"outputs.json is damaged .*; delete the folder"):
            use()


def test_nothing_there_is_told(tmp_path, folder):
    with pytest.raises(SteeringError, match="no outputs in"):
        Artefact(tmp_path / "nothing", MINE, "losses")
    with pytest.raises(SteeringError, match="no entropy, only losses"):
        Artefact(folder, MINE, "entropy")


def _counted(job, size, dies_at=None):
    """Batches, and how many were taken; one that dies after some."""
    taken, plain = [], _batches(job, size)

    def batches(start):
        for batch in plain(start):
            if dies_at is not None and len(taken) == dies_at:
                raise KeyboardInterrupt
            taken.append(batch["index"][0].item())
            yield batch

    return batches, taken


def test_what_a_kill_has_left_is_not_computed_again(tmp_path, job, monkeypatch):
    monkeypatch.setattr("steering.outputs.computing.FLUSH_SECONDS", 0.0)
    root = tmp_path / "outputs"
    dying, taken = _counted(job, 8, dies_at=4)  # one batch to see the shapes, then three of eight
    with pytest.raises(KeyboardInterrupt):
        _build(root, job, batches=dying)
    assert taken == [0, 0, 8, 16]
    with pytest.raises(SteeringError, match="no outputs in"):
        Artefact(root / MINE.digest()[:12], MINE, "losses")
    again, taken = _counted(job, 8)
    found = _build(root, job, batches=again)
    assert taken == [0, 24, 32, 40, 48, 56]
    whole = _build(tmp_path / "whole", job, size=8)
    for name in ("image", "text"):
        assert np.array_equal(found.array(name), whole.array(name))
    assert found.valid.all()
    assert sorted(path.name for path in found.folder.iterdir()) == [
        "image.npy",
        "outputs.json",
        "text.npy",
        "valid.npy",
    ]


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_between_the_files_loses_none(tmp_path, job, monkeypatch, moves):
    """Of a second kind beside a first one, whose marks of valid examples are replaced on the way:
    after none or one of two moved files, and before the record."""
    root = tmp_path / "outputs"
    _build(root, job)
    left, replace_ = [moves], Path.replace

    def dying(path, target):
        if ".partial-" in str(path) and path.suffix == ".npy":
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        return replace_(path, target)

    def cut(path, text):
        if moves == 2 and Path(path).name == "outputs.json":
            raise KeyboardInterrupt
        write_text(path, text)

    monkeypatch.setattr(Path, "replace", dying)
    monkeypatch.setattr("steering.outputs.computing.write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        _build(root, job, kind="hidden:text")
    monkeypatch.undo()
    again, taken = _counted(job, 8)
    found = _build(root, job, kind="hidden:text", batches=again)
    assert len(taken) <= 1  # the pass was complete
    for kind in ("losses", "hidden:text"):
        Artefact(found.folder, MINE, kind)
    assert not list(found.folder.glob(".partial-*"))


def test_what_another_kind_has_stored_since_is_not_replaced(tmp_path, monkeypatch):
    """A pass of logits is killed, the losses are stored, the logits go on: the losses that the killed
    pass had begun are of no use any more."""
    monkeypatch.setattr("steering.outputs.computing.FLUSH_SECONDS", 0.0)
    root, job = tmp_path / "outputs", toys.make_job(tmp_path / "run", kind="units")
    plain = toys.UnitRisk.outputs

    def outputs(self, model, batch, logits=False):
        found = plain(self, model, batch)
        return found | ({"logits": model(batch["image"])} if logits else {})

    monkeypatch.setattr(toys.UnitRisk, "outputs", outputs)
    monkeypatch.setattr(toys.UnitRisk, "gives_logits", True, raising=False)
    dying, _ = _counted(job, 8, dies_at=4)
    with pytest.raises(KeyboardInterrupt):
        _build(root, job, kind="logits", batches=dying)
    whole = _build(root, job, size=8).array("loss").copy()
    _build(root, job, kind="logits", size=8)
    for kind in ("losses", "logits"):
        assert np.array_equal(Artefact(root / MINE.digest()[:12], MINE, kind).array("loss"), whole)


def test_other_batches_than_the_killed_pass_start_anew(tmp_path, job, monkeypatch):
    monkeypatch.setattr("steering.outputs.computing.FLUSH_SECONDS", 0.0)
    dying, _ = _counted(job, 8, dies_at=4)
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path / "outputs", job, batches=dying)
    again, taken = _counted(job, 16)
    _build(tmp_path / "outputs", job, batches=again)
    assert taken == [0, 0, 16, 32, 48]


def test_a_missing_row_is_an_error(tmp_path):
    job = toys.make_job(tmp_path / "run", unreadable=3)
    stored = _build(tmp_path / "outputs", job)
    stored.read(torch.tensor([2, 4]))
    with pytest.raises(SteeringError, match="nothing of example 3, which could not be read"):
        stored.read(torch.tensor([2, 3, 4]))
    data = WithOutputs(job.data, stored, STORED)
    run(
        replace(job, reference=StoredReference(), data=data)
    )  # a run meets the replacement's number, which is there


def test_the_model_is_in_eval_mode_while_its_outputs_are_stored(tmp_path):
    job = toys.make_job(tmp_path)
    module = job.task.build(toys.ModelSpec("linear", options={"dropout": 0.9})).module.train()
    job.reference.module = module
    one, two = (_build(tmp_path / name, job).folder for name in ("one", "two"))
    assert (one / "image.npy").read_bytes() == (two / "image.npy").read_bytes()
    assert not module.training


def test_something_else_in_the_folder_is_never_deleted(tmp_path, job):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("years of work")
    _build(mine, job)
    assert (mine / "chapter.tex").read_text() == "years of work"


def test_a_worker_gets_the_files_not_the_numbers(tmp_path, job):
    stored = _build(tmp_path / "outputs", job)
    sent = pickle.dumps(stored)
    assert len(sent) < 2000  # 64 x 10 float32 alone are 2,560 bytes
    again = pickle.loads(sent)
    assert torch.equal(
        again.read(torch.tensor([3]))["image"], stored.read(torch.tensor([3]))["image"]
    )


class Scores(ReferenceRisk):
    """A classifier with a hidden layer: logits only when they are asked for."""

    def outputs(self, model, batch, logits=False):
        scores = model(batch["image"])
        loss = nn.functional.cross_entropy(scores, batch["text"].argmax(-1), reduction="none")
        return {"loss": loss} | ({"logits": scores} if logits else {})

    def losses(self, target, reference, batch):  # noqa: ARG002
        return Units(target["loss"])


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    job = toys.make_job(tmp_path / "run", kind="units")
    job.task.risk = Scores()
    job.reference.module = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))
    return job


def test_kinds_share_what_is_the_same(tmp_path, classifier):
    root = tmp_path / "outputs"
    losses = _build(root, classifier)
    written = (losses.folder / "loss.npy").stat().st_mtime_ns
    logits = _build(root, classifier, kind="logits")
    assert logits.folder == losses.folder
    assert [*logits.tensors] == ["loss", "logits"]
    assert [*_build(root, classifier).tensors] == ["loss"]  # who wants losses does not read logits
    assert (losses.folder / "loss.npy").stat().st_mtime_ns == written


def test_features_of_pairs_are_computed_once_whatever_asks(tmp_path, job):
    root = tmp_path / "outputs"
    _build(root, job)
    batches, taken = _counted(job, 7)
    for kind in ("logits", "features"):
        found = _build(root, job, kind=kind, batches=batches)
        assert [*found.tensors] == ["image", "text"]
        assert found.seconds == 0.0
    assert taken == [0, 0]  # one batch each, to see which tensors they are


def test_entropy_and_hidden_states_by_hand(tmp_path, classifier):
    root, module, data = tmp_path / "outputs", classifier.reference.module, classifier.data
    image = data.batch(np.arange(64), 0)["image"]
    p = module(image).softmax(-1)
    entropy = _build(root, classifier, kind="entropy").read(torch.arange(64))["entropy"]
    torch.testing.assert_close(entropy, -(p * p.log()).sum(-1), rtol=1e-5, atol=1e-6)
    hidden = _build(root, classifier, kind="hidden:1").read(torch.arange(64))["hidden:1"]
    torch.testing.assert_close(hidden, module[:2](image), rtol=0, atol=1e-6)
    assert not module[1]._forward_hooks


def test_kinds_that_cannot_be_had(classifier, job):
    batch = classifier.data.batch(np.arange(4), 0)
    risk, module = classifier.task.risk, classifier.reference.module
    for kind, message in {
        "colour": "no kind 'colour'; there are losses, logits, features, entropy and hidden:LAYER",
        "hidden:9": "the model has no layer '9'; some are",
        "features": "no features; name a layer as hidden:LAYER",
    }.items():
        with pytest.raises(SteeringError, match=message):
            compute(kind, risk, module, batch)
    with pytest.raises(SteeringError, match="entropy needs logits"):
        compute("entropy", job.task.risk, job.reference.module, job.data.batch(np.arange(4), 0))


def test_outputs_of_training_and_held_out_data_as_runs(tmp_path):
    config = load_config(toys.write_config(tmp_path))
    workshop = Workshop(Store(tmp_path / "runs"), CPU)
    parent = reference_training(config)
    target = reference_target(config)
    records = [
        execute(model_outputs(target, "features", part, model=parent), workshop)
        for part in ("train", "first")
    ]
    assert [record.summary["tensors"]["image"][0] for record in records] == [64, 16]
    assert all(
        (tmp_path / "runs" / record.summary["outputs"] / "image.npy").is_file()
        for record in records
    )
    assert records[0].parents == {"model": parent.key}
    with pytest.raises(SteeringError, match="the task has no part 'last'; it has train, first"):
        execute(model_outputs(target, "features", "last", model=parent), workshop)


def test_an_estimate_says_bytes_and_time_and_stores_nothing(tmp_path, capsys):
    config = load_config(toys.write_config(tmp_path), [f"reference.cache={tmp_path}/cache"])
    cache(config, estimate=True)
    said = capsys.readouterr().out
    assert (
        f"outputs of 64 examples: 2.6 kB in {tmp_path}/cache, about 0 s on cpu" in said
    )  # 64 x (10 float32 + 1)
    assert not (tmp_path / "cache").exists()
    cache(config)
    (stored,) = (tmp_path / "cache").glob("*/outputs.json")
    sizes = [entry["bytes"] for entry in json.loads(stored.read_text())["files"].values()]
    assert sum(sizes) - 3 * 128 == 64 * (2 * 5 * 4 + 1)  # each .npy has a header of 128 bytes


def test_the_weights_fingerprint_is_of_names_shapes_types_and_values():
    def digest(**tensors):
        module = torch.nn.Module()
        for name, value in tensors.items():
            module.register_buffer(name, value)
        return weights_fingerprint(module)

    x = torch.arange(6, dtype=torch.float32)
    digests = [
        digest(x=x),
        digest(y=x),
        digest(x=x.reshape(2, 3)),
        digest(x=x.to(torch.int32)),
        digest(x=x.view(torch.int32)),
        digest(x=x + 1e-6),
        digest(x=x.bfloat16()),
        digest(x=x, z=torch.tensor(True)),
        digest(x=x, z=torch.tensor(1, dtype=torch.uint8)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest(x=x) == digest(x=x.clone())
    assert digest(x=x.reshape(2, 3).T) == digest(x=x.reshape(2, 3).T.contiguous())
