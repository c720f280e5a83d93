"""Batches of pairs: determinism, views, replacement of the unreadable, caption noise, subsets."""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from steering.errors import SteeringError
from steering_tasks.clip.data.pairs import (
    REPLACEMENTS,
    PairData,
    View,
    noisy_captions,
    subset,
    vague_caption,
)
from steering_tasks.clip.data.shards import ShardSource
from steering_tasks.clip.data.source import ImageTextSource, Unreadable


class Numbers(ImageTextSource):
    """Pair i: one pixel of red i, captioned by i. Those in `broken` cannot be decoded."""

    def __init__(self, n: int, broken: frozenset[int] = frozenset()) -> None:
        self.n, self.broken = n, broken

    def __len__(self) -> int:
        return self.n

    def pair(self, i: int) -> tuple[Image.Image, str]:
        if i in self.broken:
            raise Unreadable(f"memory: {i}", "is broken")
        return Image.new("RGB", (1, 1), (i, 0, 0)), str(i)

    def caption(self, i: int) -> str:
        return str(i)

    def captions(self) -> list[str]:
        return [str(i) for i in range(self.n)]

    def fingerprint(self) -> str:
        return hashlib.sha256(str(self.n).encode()).hexdigest()

    @property
    def skipped(self) -> dict[str, int]:
        return {}

    def describe(self) -> str:
        return f"{self.n} numbers"


def red(image: Image.Image) -> Tensor:
    return torch.tensor([float(np.asarray(image)[0, 0, 0])])


def jitter(image: Image.Image) -> Tensor:
    """Red, a draw of torch, a draw of Python."""
    return torch.cat([red(image), torch.rand(1), torch.tensor([random.random()])])


def number_tokens(captions: list[str]) -> Tensor:
    return torch.tensor([[int(caption), 7] for caption in captions])


PLAIN = View(red, number_tokens)
JITTER = View(jitter, number_tokens)


def all_of(data: PairData, epoch: int = 0) -> dict[str, Tensor]:
    return dict(data.batch(np.arange(len(data)), epoch))


def shown(data: PairData) -> list[tuple[int, int]]:
    """(image, caption) of every pair."""
    batch = all_of(data)
    return list(zip(batch["image"][:, 0].int().tolist(), batch["text"][:, 0].tolist(), strict=True))


def test_a_batch_holds_what_was_asked_for() -> None:
    batch = PairData(Numbers(50), {"": PLAIN}, seed=0, augment=True).batch(
        np.array([7, 3, 3, 49]), epoch=2
    )
    assert set(batch) == {"image", "text", "index", "skipped"}
    assert batch["index"].dtype == batch["skipped"].dtype == torch.int64
    assert batch["skipped"].shape == ()
    assert batch["skipped"] == 0
    torch.testing.assert_close(batch["index"], torch.tensor([7, 3, 3, 49]))
    torch.testing.assert_close(batch["image"], torch.tensor([[7.0], [3.0], [3.0], [49.0]]))
    torch.testing.assert_close(batch["text"], torch.tensor([[7, 7], [3, 7], [3, 7], [49, 7]]))


def test_views_have_their_prefixes_and_draw_alike() -> None:
    double = View(lambda image: 2 * red(image), lambda captions: -number_tokens(captions))
    batch = PairData(Numbers(9), {"": PLAIN, "reference": double}, 0, True).batch(
        np.array([4, 8]), 0
    )
    assert set(batch) == {"image", "text", "reference_image", "reference_text", "index", "skipped"}
    torch.testing.assert_close(batch["reference_image"], 2 * batch["image"])
    torch.testing.assert_close(batch["reference_text"], -batch["text"])
    batch = PairData(Numbers(9), {"": JITTER, "reference": JITTER}, 0, True).batch(
        np.array([4, 8]), 0
    )
    torch.testing.assert_close(batch["reference_image"], batch["image"], rtol=0, atol=0)


def test_augmentation_depends_on_seed_epoch_and_number_alone() -> None:
    def images(seed: int, epoch: int, index: list[int]) -> Tensor:
        return PairData(Numbers(50), {"": JITTER}, seed, augment=True).batch(
            np.array(index), epoch
        )["image"]

    torch.manual_seed(0)
    base = images(0, 3, [5, 9])
    torch.manual_seed(1)
    assert torch.equal(images(0, 3, [9, 1, 5])[[2, 0]], base)
    for other in (images(1, 3, [5, 9]), images(0, 4, [5, 9]), images(0, 3, [6, 8])):
        assert (other[:, 1:] != base[:, 1:]).all()
    assert (base[0, 1:] != base[1, 1:]).all()


def test_without_augmentation_the_epoch_does_not_matter() -> None:
    data = PairData(Numbers(50), {"": JITTER}, 0, augment=False)
    assert torch.equal(all_of(data, 0)["image"], all_of(data, 5)["image"])


def test_global_generators_are_left_alone() -> None:
    data = PairData(Numbers(5), {"": JITTER}, 0, True)
    before = torch.random.get_rng_state(), random.getstate()
    all_of(data)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_the_unreadable_are_replaced_counted_and_reported_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = frozenset({1, 4, 5, 6})
    data = PairData(Numbers(10, broken), {"": JITTER}, 0, True)
    with caplog.at_level(logging.WARNING, "steering"):
        batch = all_of(data)
        again = PairData(Numbers(10, broken), {"": JITTER}, 0, True).batch(np.array([6, 1]), 0)
        assert len(caplog.records) == 2  # one for each data set
        all_of(data, 1)
        assert len(caplog.records) == 2
    assert "memory: 1: is broken" in caplog.text
    delivered = batch["index"].tolist()
    assert batch["skipped"] == 4
    assert again["skipped"] == 2
    assert not broken & set(delivered)
    assert [d for i, d in enumerate(delivered) if i not in broken] == [0, 2, 3, 7, 8, 9]
    # The image, the words and the augmentation are those of the number delivered, and the same in
    # any batch.
    assert batch["image"][:, 0].int().tolist() == batch["text"][:, 0].tolist() == delivered
    assert torch.equal(again["image"], batch["image"][[6, 1]])
    assert torch.equal(batch["image"][4], batch["image"][delivered[4]])


def test_replacements_spread_over_the_data() -> None:
    data = PairData(Numbers(200, frozenset(range(50))), {"": PLAIN}, 0, True)
    assert len(set(data.batch(np.arange(50), 0)["index"].tolist())) > 35


def test_nothing_readable_is_an_error() -> None:
    data = PairData(Numbers(3, frozenset({0, 1, 2})), {"": PLAIN}, 0, True)
    with pytest.raises(
        SteeringError, match=rf"example 2 and {REPLACEMENTS} others .* unreadable; .* is broken"
    ):
        data.batch(np.array([2]), 0)


def test_numbers_outside_are_refused() -> None:
    data = PairData(Numbers(10), {"": PLAIN}, 0, True, part=(0.0, 0.5))
    for i in (-1, 5):
        with pytest.raises(IndexError, match="of 5"):
            data.batch(np.array([i]), 0)


def test_views_are_needed() -> None:
    with pytest.raises(ValueError, match="views"):
        PairData(Numbers(3), {}, 0, True)


@pytest.mark.parametrize(
    ("n", "p"), [(1000, 0.0), (1000, 0.3), (1000, 1.0), (7, 0.5), (2, 1.0), (3, 0.34), (1, 1.0)]
)
def test_noise_hits_the_fraction_and_none_keeps_its_own(n: int, p: float) -> None:
    captions = noisy_captions(n, p, seed=3)
    assert captions.dtype == np.int64
    np.testing.assert_array_equal(np.sort(captions), np.arange(n))  # no caption is lost
    expected = round(p * n)
    assert (captions != np.arange(n)).sum() == (expected if expected > 1 else 0)


def test_noise_is_reproducible_and_nested() -> None:
    index = np.arange(500)
    np.testing.assert_array_equal(noisy_captions(500, 0.4, 1), noisy_captions(500, 0.4, 1))
    few, many, other = (
        noisy_captions(500, p, seed) != index for p, seed in [(0.1, 1), (0.4, 1), (0.4, 2)]
    )
    assert (few <= many).all()
    assert 0.1 * 500 < (many & other).sum() < 0.22 * 500  # independent: 0.16 expected
    # A pinned draw: data sets must stay what they are from version to version.
    assert noisy_captions(8, 0.5, 0).tolist() == [2, 1, 4, 3, 5, 0, 6, 7]
    assert subset(8, (0.0, 0.5), 0).tolist() == [1, 2, 5, 7]


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_noise_out_of_range(p: float) -> None:
    with pytest.raises(SteeringError, match=r"caption_noise: expected a number in \[0, 1\]"):
        noisy_captions(10, p, 0)


def test_subset_is_sorted_seeded_and_nested() -> None:
    small, large = subset(1000, (0.0, 0.1), 5), subset(1000, (0.0, 0.35), 5)
    assert small.dtype == np.int64
    assert (len(small), len(large)) == (100, 350)
    assert (np.diff(large) > 0).all()
    assert set(small.tolist()) < set(large.tolist())
    assert set(subset(1000, (0.0, 0.1), 6).tolist()) != set(small.tolist())
    np.testing.assert_array_equal(subset(1000, (0.0, 1.0), 5), np.arange(1000))
    assert abs(large.mean() - 499.5) < 4 * 1000 / np.sqrt(12 * 350)
    rest = subset(1000, (0.35, 1.0), 5)  # what a target may have when a reference has `large`
    np.testing.assert_array_equal(np.union1d(large, rest), np.arange(1000))
    assert len(rest) == 650


@pytest.mark.parametrize(
    "part", [(0, 0), (0, -1), (0, 1.01), (0, float("nan")), (0, 0.01), (0.5, 0.5), (-0.1, 1)]
)
def test_part_out_of_range(part: tuple[float, float]) -> None:
    with pytest.raises(SteeringError, match="part"):
        subset(10, part, 0)


def test_noise_and_subset_in_the_batches() -> None:
    kept, captions = subset(60, (0.0, 0.5), 4), noisy_captions(30, 0.4, 4)
    data = PairData(Numbers(60), {"": PLAIN}, 4, False, caption_noise=0.4, part=(0.0, 0.5))
    assert len(data) == 30
    assert shown(data) == [(kept[i], kept[captions[i]]) for i in range(30)]
    assert sum(image != caption for image, caption in shown(data)) == 12


class Words(Numbers):
    """Pair i is captioned by four words, such as "a7 b7 c7 d7"."""

    def caption(self, i: int) -> str:
        return " ".join(f"{word}{i}" for word in "abcd")

    def pair(self, i: int) -> tuple[Image.Image, str]:
        return super().pair(i)[0], self.caption(i)


def test_a_vague_caption_has_lost_words() -> None:
    """Half of them, of the wanted share of the pairs; four words lose all one time in sixteen."""
    caption = "one two three four"
    found = [vague_caption(caption, number, 0.8, 3).split() for number in range(4000)]
    for words in found:
        assert words
        rest = iter(caption.split())
        assert all(word in rest for word in words)  # in their order
    kept = np.array([len(words) for words in found])
    # Of 4 words 2 stay in the mean, and one where none would: 0.2·4 + 0.8·(2 + 1/16).
    assert kept.mean() == pytest.approx(0.2 * 4 + 0.8 * (2 + 1 / 16), abs=4 * 1.3 / 4000**0.5)
    whole = 0.2 + 0.8 / 16
    assert (kept == 4).mean() == pytest.approx(whole, abs=4 * (whole * (1 - whole) / 4000) ** 0.5)
    for number in range(200):
        less, more = (vague_caption(caption, number, p, 3) for p in (0.3, 0.8))
        assert less in (caption, more)
    assert vague_caption(caption, 5, 0.0, 3) == caption
    assert vague_caption("two  spaces", 5, 0.0, 3) == "two  spaces"
    assert {vague_caption("word", number, 1.0, 3) for number in range(50)} == {"word"}
    assert {vague_caption("", number, 1.0, 3) for number in range(50)} == {""}


def test_vague_captions_in_the_batches() -> None:
    seen: list[str] = []

    def tokens(captions: list[str]) -> Tensor:
        seen.extend(captions)
        return torch.zeros(len(captions), 1)

    view = View(red, tokens)
    data = PairData(
        Words(60), {"": view}, 4, False, 0.4, (0.0, 0.5), data_seed=7, vague_captions=0.5
    )
    data.batch(np.arange(30), 0)
    kept, captions = subset(60, (0.0, 0.5), 7), noisy_captions(30, 0.4, 7)
    own = [Words(60).caption(kept[captions[i]]) for i in range(30)]
    assert seen == [vague_caption(own[i], i, 0.5, 7) for i in range(30)]
    assert seen != own
    # What has lost words is not wrong.
    np.testing.assert_array_equal(data.labels().wrong, captions != np.arange(30))
    plain = PairData(Words(60), {"": view}, 4, False, 0.4, (0.0, 0.5), data_seed=7)
    assert plain.fingerprint() != data.fingerprint()
    with pytest.raises(SteeringError, match=r"vague_captions: expected a number in \[0, 1\]"):
        PairData(Words(60), {"": view}, 4, False, vague_captions=1.5)


def test_the_data_seed_holds_the_data_still() -> None:
    def data(seed: int, data_seed: int | None) -> PairData:
        return PairData(
            Numbers(60, frozenset({5})), {"": PLAIN}, seed, True, 0.4, (0.0, 0.5), data_seed
        )

    assert shown(data(0, 9)) == shown(data(1, 9)) == shown(data(9, None))
    assert shown(data(0, None)) != shown(data(1, None))


def test_fingerprint_is_of_what_is_shown() -> None:
    def fingerprint(
        n: int = 60, seed: int = 0, augment: bool = True, noise: float = 0.0, fraction: float = 1.0
    ) -> str:
        return PairData(
            Numbers(n), {"": PLAIN}, seed, augment, noise, (0.0, fraction)
        ).fingerprint()

    clean = fingerprint()
    assert len(clean) == 64
    assert fingerprint(seed=1) == fingerprint(augment=False) == clean
    different = [
        fingerprint(n=61),
        *(fingerprint(seed=seed, noise=noise) for seed in (0, 1) for noise in (0.2, 0.5)),
        *(fingerprint(seed=seed, fraction=fraction) for seed in (0, 1) for fraction in (0.2, 0.5)),
        fingerprint(noise=0.5, fraction=0.5),
    ]
    assert len({clean, *different}) == 1 + len(different)
    assert fingerprint(noise=0.5) == fingerprint(noise=0.5)


class Batches(Dataset):
    """What a loader worker does: item k is the batch of examples 2k and 2k + 1."""

    def __init__(self, data: PairData) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // 2

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return dict(self.data.batch(np.array([2 * k, 2 * k + 1]), 0))


def test_in_a_loader_worker(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(6):
            stream = io.BytesIO()
            Image.new("RGB", (4, 4), (n, 0, 0)).save(stream, "PNG")
            for name, content in ((f"{n}.png", stream.getvalue()), (f"{n}.txt", str(n).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = PairData(
        ShardSource(str(tmp_path / "a.tar"), tmp_path / "cache"),
        {"": JITTER},
        0,
        True,
        caption_noise=0.5,
    )
    here = [
        Batches(data)[k] for k in range(3)
    ]  # with the shard open, which a forked worker inherits
    copy = pickle.loads(pickle.dumps(Batches(data)))  # as a spawned worker gets it
    for sent in (Batches(data), copy):
        there = list(
            DataLoader(sent, batch_size=None, num_workers=1, multiprocessing_context="fork")
        )
        assert len(there) == 3
        for a, b in zip(here, there, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)
