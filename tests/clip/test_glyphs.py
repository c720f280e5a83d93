"""The embedded data: what is drawn, how it is divided, kept on disk, noised, shifted and
prepared."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import unicodedata
from dataclasses import replace
from itertools import islice
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import MODELS, model_json
from PIL import Image

from steering.errors import SteeringError
from steering.storage import cache_dir
from steering.task import ModelSpec
from steering_tasks import glyphs as module
from steering_tasks.clip.data.glyph_data import (
    EVALUATED,
    SHIFT,
    GlyphData,
    glyph_retrieval,
    prepare,
    shift,
)
from steering_tasks.clip.data.pairs import noisy_captions, subset, vague_caption
from steering_tasks.clip.models import ClipInputs, build_clip
from steering_tasks.glyphs import (
    FAMILIES,
    FONTS,
    HELD_OUT_FAMILY,
    Glyphs,
    load_glyphs,
    split,
)


@pytest.fixture(scope="module")
def glyphs() -> Glyphs:
    return load_glyphs()


@pytest.fixture(scope="module")
def model_inputs() -> ClipInputs:
    return build_clip(ModelSpec(str(MODELS / "glyph-target.json"))).inputs


@pytest.fixture
def few_drawings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and drawings of a few characters only; returns the folder."""
    real = module._draw_font
    monkeypatch.setattr(module, "_draw_font", lambda number: islice(real(number), 5))
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path))
    return tmp_path


def test_the_data_set_is_what_the_design_says(glyphs: Glyphs) -> None:
    n, m = len(glyphs.images), len(glyphs.names)
    assert glyphs.images.shape == (n, 32, 32)
    assert glyphs.images.dtype == np.uint8
    assert 50_000 < n < 60_000
    assert 7_000 < m < 8_000
    assert glyphs.codepoints.shape == (m,)
    assert (np.diff(glyphs.codepoints) > 0).all()
    assert glyphs.names == [unicodedata.name(chr(code)) for code in glyphs.codepoints]
    assert len(set(glyphs.names)) == m
    np.testing.assert_array_equal(np.unique(glyphs.character), np.arange(m))
    np.testing.assert_array_equal(np.unique(glyphs.font), np.arange(len(FONTS)))
    pairs = glyphs.character * len(FONTS) + glyphs.font
    assert len(np.unique(pairs)) == n  # no character twice in a font
    assert (glyphs.images.reshape(n, -1).min(1) <= 192).all()  # none is blank
    assert (glyphs.images.reshape(n, -1).max(1) == 255).all()  # on white paper


def test_drawings_are_of_their_character(glyphs: Glyphs) -> None:
    def drawn(character: str, font: int) -> np.ndarray:
        code = np.searchsorted(glyphs.codepoints, ord(character))
        [row] = np.flatnonzero((glyphs.character == code) & (glyphs.font == font))
        return glyphs.images[row].astype(int)

    def ink(image: np.ndarray) -> tuple[float, ...]:
        rows, columns = np.nonzero(image < 128)
        return rows.min(), rows.max(), columns.min(), columns.max()

    assert (
        ink(drawn("'", 0))[1] < ink(drawn(",", 0))[0]
    )  # the baseline tells a comma from an apostrophe
    assert ink(drawn("_", 0))[0] > ink(drawn("H", 0))[1] - 1
    assert (drawn("H", 1) < 128).sum() > 1.2 * (drawn("H", 0) < 128).sum()  # bold
    assert abs(sum(ink(drawn("H", 0))[2:]) - 31) <= 2  # centred
    assert (
        np.abs(drawn("É", 0)[10:] - drawn("E", 0)[10:]).mean() < 2
    )  # the accent stands above the same letter
    top, bottom, left, right = ink(drawn("\N{EM DASH}", 0))
    assert (bottom - top, right - left > 15) == (1, True)


def test_splits_are_disjoint_and_held_out(glyphs: Glyphs) -> None:
    parts = split(glyphs)
    rows = np.concatenate([parts.train, parts.images, parts.characters, parts.fonts])
    assert len(np.unique(rows)) == len(rows)
    family = np.array([name for name, _ in FONTS])[glyphs.font]
    seen = set(glyphs.character[parts.train].tolist())
    images, characters = (
        glyphs.character[parts.images],
        set(glyphs.character[parts.characters].tolist()),
    )
    assert set(images.tolist()) <= seen
    assert len(np.unique(images)) == len(images)  # one image of each
    assert not characters & seen
    assert set(glyphs.character[parts.fonts].tolist()) <= seen
    assert set(family[parts.fonts]) == {HELD_OUT_FAMILY}
    for part in (parts.train, parts.images, parts.characters):
        assert set(family[part]) == set(FAMILIES) - {HELD_OUT_FAMILY}
    # All images of a held-out character but those in the held-out family are in its split.
    expected = np.isin(glyphs.character, list(characters)) & (family != HELD_OUT_FAMILY)
    np.testing.assert_array_equal(parts.characters, np.flatnonzero(expected))
    assert 0.08 < len(characters) / len(glyphs.names) < 0.12
    assert len(parts.train) > 0.55 * len(glyphs.images)


def test_splits_do_not_depend_on_what_else_is_drawn(glyphs: Glyphs) -> None:
    # With another set of characters (other fonts), those in both stay in their part.
    kept = glyphs.codepoints[glyphs.character] % 3 != 0
    names = [name for name, code in zip(glyphs.names, glyphs.codepoints, strict=True) if code % 3]
    codes = glyphs.codepoints[glyphs.codepoints % 3 != 0]
    fewer = Glyphs(
        glyphs.images[kept],
        np.searchsorted(codes, glyphs.codepoints[glyphs.character[kept]]),
        glyphs.font[kept],
        names,
        codes,
    )
    numbers = np.flatnonzero(kept)
    for part, all_of_it in zip(
        vars(split(fewer)).values(), vars(split(glyphs)).values(), strict=True
    ):
        np.testing.assert_array_equal(numbers[part], all_of_it[kept[all_of_it]])


def test_drawing_is_deterministic_and_takes_seconds(
    glyphs: Glyphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERING_CACHE", str(tmp_path))
    start = time.process_time()
    again = load_glyphs()
    assert time.process_time() - start < 20
    assert again.fingerprint() == glyphs.fingerprint()
    first, second = [
        next(Path(os.environ["STEERING_CACHE"]).rglob("*.npz")).read_bytes() for _ in range(2)
    ]
    assert first == second
    monkeypatch.setattr(module, "_draw_all", lambda: pytest.fail("drawn again"))
    assert load_glyphs().names == again.names


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "gone", "record gone", "record cut", "record other"]
)
def test_a_damaged_cache_is_drawn_again(few_drawings: Path, damage: str) -> None:
    whole = load_glyphs().fingerprint()
    [arrays], [record] = few_drawings.rglob("glyphs.npz"), few_drawings.rglob("glyphs.json")
    data = arrays.read_bytes()
    if damage == "cut":
        arrays.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        arrays.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif damage == "record other":
        record.write_text(json.dumps({"names": []}))
    elif damage == "record cut":
        record.write_text(record.read_text()[:100])
    else:
        (record if damage == "record gone" else arrays).unlink()
    assert load_glyphs().fingerprint() == whole
    assert arrays.read_bytes() == data  # so two processes that draw at once write the same bytes
    assert {path.name for path in arrays.parent.iterdir()} == {"glyphs.npz", "glyphs.json"}


def test_a_cache_that_cannot_be_written(few_drawings: Path) -> None:
    (few_drawings / "glyphs").write_text("in the way")
    with pytest.raises(
        SteeringError, match=r"glyphs: cannot be kept in .*; set STEERING_CACHE to a folder"
    ):
        load_glyphs()


def _draw_together(barrier: Barrier, answers: SimpleQueue) -> None:
    for _ in range(5):
        if barrier.wait() == 0:
            shutil.rmtree(cache_dir("glyphs"), ignore_errors=True)
        barrier.wait()
        answers.put(load_glyphs().fingerprint())


def test_processes_draw_at_once(few_drawings: Path) -> None:
    context = get_context("fork")
    barrier, answers = context.Barrier(3), context.SimpleQueue()
    crowd = [context.Process(target=_draw_together, args=(barrier, answers)) for _ in range(3)]
    for process in crowd:
        process.start()
    found = {answers.get() for _ in range(15)}
    for process in crowd:
        process.join(20)
    assert [process.exitcode for process in crowd] == [0, 0, 0]
    assert found == {load_glyphs().fingerprint()}
    assert len(list(few_drawings.rglob("*.*"))) == 3  # the folder of these versions, and two files


def test_shift_moves_on_white_paper() -> None:
    images = torch.randint(0, 255, (4000, 6, 5), dtype=torch.uint8)
    random = np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)
    moved = shift(images, random)
    steps = np.uint64(2 * SHIFT + 1)
    seen = set()
    for i in range(0, 4000, 7):
        down, right = SHIFT - int(random[i] % steps), SHIFT - int(random[i] // steps % steps)
        seen.add((down, right))
        expected = torch.full((6, 5), 255, dtype=torch.uint8)
        for y in range(6):
            for x in range(5):
                if 0 <= y - down < 6 and 0 <= x - right < 5:
                    expected[y, x] = images[i, y - down, x - right]
        assert torch.equal(moved[i], expected)
    assert seen == {(down, right) for down in range(-2, 3) for right in range(-2, 3)}


def test_prepare_is_the_models_own_transform(glyphs: Glyphs, model_inputs: ClipInputs) -> None:
    rows = np.arange(0, len(glyphs.images), 4001)
    own = torch.stack(
        [model_inputs.plain(Image.fromarray(glyphs.images[row]).convert("RGB")) for row in rows]
    )
    torch.testing.assert_close(
        prepare(torch.from_numpy(glyphs.images[rows]), model_inputs), own, rtol=0, atol=1e-6
    )


def test_prepare_scales_to_other_sizes(glyphs: Glyphs, tmp_path: Path) -> None:
    inputs = build_clip(ModelSpec(str(model_json(tmp_path / "m.json", image_size=64)))).inputs
    rows = np.arange(0, len(glyphs.images), 4001)
    own = torch.stack(
        [inputs.plain(Image.fromarray(glyphs.images[row]).convert("RGB")) for row in rows]
    )
    found = prepare(torch.from_numpy(glyphs.images[rows]), inputs)
    assert found.shape == own.shape == (len(rows), 3, 64, 64)
    assert (found - own).abs().mean() < 0.05  # bilinear here, bicubic there


def test_batches(glyphs: Glyphs, model_inputs: ClipInputs, tmp_path: Path) -> None:
    other = build_clip(ModelSpec(str(model_json(tmp_path / "m.json", image_size=64)))).inputs
    data = GlyphData({"": model_inputs, "reference": other}, seed=3)
    train = split(glyphs).train
    assert len(data) == len(train)
    index = np.array([5, 0, 77, len(data) - 1])
    batch, again, later = (
        data.batch(index, 0),
        data.batch(index[::-1].copy(), 0),
        data.batch(index, 1),
    )
    assert batch["index"].tolist() == index.tolist()
    assert "skipped" not in batch
    assert batch["image"].shape == (4, 3, 32, 32)
    assert batch["reference_image"].shape == (4, 3, 64, 64)
    assert torch.equal(
        batch["text"],
        model_inputs.tokenizer([glyphs.names[c] for c in glyphs.character[train[index]]]),
    )
    assert batch["reference_text"].shape == (4, 8)
    assert torch.equal(
        batch["image"], again["image"].flip(0)
    )  # by example, not by place in the batch
    assert not torch.equal(batch["image"], later["image"])
    assert not torch.equal(
        batch["image"], GlyphData({"": model_inputs}, seed=4).batch(index, 0)["image"]
    )
    plain = GlyphData({"": model_inputs}, seed=None)
    assert torch.equal(
        plain.batch(index, 7)["image"],
        prepare(torch.from_numpy(glyphs.images[train[index]]), model_inputs),
    )
    assert (
        data.fingerprint() == plain.fingerprint()
    )  # that of the content: the cache of one serves the other


def test_noise_and_fraction(glyphs: Glyphs, model_inputs: ClipInputs) -> None:
    train = split(glyphs).train
    kept = subset(len(train), (0.0, 0.3), 5)
    shown = noisy_captions(len(kept), 0.4, 5)
    data = GlyphData({"": model_inputs}, None, caption_noise=0.4, part=(0.0, 0.3), data_seed=5)
    index = np.arange(200)
    batch = data.batch(index, 0)
    right = glyphs.character[train[kept]]
    assert torch.equal(
        batch["text"], model_inputs.tokenizer([glyphs.names[right[shown[i]]] for i in index])
    )
    assert torch.equal(
        batch["image"], prepare(torch.from_numpy(glyphs.images[train[kept[index]]]), model_inputs)
    )
    assert 0.3 < np.mean(right[shown] != right) <= 0.4
    cheap = replace(model_inputs, tokenizer=lambda texts: torch.zeros(len(texts), 1))
    digests = [
        GlyphData(
            {"": cheap}, 0, caption_noise=noise, part=(0.0, fraction), data_seed=seed
        ).fingerprint()
        for noise, fraction, seed in (
            (0.4, 0.3, 5),
            (0.4, 0.3, 6),
            (0.2, 0.3, 5),
            (0.4, 0.2, 5),
            (0, 1, 0),
        )
    ]
    assert digests[0] == data.fingerprint()
    assert len(set(digests)) == 5
    assert (
        digests[4] == GlyphData({"": cheap}, 1, data_seed=9).fingerprint()
    )  # nothing for the seed to choose
    for wrong in ({"caption_noise": 1.5}, {"part": (0.0, 0.0)}):
        with pytest.raises(SteeringError, match=next(iter(wrong))):
            GlyphData({"": cheap}, 0, **wrong)


def test_vague_names(glyphs: Glyphs, model_inputs: ClipInputs) -> None:
    words = {"caption_noise": 0.4, "part": (0.0, 0.05), "data_seed": 5}
    data = GlyphData({"": model_inputs}, None, vague_captions=0.8, **words)
    train = split(glyphs).train
    kept = subset(len(train), (0.0, 0.05), 5)
    character = glyphs.character[train[kept]][noisy_captions(len(kept), 0.4, 5)]
    names = [glyphs.names[one] for one in character]
    shown = [vague_caption(name, number, 0.8, 5) for number, name in enumerate(names)]
    index = np.array([3, 200, 17, *range(30)])
    text = data.batch(index, 0)["text"]
    assert torch.equal(text, model_inputs.tokenizer([shown[i] for i in index]))
    plain = GlyphData({"": model_inputs}, None, **words)
    assert data.fingerprint() != plain.fingerprint()
    np.testing.assert_array_equal(data.labels().wrong, plain.labels().wrong)
    number = next(
        i for i, name in enumerate(names) if name != shown[i] and not data.labels().wrong[i]
    )
    assert data.exhibit(number).text == f"{shown[number]} (own: {names[number]})"
    with pytest.raises(SteeringError, match="vague_captions"):
        GlyphData({"": model_inputs}, None, vague_captions=-0.1)


def test_retrieval_sets(glyphs: Glyphs, model_inputs: ClipInputs) -> None:
    parts = split(glyphs)
    sets = glyph_retrieval()
    assert [*sets] == ["heldout_images", "heldout_characters", "heldout_fonts"]
    for (name, found), rows in zip(
        sets.items(), (parts.images, parts.characters, parts.fonts), strict=True
    ):
        assert found.captions == glyphs.names
        batches = list(found.images(model_inputs))
        captions = torch.cat([captions for _, captions, _ in batches])
        assert len(captions) == min(EVALUATED, len(rows))
        assert set(captions.tolist()) <= set(glyphs.character[rows].tolist()), name
        first = batches[0][0][0]
        shown = np.array(Image.open(io.BytesIO(found.picture(int(batches[0][2][0])))))
        assert torch.equal(prepare(torch.from_numpy(shown[None]), model_inputs)[0], first)
        candidates = glyphs.images[rows[glyphs.character[rows] == captions[0].item()]]
        assert any(
            torch.equal(prepare(torch.from_numpy(image[None]), model_inputs)[0], first)
            for image in candidates
        )
        again = torch.cat(
            [captions for _, captions, _ in glyph_retrieval()[name].images(model_inputs)]
        )
        assert torch.equal(captions, again)
