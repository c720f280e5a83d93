"""The evaluated examples that a model does worst on, of every task, against loops of their own."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from steering.exhibits import Exhibit, Judged
from steering.task import ModelSpec
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.options import ClassificationData
from steering_tasks.clip import ClipOptions, ClipTask
from steering_tasks.clip.task import ClipData
from steering_tasks.language import LanguageOptions, LanguageTask
from steering_tasks.language.task import LanguageData

CPU = torch.device("cpu")


def pixels(exhibit: Exhibit) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(exhibit.picture)))


def built(task, spec: ModelSpec):
    torch.manual_seed(0)
    model = task.build(spec)
    model.module.eval()
    return model


def test_the_highest_losses_come_first_and_what_is_no_number_before_them() -> None:
    judged = Judged(np.array([1.0, 3.0, np.nan, 3.0, -2.0, np.inf]), lambda _: [])
    assert judged.worst(4) == [2, 5, 1, 3]
    assert judged.worst(0) == []
    assert judged.worst(9) == [2, 5, 1, 3, 0, 4]


def test_digits_with_their_own_class_and_the_one_they_are_taken_for() -> None:
    task = ClassificationTask(ClassificationOptions(data=ClassificationData(label_noise=0.3)))
    model = built(task, ModelSpec("mlp"))
    found = task.evaluate(model, CPU)
    naive = []
    for place, number in enumerate(task.test_part.numbers.tolist()):
        image, label = task.test.image(number), int(task.test.labels[number])
        with torch.no_grad():
            scores = model.module(model.inputs([image]))[0].double()
        probability = (scores - scores.max()).exp() / (scores - scores.max()).exp().sum()
        naive.append((-float(probability[label].log()), place, label, image, probability))
    assert found.judged.losses == pytest.approx([row[0] for row in naive], abs=1e-5)
    naive.sort(key=lambda row: -row[0])
    places = found.judged.worst(5)
    assert places == [row[1] for row in naive[:5]]
    assert found.judged.losses.mean() == pytest.approx(found.loss)
    for exhibit, (*_, label, image, probability) in zip(
        found.judged.exhibits(places), naive, strict=False
    ):
        sure, taken = probability.max(0)
        assert exhibit.text == str(label)
        assert exhibit.said == f"{int(taken)} ({100 * float(sure):.0f} %)"
        assert (pixels(exhibit) == image[..., 0]).all()


def test_an_image_that_cannot_be_read_moves_nobody(tmp_path) -> None:
    """The second of four files is damaged: the places of those behind it are one less than their
    numbers."""
    for part in ("train", "test"):
        for label in "ab":
            (tmp_path / part / label).mkdir(parents=True)
            for n in range(2):
                colour = (200 * (label == "b") + n, 0, 0)
                Image.new("RGB", (8, 8), colour).save(tmp_path / part / label / f"{n}.png")
    (tmp_path / "test/a/1.png").write_bytes(b"damaged")
    data = ClassificationData("folder", str(tmp_path / "train"), str(tmp_path / "test"))
    task = ClassificationTask(ClassificationOptions(data=data))
    found = task.evaluate(built(task, ModelSpec("mlp")), CPU)
    assert len(found.judged.losses) == 3
    shown = found.judged.exhibits([0, 1, 2])
    assert [one.text for one in shown] == ["a", "b", "b"]
    assert [int(pixels(one)[0, 0, 0]) for one in shown] == [0, 200, 201]


def test_images_with_the_caption_that_is_found_for_them(tmp_path) -> None:
    """The third of six files is damaged, and the fifth has two captions: a pair for each."""
    names = ["LATIN A", "GREEK B", "DIGIT C", "ARROW D", "SIGN E", "CIRCLE F", "OTHER E"]
    files = [0, 1, 2, 3, 4, 5, 4]
    for n in range(6):
        Image.new("RGB", (32, 32), (40 * n, 255 - 40 * n, 128)).save(tmp_path / f"{n}.png")
    (tmp_path / "2.png").write_bytes(b"damaged")
    table = tmp_path / "table.csv"
    rows = [f"{n}.png,{name}\n" for n, name in zip(files, names, strict=True)]
    table.write_text("image,caption\n" + "".join(rows))
    data = ClipData(source="table", path=str(table))
    task = ClipTask(ClipOptions(data=data, retrieval={"mine": str(table)}, recall_at=[1]))
    model = built(task, ModelSpec("configs/clip/models/glyph-target.json"))
    found = task.evaluate(model, CPU)

    with torch.no_grad():
        text = {
            name: model.module.encode_text(model.inputs.tokenizer([name]), normalize=True)[0]
            for name in names
        }
        image = {
            n: model.module.encode_image(
                model.inputs.plain(Image.open(tmp_path / f"{n}.png"))[None], normalize=True
            )[0]
            for n in (0, 1, 3, 4, 5)
        }
    pairs = [(n, name) for n, name in zip(files, names, strict=True) if n != 2]
    losses: dict[int, list[float]] = {n: [] for n in image}
    for one in pairs:
        n, name = one
        own = float(image[n] @ text[name])
        there = [float(image[n] @ text[other]) - own for _, other in pairs if (_, other) != one]
        back = [float(image[other] @ text[name]) - own for other, _ in pairs if (other, _) != one]
        losses[n].append(float(np.mean(there + back)))
    naive = {n: float(np.mean(found)) for n, found in losses.items()}
    assert found.judged.losses == pytest.approx([*naive.values()], abs=1e-6)
    order = sorted(naive, key=lambda n: -naive[n])
    places = found.judged.worst(3)
    assert [[*naive][place] for place in places] == order[:3]
    assert found.loss == pytest.approx(
        np.mean([x for row in losses.values() for x in row]), abs=1e-6
    )
    for n, exhibit in zip(order, found.judged.exhibits(places), strict=False):
        assert exhibit.text == names[n]  # of two captions the first
        assert exhibit.said == max(names, key=lambda name: float(image[n] @ text[name]))
        assert pixels(exhibit)[0, 0].tolist() == [40 * n, 255 - 40 * n, 128]


def test_blocks_by_their_loss_per_token() -> None:
    options = LanguageOptions(data=LanguageData(modules=["json", "wsgiref"]), length=64)
    task = LanguageTask(options)
    model = built(task, ModelSpec("configs/language/models/tiny-gpt2.json"))
    task._validation = task._validation.take(np.arange(-25, 0))  # the last one is short
    found, naive = task.evaluate(model, CPU), []
    for n in range(25):
        count = int(task._validation.counts[n])
        tokens = torch.from_numpy(task._validation.tokens[n].astype(np.int64))[: count + 1]
        with torch.no_grad():
            scores = model.module(tokens[None, :-1])[0].double()
        each = scores.logsumexp(-1) - scores.gather(-1, tokens[1:, None])[:, 0]
        text = bytes(t for t in tokens.tolist() if t < 256).decode(errors="replace")
        naive.append((float(each.mean()), f"wsgiref: {text}"))
    assert int(task._validation.counts[-1]) < 64
    assert found.judged.losses == pytest.approx([loss for loss, _ in naive], abs=1e-5)
    naive.sort(key=lambda row: -row[0])
    shown = found.judged.exhibits(found.judged.worst(4))
    assert shown == [Exhibit(text) for _, text in naive[:4]]
