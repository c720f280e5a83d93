"""Recall and zero-shot accuracy against plain loops; ties, duplicates, what is broken or collapsed;
the figures."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import drawing, members, png, write_shard
from matplotlib import pyplot
from torch import Tensor
from toys import Lookup

from steering.errors import SteeringError
from steering.items import Pairs
from steering.methods.registry import Step
from steering.training.board.look import look_at
from steering_tasks.clip import figures, ranks
from steering_tasks.clip.data.held_out import ClassFolder, source_retrieval
from steering_tasks.clip.data.shards import ShardSource
from steering_tasks.clip.evaluation import (
    RetrievalSet,
    embed_images,
    embed_texts,
    gallery,
    image_ranks,
    retrieve,
    text_ranks,
    zero_shot_accuracy,
)
from steering_tasks.clip.figures import retrieved_captions
from steering_tasks.clip.models import ClipInputs, unit_norm

CPU = torch.device("cpu")


def numbered(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, 1, 1)


def inputs(vocabulary: Sequence[str] = ()) -> ClipInputs:
    """Captions are their number in the vocabulary, or the number they spell."""
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    place = {word: number for number, word in enumerate(vocabulary)}

    def tokenizer(texts: list[str]) -> Tensor:
        return torch.tensor([[place[text] if place else int(text)] for text in texts])

    def see(image: object) -> Tensor:
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    return ClipInputs(see, see, tokenizer, (1, 1), mean, std)


def in_batches(labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    n = len(labels)
    parts = (x.split(size) for x in (numbered(n), labels, torch.arange(n)))
    yield from zip(*parts, strict=True)


def naive_recall(scores: np.ndarray, right: list[set[int]], k: int) -> float:
    """Share of rows in which a right column is among the best k, with ties broken against it."""
    hits = 0
    for row, good in zip(scores.tolist(), right, strict=True):
        best = max(row[j] for j in good)
        hits += sum(score >= best for j, score in enumerate(row) if j not in good) < k
    return hits / len(right)


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("seed", range(4))
def test_recall_is_the_naive_one(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 40 images of 17 captions, three of which have none; coarse features make many ties.
    monkeypatch.setattr(ranks, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-1, 2, (40, 3), generator=generator).double() + torch.tensor([0, 0, 3])
    texts = torch.randint(-1, 2, (17, 3), generator=generator).double() + torch.tensor([0, 0, 3])
    caption_of = torch.randint(0, 14, (40,), generator=generator)
    data = RetrievalSet([str(i) for i in range(17)], lambda _: in_batches(caption_of, 11))
    found = retrieve(Lookup(images, texts), inputs(), data, CPU, (1, 3, 5))
    # The same float32 scores: what is a tie there is one here.
    scores = (unit_norm(images) @ unit_norm(texts).T).numpy()
    assert len(np.unique(scores)) < scores.size
    shown = sorted(set(caption_of.tolist()))
    images_of = [{i for i, c in enumerate(caption_of.tolist()) if c == query} for query in shown]
    expected = {
        f"image_to_text_R@{k}": naive_recall(scores, [{c} for c in caption_of.tolist()], k)
        for k in (1, 3, 5)
    }
    expected |= {
        f"text_to_image_R@{k}": naive_recall(scores.T[shown], images_of, k) for k in (1, 3, 5)
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert list(found) == [*expected]


def test_a_hand_made_case() -> None:
    # Captions 0 and 1 along the axes, two images of caption 0: one right on it, one nearer to
    # caption 1.
    images, texts = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.1, 1.0]]), torch.eye(2)
    data = RetrievalSet(["0", "1"], lambda _: in_batches(torch.tensor([0, 0, 1]), 2))
    found = retrieve(Lookup(images, texts), inputs(), data, CPU, (1, 2))
    assert found["image_to_text_R@1"] == pytest.approx(2 / 3)
    assert found["text_to_image_R@1"] == 1  # the best of a caption's images counts
    assert found["image_to_text_R@2"] == found["text_to_image_R@2"] == 1


def test_the_loss_of_held_out_pairs_is_that_of_a_training_batch() -> None:
    """Also where images have several right captions: each is a pair, and the others are its
    rivals."""
    torch.manual_seed(0)
    images, texts = torch.randn(2, 7, 4).unbind()
    answers = torch.tensor([[0, 4], [1, -1], [2, 5], [3, -1], [6, -1]])

    def loss(data: RetrievalSet) -> float | None:
        model = Lookup(images, texts)
        text = embed_texts(model, inputs(), data.captions, CPU)
        return embed_images(model, inputs(), data, CPU, text).loss()

    names = [str(i) for i in range(7)]
    found = loss(RetrievalSet(names, lambda _: in_batches(torch.arange(5), 2), answers))
    pairs = [(i, c) for i, row in enumerate(answers.tolist()) for c in row if c >= 0]
    image, text = unit_norm(images).double(), unit_norm(texts).double()
    naive = [
        (image[i] @ text[d] + image[j] @ text[c]) / 2 - image[i] @ text[c]
        for i, c in pairs
        for j, d in pairs
        if (i, c) != (j, d)
    ]
    assert found == pytest.approx(float(sum(naive) / len(naive)), abs=1e-6)
    # The curve of training, of the same pairs as one batch.
    rows = torch.tensor(pairs).T
    batch = Pairs(image[rows[0]], text[rows[1]], torch.arange(len(pairs)))
    step = Step(torch.tensor(0.0), {}, None, batch, batch.index)
    assert found == pytest.approx(look_at(step).loss.mean().item(), abs=1e-6)
    assert loss(RetrievalSet(names, lambda _: in_batches(torch.zeros(1).long(), 1))) is None


def test_perfect_and_shuffled_models() -> None:
    features = torch.eye(30)
    data = RetrievalSet([str(i) for i in range(30)], lambda _: in_batches(torch.arange(30), 30))
    assert set(retrieve(Lookup(features, features), inputs(), data, CPU, (1, 10)).values()) == {1.0}
    wrong = retrieve(Lookup(features, features.roll(1, 0)), inputs(), data, CPU, (1, 10))
    assert wrong["image_to_text_R@1"] == wrong["text_to_image_R@1"] == 0


@pytest.mark.parametrize("width", [2, 64])
def test_a_collapsed_model_finds_nothing(width: int) -> None:
    same = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).expand(1500, -1)
    data = RetrievalSet(
        [str(i) for i in range(1500)], lambda _: in_batches(torch.arange(1500), 400)
    )
    found = retrieve(Lookup(same, same), inputs(), data, CPU, (1, 5, 10))
    assert set(found.values()) == {0.0}
    classes = [str(i) for i in range(12)]
    batches = in_batches(torch.arange(12), 5)
    found = zero_shot_accuracy(Lookup(same, same), inputs(), batches, classes, ["{}"], CPU)
    assert found == {"zero_shot_top1": 0.0, "zero_shot_top5": 0.0}


@pytest.mark.parametrize("where", ["image", "text"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite(where: str, value: float) -> None:
    features = {"image": torch.eye(6), "text": torch.eye(6)}
    features[where] = features[where].clone()
    features[where][4, 0] = value
    model = Lookup(features["image"], features["text"])
    names = [str(i) for i in range(6)]
    with pytest.raises(SteeringError, match="not finite"):
        retrieve(
            model,
            inputs(),
            RetrievalSet(names, lambda _: in_batches(torch.arange(6), 6)),
            CPU,
            (1,),
        )
    with pytest.raises(SteeringError, match="not finite"):
        zero_shot_accuracy(model, inputs(), in_batches(torch.arange(6), 6), names, ["{}"], CPU)


def test_an_empty_set_is_an_error() -> None:
    model = Lookup(torch.eye(2), torch.eye(2))
    data = RetrievalSet(["0", "1"], lambda _: iter(()))
    for call in (
        lambda: retrieve(model, inputs(), data, CPU, (1,)),
        lambda: retrieved_captions(model, inputs(), data, CPU),
        lambda: zero_shot_accuracy(model, inputs(), [], ["0", "1"], ["{}"], CPU),
    ):
        with pytest.raises(SteeringError, match="no readable image"):
            call()


def test_ranks_of_ties_count_against_the_model() -> None:
    image, text = torch.ones(2, 1), torch.ones(3, 1)
    assert image_ranks(image, text, torch.tensor([0, 2])).tolist() == [2, 2]
    assert text_ranks(image, text, torch.tensor([0, 2])).tolist() == [1, 1]
    assert text_ranks(image, text, torch.tensor([1, 1])).tolist() == [0]  # no wrong image at all


def test_gallery_numbers_captions_in_order() -> None:
    names, numbers = gallery(["b", "a", "b", "c", "a"])
    assert names == ["b", "a", "c"]
    assert numbers.tolist() == [0, 1, 0, 2, 1]


def test_zero_shot_against_a_hand_made_classifier() -> None:
    # Two templates; a class's direction is the normalised mean of its two normalised prompts.
    names = [f"class {i}" for i in range(7)]
    templates = [
        "a photo of a {}.",
        "{0} {{}} or {}",
    ]  # only "{}" is the place of the name; the rest is text
    vocabulary = [template.replace("{}", name) for name in names for template in templates]
    generator = torch.Generator().manual_seed(1)
    texts, images = (
        torch.randn(14, 5, generator=generator) * 3,
        torch.randn(60, 5, generator=generator),
    )
    labels = torch.randint(0, 7, (60,), generator=generator)
    found = zero_shot_accuracy(
        Lookup(images, texts), inputs(vocabulary), in_batches(labels, 25), names, templates, CPU
    )
    unit = texts / texts.norm(dim=1, keepdim=True)
    head = (unit[0::2] + unit[1::2]) / 2
    order = (images @ (head / head.norm(dim=1, keepdim=True)).T).argsort(1, descending=True)
    assert found == pytest.approx(
        {
            f"zero_shot_top{k}": (order[:, :k] == labels[:, None]).any(1).float().mean().item()
            for k in (1, 5)
        }
    )
    assert found["zero_shot_top1"] < found["zero_shot_top5"] < 1
    few = zero_shot_accuracy(
        Lookup(images, texts),
        inputs(vocabulary),
        in_batches(labels % 5, 25),
        names[:5],
        templates,
        CPU,
    )
    assert [*few] == ["zero_shot_top1"]


def test_unreadable_images_are_left_out_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = members(*range(300)) | {"00002.png": b"no image", "00299.png": b""}
    source = ShardSource(str(write_shard(tmp_path / "a.tar", files)), tmp_path / "cache")
    held_out = source_retrieval(source, "task.retrieval.mine")
    assert len(held_out.captions) == 32
    for _ in range(2):
        batches = list(held_out.images(inputs()))
        assert [len(images) for images, *_ in batches] == [255, 43]
    captions, numbers = (
        torch.cat(found) for found in zip(*(rest for _, *rest in batches), strict=True)
    )
    assert numbers.tolist() == [i for i in range(300) if i not in (2, 299)]
    assert captions.tolist() == [i % 32 for i in numbers.tolist()]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "task.retrieval.mine: 2 of 300 images cannot be read and are left out; the first one"
        in record.getMessage()
    )
    assert "00002" in record.getMessage()


def class_folder(root: Path) -> Path:
    for i in range(8):
        (root / f"class-{i % 4}").mkdir(parents=True, exist_ok=True)
        (root / f"class-{i % 4}" / f"{i}.png").write_bytes(png(drawing(i)))
    return root


def test_a_folder_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = class_folder(tmp_path)
    (folder / "class-1/broken.png").write_bytes(b"no image")
    (folder / "class-1/notes.txt").write_text("not an image")
    found = ClassFolder(folder, ["red", "green", "blue", "black"])
    assert found.classes == ["red", "green", "blue", "black"]
    [(images, labels, _)] = found.batches(inputs())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    torch.testing.assert_close(images[2], inputs().plain(drawing(1)))
    assert "1 of 9 images cannot be read" in caplog.text
    assert ClassFolder(folder, None).classes == [f"class-{i}" for i in range(4)]


def test_a_folder_of_classes_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(SteeringError, match=r"task.zero_shot.classes: 3 names for 4 folders"):
        ClassFolder(class_folder(tmp_path / "a"), ["x", "y", "z"])
    with pytest.raises(SteeringError, match=r"task.zero_shot.path: .*absent"):
        ClassFolder(tmp_path / "absent", None)
    (tmp_path / "a/empty").mkdir()
    with pytest.raises(SteeringError, match=r"task.zero_shot.path: .*empty"):
        ClassFolder(tmp_path / "a", None)


EXOTIC = [
    "$5 and $6 {} \\alpha $\\frac{1}$",
    "مرحبا بالعالم שלום",
    "emoji \U0001f600\U0001f469‍\U0001f680 漢字 Tiếng Việt",
    "line\nbreak\ttab \x00 \x1b control \ufdd0",
    "W" * 300,
    "\u202eoverride \u0301 \ud83d".encode("utf-8", "ignore").decode(),
    "%s %d &amp; <b>_^",
]


@pytest.mark.parametrize("count", [1, 7])
def test_a_figure_takes_any_caption_without_a_warning(tmp_path: Path, count: int) -> None:
    data = RetrievalSet(EXOTIC[:count], lambda _: in_batches(torch.arange(count), count))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = retrieved_captions(Lookup(torch.eye(7), torch.eye(7)), inputs(EXOTIC), data, CPU)
        figure.savefig(tmp_path / "figure.png")
    texts = [text for axes in figure.axes for text in axes.texts]
    shown = [text.get_text() for text in texts]
    assert shown.count("true") == count
    assert EXOTIC[0] in shown
    assert not any("\n" in text or "\u202e" in text for text in shown)
    assert max(map(len, shown)) <= 60
    green = [text for text in texts if text.get_color() == figures.RIGHT]
    assert len(green) == 2 * count  # its own caption is the best of each
    assert pyplot.get_fignums() == []
    top = figures.TOP if count > figures.TOP else count
    assert len(texts) == 2 * count * (1 + top)


def test_a_figure_shows_images_as_they_are(tmp_path: Path) -> None:
    source = ShardSource(
        str(write_shard(tmp_path / "a.tar", members(*range(40)))), tmp_path / "cache"
    )
    model = Lookup(torch.eye(40), torch.eye(40))
    figure = retrieved_captions(
        model, inputs(source.captions()[:32]), source_retrieval(source, "x"), CPU
    )
    pictures = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(pictures) == figures.SHOWN
    np.testing.assert_allclose(pictures[0], np.asarray(drawing(0)) / 255, atol=1e-6)
    np.testing.assert_allclose(pictures[-1], np.asarray(drawing(39)) / 255, atol=1e-6)
