"""Reference outputs on disk: what a live run would compute, or one clear error."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from steering.errors import SteeringError
from steering.reference import (
    CachedReference,
    Fingerprint,
    LiveReference,
    ReferenceCache,
    build_cache,
    weights_fingerprint,
)
from steering.training.loader import load
from steering.training.loop import run

CPU = torch.device("cpu")
MINE = Fingerprint("a" * 64, "b" * 64, "c" * 64)


def _build(folder, job, fingerprint=MINE, size=7):
    """A cache of the job's reference over its data; the last batch is short."""
    n = len(job.data)
    keys = ((0, np.arange(first, min(first + size, n))) for first in range(0, n, size))
    batches = load(job.data, keys, workers=0, pin=False)
    build_cache(folder, job.task.risk, job.reference.module, batches, job.data, fingerprint, CPU)


@pytest.fixture
def job(tmp_path):
    return toys.make_job(tmp_path / "run")


@pytest.fixture
def folder(tmp_path, job):
    _build(tmp_path / "cache", job)
    return tmp_path / "cache"


def test_a_cache_holds_what_the_live_reference_gives(folder, job):
    cached, live = CachedReference(ReferenceCache(folder, MINE)), LiveReference(job.reference.module, job.task.risk)
    assert len(cached.cache) == len(job.data)
    assert cached.cache.folder == folder
    batch = job.data.batch(np.array([63, 0, 5, 5]), 0)
    torch.testing.assert_close(cached.outputs(batch), live.outputs(batch), rtol=0, atol=1e-6)
    assert not any(value.requires_grad for value in cached.outputs(batch).values())


@pytest.mark.parametrize("kind", ["pairs", "units"])
def test_cached_and_live_references_train_alike_without_augmentation(tmp_path, kind):
    """Fact 13: identical losses, hence identical runs."""
    live, cached = (toys.make_job(tmp_path / name, kind=kind, log_every=1) for name in ("live", "cached"))
    _build(tmp_path / "cache", cached, size=16)
    cached.reference = CachedReference(ReferenceCache(tmp_path / "cache", MINE))
    losses = []
    for job in (live, cached):
        job.method.register_forward_hook(lambda _, __, step: losses.append(step.loss.item()))
        run(job)
    assert losses[:20] == pytest.approx(losses[20:], rel=1e-5, abs=1e-6)
    torch.testing.assert_close(live.target.module.state_dict(), cached.target.module.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_cache_knows_no_augmentation(tmp_path):
    job = toys.make_job(tmp_path, augment=True)
    plain = job.task.plain_data(job.target)
    index = np.arange(8)
    assert torch.equal(plain.batch(index, 0)["image"], plain.batch(index, 1)["image"])
    assert not torch.equal(job.data.batch(index, 0)["image"], job.data.batch(index, 1)["image"])


@pytest.mark.parametrize(
    ("field", "meaning"),
    [("weights", "reference weights"), ("inputs", "preprocessing"), ("data", "data set"), ("dtype", "number format")],
)
def test_every_part_of_the_fingerprint_counts_and_both_sides_are_named(folder, field, meaning):
    with pytest.raises(SteeringError) as caught:
        ReferenceCache(folder, replace(MINE, **{field: "other"}))
    assert f"{meaning}: {getattr(MINE, field)[:12]} stored, other wanted" in str(caught.value)
    assert str(caught.value).count("stored") == 1
    assert str(folder) in str(caught.value)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["image.npy", "text.npy", "valid.npy"])
@pytest.mark.parametrize(
    "damage", [_flip, lambda path: path.write_bytes(path.read_bytes()[:-8]), lambda path: path.unlink()]
)
def test_a_damaged_file_is_found(folder, name, damage):
    damage(folder / name)
    with pytest.raises(SteeringError, match=rf"reference cache .* is damaged: {name} is not the file that was written"):
        ReferenceCache(folder, MINE)


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
        _without("seconds"),
    ],
)
def test_a_damaged_record_is_found(folder, damage):
    damage(folder / "cache.json")
    with pytest.raises(SteeringError, match=r"cache.json is damaged .*; delete the folder"):
        ReferenceCache(folder, MINE)


def test_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(SteeringError, match=r"no reference cache in .*; `steering cache CONFIG.yaml` makes it"):
        ReferenceCache(tmp_path / "nothing", MINE)


def test_an_unfinished_folder_is_no_cache_and_is_replaced(tmp_path, job):
    batches = load(job.data, [(0, np.arange(8))], workers=0, pin=False)

    def dies():
        yield from batches
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(tmp_path / "cache", job.task.risk, job.reference.module, dies(), job.data, MINE, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.partial"]
    with pytest.raises(SteeringError, match="no reference cache"):
        ReferenceCache(tmp_path / "cache", MINE)
    with pytest.raises(SteeringError, match="no reference cache"):
        ReferenceCache(tmp_path / "cache.partial", MINE)
    _build(tmp_path / "cache", job)
    assert len(ReferenceCache(tmp_path / "cache", MINE)) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_missing_row_is_an_error(tmp_path):
    job = toys.make_job(tmp_path / "run", unreadable=3)
    _build(tmp_path / "cache", job)
    cache = ReferenceCache(tmp_path / "cache", MINE)
    cache.read(torch.tensor([2, 4]))
    with pytest.raises(SteeringError, match="holds nothing for example 3, which could not be read"):
        cache.read(torch.tensor([2, 3, 4]))
    run(replace(job, reference=CachedReference(cache)))  # a run meets the replacement's number, which is there


def test_the_model_is_in_eval_mode_while_its_outputs_are_stored(tmp_path):
    job = toys.make_job(tmp_path)
    module = job.task.build(toys.ModelSpec("linear", options={"dropout": 0.9})).module.train()
    job.reference.module = module
    _build(tmp_path / "one", job)
    _build(tmp_path / "two", job)
    assert (tmp_path / "one/image.npy").read_bytes() == (tmp_path / "two/image.npy").read_bytes()
    assert not module.training


def test_a_folder_with_something_else_is_never_deleted(tmp_path, job):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter.tex").write_text("years of work")
    with pytest.raises(SteeringError, match=r"reference.cache: .*thesis exists and is no reference cache"):
        _build(mine, job)
    assert (mine / "chapter.tex").read_text() == "years of work"
    with pytest.raises(SteeringError, match="exists and is no reference cache"):
        _build(mine / "chapter.tex", job)
    (tmp_path / "empty").mkdir()
    _build(tmp_path / "empty", job)
    _build(tmp_path / "empty", job, replace(MINE, data="new"))  # a cache may be replaced by another
    ReferenceCache(tmp_path / "empty", replace(MINE, data="new"))


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
