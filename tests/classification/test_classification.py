"""The classification task: sources, labels, groups, models, evaluation, and runs by every method
that fits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from steering.cli import main
from steering.config import ConfigError, load_config
from steering.errors import SteeringError
from steering.reference import LiveReference
from steering.task import ModelSpec, find_task
from steering_tasks.classification import ClassificationOptions, ClassificationTask
from steering_tasks.classification.data import (
    ImageData,
    ImageInputs,
    Labelled,
    kept_of_classes,
    noisy_labels,
    part_of,
)
from steering_tasks.classification.evaluation import (
    calibration_error,
    group_accuracies,
    reliability,
)
from steering_tasks.classification.options import ClassificationData
from steering_tasks.classification.shares import in_shares
from steering_tasks.classification.sources import (
    ArraySource,
    arrays,
    digits,
    folders,
    read_numbers,
    torchvision_sets,
)

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def task(**data: object) -> ClassificationTask:
    return ClassificationTask(ClassificationOptions(data=ClassificationData(**data)))


def pictures(n: int, seed: int = 0, side: int = 6, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels)).astype(np.uint8)


@pytest.fixture
def npz(tmp_path):
    """Two files of arrays, 40 training and 12 test images of three classes."""
    for name, n in (("train", 40), ("test", 12)):
        np.savez(tmp_path / f"{name}.npz", image=pictures(n, n), label=np.arange(n) % 3)
    return {
        "source": "arrays",
        "path": str(tmp_path / "train.npz"),
        "test_path": str(tmp_path / "test.npz"),
    }


@pytest.fixture
def folder(tmp_path):
    """Folders of images of two classes and two sizes; one training file is damaged."""
    for part, n in (("train", 6), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            where = tmp_path / part / name
            where.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(pictures(1, 10 * label + i, side=8 + 2 * (i % 2))[0]).save(
                    where / f"{i}.png"
                )
    (tmp_path / "train/cat/3.png").write_bytes(b"no picture")
    return {
        "source": "folder",
        "path": str(tmp_path / "train"),
        "test_path": str(tmp_path / "test"),
    }


# ---- sources
# ----------------------------------------------------------------------------------------------------------


def test_it_is_found_by_name():
    assert find_task("classification") is ClassificationTask


def test_digits_are_split_for_good():
    train, test = digits()
    assert len(train) + len(test) == 1797
    assert 500 < len(test) < 700
    assert train.image(0).shape == (8, 8, 1)
    assert train.image(0).max() > 200
    assert np.bincount(train.labels).min() > 90
    assert digits()[0].fingerprint() == train.fingerprint()
    assert train.fingerprint() != test.fingerprint()


def test_arrays(npz):
    train, test = arrays(npz["path"], npz["test_path"])
    assert (len(train), len(test), train.classes) == (40, 12, ["0", "1", "2"])
    np.testing.assert_array_equal(train.image(3), pictures(40, 40)[3])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"image": np.zeros((3, 4, 4)), "label": np.arange(3)}, "images must be uint8"),
        (
            {"image": np.zeros((3, 4, 4, 2), np.uint8), "label": np.arange(3)},
            "images must be uint8",
        ),
        (
            {"image": np.zeros((3, 4, 4), np.uint8), "label": np.arange(2)},
            "labels must be 3 class numbers",
        ),
        (
            {"image": np.zeros((3, 4, 4), np.uint8), "label": np.arange(3) - 1},
            "labels must be 3 class numbers",
        ),
        (
            {"image": np.zeros((3, 4, 4), np.uint8), "label": np.arange(3.0)},
            "labels must be 3 class numbers",
        ),
        ({"picture": np.zeros(3)}, "is no .npz with 'image' and 'label'"),
    ],
)
def test_bad_arrays(tmp_path, npz, content, words):
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(SteeringError, match=words):
        arrays(str(tmp_path / "bad.npz"), npz["test_path"])


def test_a_folder_with_a_damaged_file(folder, caplog):
    found = task(**folder)
    assert found.classes == ["cat", "dog"]
    model = found.build(ModelSpec("cnn", options={"width": 4, "size": 8}))
    data = found.train_data(model, None, 0)
    batch = data.batch(np.arange(len(data)), 0)
    assert int(batch["skipped"]) == 1
    assert batch["image"].shape == (12, 3, 8, 8)
    assert "example 3" in caplog.text
    same = data.batch(np.arange(len(data)), 0)
    assert torch.equal(same["index"], batch["index"])
    assert int(batch["index"][3]) != 3


def test_images_of_two_sizes_need_a_size(folder):
    found = task(**folder)
    model = found.build(ModelSpec("cnn", options={"width": 4}))
    with pytest.raises(
        SteeringError,
        match=r"images have different sizes.*target.options.size.*reference.options.size",
    ):
        found.train_data(model, None, 0).batch(np.arange(3), 0)


def test_folders_with_other_classes(folder, tmp_path):
    (tmp_path / "test/dog").rename(tmp_path / "test/wolf")
    with pytest.raises(SteeringError, match="have other classes: dog, wolf"):
        folders(folder["path"], folder["test_path"])
    with pytest.raises(SteeringError, match=r"path: .*nowhere has no folders of images"):
        folders(str(tmp_path / "nowhere"), folder["test_path"])


def test_a_torchvision_data_set(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 9), ("t10k", 5)):
        images = pictures(n, n, side=28, channels=1)[..., 0]
        sizes = np.array([n, 28, 28], dtype=">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
        labels = (np.arange(n) % 10).astype(np.uint8).tobytes()
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + np.array([n], dtype=">i4").tobytes() + labels
        )
    train, test = torchvision_sets("MNIST", str(tmp_path), download=False)
    assert (len(train), len(test)) == (9, 5)
    np.testing.assert_array_equal(
        train.image(2)[..., 0], pictures(9, 9, side=28, channels=1)[2, ..., 0]
    )
    assert train.classes[3] == "3 - three"
    found = task(source="torchvision", dataset="MNIST", path=str(tmp_path))
    model = found.build(ModelSpec("mlp"))
    assert found.train_data(model, None, 0).batch(np.arange(4), 0)["image"].shape == (4, 1, 28, 28)
    with pytest.raises(SteeringError, match="path: cannot read torchvision's MNIST"):
        torchvision_sets("MNIST", str(tmp_path / "gone"), download=False)
    with pytest.raises(SteeringError, match=r"torchvision.datasets has no 'Mnist'"):
        torchvision_sets("Mnist", str(tmp_path), download=False)


# ---- labels and parts
# -------------------------------------------------------------------------------------------------


def test_symmetric_noise_has_its_rate_and_no_favourite():
    labels = np.arange(50_000) % 10
    noisy = noisy_labels(labels, 10, 0.4, seed=3)
    wrong = noisy != labels
    assert abs(wrong.mean() - 0.4) < 5 * math.sqrt(0.24 / 50_000)
    shift = np.bincount((noisy - labels)[wrong] % 10, minlength=10)
    assert shift[0] == 0
    assert np.abs(shift[1:] - wrong.sum() / 9).max() < 5 * math.sqrt(wrong.sum() / 9)
    np.testing.assert_array_equal(noisy[:100], noisy_labels(labels[:100], 10, 0.4, seed=3))
    assert (noisy_labels(labels, 10, 0.4, seed=4) != noisy).mean() > 0.3
    np.testing.assert_array_equal(noisy_labels(labels, 10, 0.0, seed=3), labels)
    assert (noisy_labels(labels, 10, 1.0, seed=3) != labels).all()


def test_parts_are_disjoint_and_cover():
    low, high = part_of(1000, 0, 0.3, 5), part_of(1000, 0.3, 1, 5)
    assert sorted([*low, *high]) == [*range(1000)]
    assert 230 < len(low) < 370


def test_a_class_is_made_rare():
    labels = np.arange(30_000) % 3
    kept = labels[kept_of_classes(labels, {1: 0.1}, seed=0)]
    counts = np.bincount(kept)
    assert counts[0] == counts[2] == 10_000
    assert abs(counts[1] - 1000) < 5 * math.sqrt(900)


def test_labels_from_files(tmp_path, npz):
    numbers = np.arange(40) % 2
    np.save(tmp_path / "a.npy", numbers)
    np.savez(tmp_path / "b.npz", noisy=numbers)
    np.savetxt(tmp_path / "c.txt", numbers, fmt="%d")
    torch.save(
        {"noisy": numbers, "other": numbers + 1}, tmp_path / "d.pt"
    )  # as CIFAR-10N is published
    for file in ("a.npy", "b.npz:noisy", "c.txt", "d.pt:noisy"):
        np.testing.assert_array_equal(read_numbers(str(tmp_path / file), "labels"), numbers)
    found = task(**npz, labels=str(tmp_path / "d.pt:noisy"))
    model = found.build(ModelSpec("mlp"))
    assert found.train_data(model, None, 0).batch(np.arange(4), 0)["label"].tolist() == [0, 1, 0, 1]


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_label_file_is_never_run(tmp_path, capsys):
    torch.save({"noisy": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(
        SteeringError, match=r"labels: cannot read numbers .* holds more than arrays"
    ):
        read_numbers(str(tmp_path / "evil.pt:noisy"), "labels")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (np.arange(39), "has 39 numbers for 40 examples"),
        (np.full(40, 3), r"expected numbers in \[0, 3\)"),
        (np.zeros(40), "expected one integer per example"),
    ],
)
def test_labels_that_do_not_fit(tmp_path, npz, numbers, words):
    np.save(tmp_path / "a.npy", numbers)
    with pytest.raises(SteeringError, match=words):
        task(**npz, labels=str(tmp_path / "a.npy"))


def test_groups_by_class_and_by_file(tmp_path, npz):
    by_class = task(**npz, groups="class")
    assert by_class.groups == ("0", "1", "2")
    np.save(tmp_path / "g.npy", np.arange(40) % 2)
    np.save(tmp_path / "t.npy", np.arange(12) % 4)
    by_file = task(**npz, groups=str(tmp_path / "g.npy"), test_groups=str(tmp_path / "t.npy"))
    assert by_file.groups == ("0", "1", "2", "3")
    model = by_file.build(ModelSpec("linear"))
    assert by_file.train_data(model, None, 0).batch(np.array([4, 7]), 0)["group"].tolist() == [0, 1]
    assert "test/worst_group_accuracy" in by_file.evaluate(model, CPU).values()
    assert "test/worst_group_accuracy" not in task(**npz).evaluate(model, CPU).values()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "task.data.source=imagenet",
            "source: expected one of digits, coloured_digits, digits_on_photographs, arrays",
        ),
        ("task.data.source=arrays", "path: needed for source 'arrays'"),
        ("task.data.label_noise=1.5", r"label_noise: expected a number in \[0, 1\]"),
        ("task.data.part=[0.5, 0.5]", "part: expected"),
        ("task.data.augment=rotate", "augment: expected one of none, crop"),
        ("task.data.class_shares={3: 0}", "class_shares: expected class number"),
        ("task.data.groups=g.npy", "test_groups: needed"),
        ("task.data.labl=a", "did you mean 'task.data.labels'"),
    ],
)
def test_bad_options(override, words):
    with pytest.raises(
        ConfigError, match=words.replace("[", r"\[") if "expected\\" in words else words
    ):
        load_config(ROOT / "configs/classification/digits.yaml", [override])


# ---- data as models see them
# ------------------------------------------------------------------------------------------


def view(augment: str, side: int = 8, seed: int = 1) -> ImageData:
    source = ArraySource(pictures(20, side=side), np.arange(20) % 2)
    part = Labelled(source, np.arange(20), source.labels, None)
    return ImageData(part, {"": ImageInputs(None, 3, (0.5,) * 3, (0.25,) * 3)}, seed, augment)


def test_pixels_are_normalised_and_never_changed_without_augmentation():
    batch = view("none").batch(np.array([3, 5]), epoch=7)
    expected = (
        torch.from_numpy(pictures(20, side=8)[[3, 5]]).permute(0, 3, 1, 2) / 255 - 0.5
    ) / 0.25
    torch.testing.assert_close(batch["image"], expected.float())


def test_augmentation_depends_on_seed_epoch_and_number_alone():
    data = view("flip-crop")
    whole = data.batch(np.arange(20), 2)["image"]
    torch.testing.assert_close(data.batch(np.array([4, 11]), 2)["image"], whole[[4, 11]])
    assert not torch.equal(data.batch(np.arange(20), 3)["image"], whole)
    assert not torch.equal(view("flip-crop", seed=2).batch(np.arange(20), 2)["image"], whole)


def test_a_crop_moves_by_at_most_an_eighth_and_a_flip_mirrors():
    plain = view("none").batch(np.arange(20), 0)["image"]
    seen = set()
    for epoch in range(30):
        for mode, flips in (("crop", (False,)), ("flip-crop", (False, True))):
            moved = view(mode).batch(np.arange(20), epoch)["image"]
            for i in range(20):
                matches = {
                    (flip, dy, dx)
                    for flip in flips
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if torch.equal(
                        _moved(plain[i].flip(-1) if flip else plain[i], dy, dx), moved[i]
                    )
                }
                assert len(matches) == 1
                seen |= {(mode, *match) for match in matches}
    assert len(seen) == 9 + 18  # every one of them occurs


def _moved(image, dy, dx):
    rows, columns = (torch.arange(8) + dy).clamp(0, 7), (torch.arange(8) + dx).clamp(0, 7)
    return image[:, rows][:, :, columns]


def test_grey_colour_and_size():
    grey, colour = pictures(1, channels=1)[0], pictures(1)[0]
    assert ImageInputs(12, 3, (0.0,) * 3, (1.0,) * 3)([grey]).shape == (1, 3, 12, 12)
    assert ImageInputs(None, 1, (0.0,), (1.0,))([colour]).shape == (1, 1, 6, 6)
    tall = np.repeat(pictures(1)[0], 2, axis=0)
    assert ImageInputs(4, 3, (0.0,) * 3, (1.0,) * 3)([tall, colour]).shape == (2, 3, 4, 4)


def test_a_live_reference_with_other_preprocessing_has_its_own_view(npz):
    found = task(**npz)
    target = found.build(ModelSpec("linear"))
    reference = found.build(ModelSpec("cnn", options={"width": 4, "size": 8}))
    batch = found.train_data(target, reference, 0).batch(np.arange(4), 0)
    assert batch["image"].shape[-1] == 6
    assert batch["reference_image"].shape[-1] == 8
    outputs = LiveReference(reference.module, found.risk).outputs(batch)
    assert outputs["loss"].shape == (4,)


def test_the_fingerprint_sees_labels_parts_and_groups(npz):
    changes = (
        {},
        {"label_noise": 0.5},
        {"part": (0.0, 0.5)},
        {"groups": "class"},
        {"class_shares": {0: 0.5}},
    )
    digests = [
        task(**npz, **change).plain_data(task(**npz).build(ModelSpec("linear"))).fingerprint()
        for change in changes
    ]
    assert len({*digests}) == len(changes)
    assert (
        task(**npz, seed=4).plain_data(task(**npz).build(ModelSpec("linear"))).fingerprint()
        == digests[0]
    )


# ---- models
# -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cnn", {"width": 8}),
        ("mlp", {"width": 16}),
        ("linear", {}),
        ("torchvision:squeezenet1_1", {"size": 32}),
        ("timm:resnet10t", {"size": 32}),
    ],
)
def test_models_learn_from_a_batch(npz, name, options):
    found = task(**npz)
    torch.manual_seed(0)
    model = found.build(ModelSpec(name, options=options))
    batch = found.train_data(model, None, 0).batch(np.arange(6), 0)
    outputs = found.risk.outputs(model.module, batch)
    assert outputs["loss"].shape == (6,)
    assert outputs["loss"].dtype == torch.float32
    outputs["loss"].mean().backward()
    assert sum(p.grad.abs().sum() for p in model.module.parameters() if p.grad is not None) > 0


def test_weights_from_files(npz, tmp_path):
    found = task(**npz)
    for name in ("torchvision:squeezenet1_1", "timm:resnet10t"):
        model = found.build(ModelSpec(name, options={"size": 32}))
        torch.save(model.module.state_dict(), tmp_path / "w.pt")
        again = found.build(
            ModelSpec(name, pretrained=str(tmp_path / "w.pt"), options={"size": 32})
        )
        for x, y in zip(
            model.module.state_dict().values(), again.module.state_dict().values(), strict=True
        ):
            assert torch.equal(x, y)
    torch.save({"x": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(
        SteeringError, match=r"target.pretrained: not the weights of timm:resnet10t"
    ):
        found.build(ModelSpec("timm:resnet10t", pretrained=str(tmp_path / "w.pt")))


def test_weights_are_what_was_named_or_an_error(npz, tmp_path, monkeypatch):
    """A mistyped file fetches no other weights; what is no state dict is told as such; what
    `steering export` writes can be read."""
    import timm

    monkeypatch.setattr(timm, "create_model", None)  # nothing is made, let alone fetched
    found, name = task(**npz), "timm:resnet10t"
    for pretrained in ("my/weihgts.pt", "false", "a9_in1k"):
        with pytest.raises(SteeringError, match=rf"{pretrained}' is no file, and timm has no such"):
            found.build(ModelSpec(name, pretrained=pretrained))
    monkeypatch.undo()
    module = found.build(ModelSpec(name)).module
    torch.save({"epoch": 3, "state_dict": module.state_dict()}, tmp_path / "nested.pt")
    save_file(module.state_dict(), tmp_path / "plain.safetensors")
    for file in ("nested.pt", "plain.safetensors"):
        again = found.build(ModelSpec(name, pretrained=str(tmp_path / file))).module
        torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pt")
    for file, words in {
        "broken.pt": "cannot read weights from",
        "list.pt": "no state dict",
    }.items():
        with pytest.raises(SteeringError, match=words):
            found.build(ModelSpec(name, pretrained=str(tmp_path / file)))


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("timm:resnet10t", {"in_chans": 1, "size": 32}, (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", {"img_size": 32, "depth": 1}, (3, 32, 32)),
        ("torchvision:googlenet", {"size": 32, "init_weights": False}, (3, 32, 32)),
    ],
)
def test_a_network_sees_what_it_was_built_for(npz, name, options, shape):
    found = task(**npz)
    model = found.build(ModelSpec(name, options=options))
    batch = found.train_data(model, None, 0).batch(np.arange(2), 0)
    assert batch["image"].shape[1:] == shape
    assert found.risk.outputs(model.module.train(), batch)["loss"].isfinite().all()


def test_data_that_would_not_be_read_are_refused():
    for given, key in (
        ({"path": "mine.npz"}, "path"),
        ({"source": "table", "path": "m.csv", "test_path": "other.csv"}, "test_path"),
    ):
        with pytest.raises(SteeringError, match=rf"{key}: source '\w+' does not read it"):
            ClassificationData(**given)


def test_shares_that_leave_something_need_somebody_to_have_it():
    groups, numbers = np.repeat([0, 1], 50), np.arange(100)
    with pytest.raises(SteeringError, match=r"they add up to 0.5, and no other group"):
        in_shares(groups, {0: 0.2, 1: 0.3}, numbers, 0)
    kept = in_shares(np.repeat([0, 1, 2], 50), {0: 0.2, 1: 0.3}, np.arange(150), 0)
    assert np.bincount(kept // 50) / len(kept) == pytest.approx([0.2, 0.3, 0.5], abs=0.01)


def test_a_mixture_and_wrong_labels_do_not_share_their_draws():
    """What the mixture keeps of a class has every wrong label about as often."""
    shifts = []
    for seed in range(4):
        mix = {0: 0.3, **dict.fromkeys(range(1, 10), 1.0)}
        data = ClassificationData(label_noise=0.8, mix=mix, seed=seed)
        part = ClassificationTask(ClassificationOptions(data=data))
        wrong = part.part.labels - part.train.labels[part.part.numbers]
        shifts.append(wrong[part.part.labels == 0] % 10)
    counts = np.bincount(np.concatenate(shifts), minlength=10)[1:]
    assert counts.sum() > 60
    assert counts.max() < 3 * counts.sum() / 9, counts


def test_a_head_for_other_classes_is_left_as_initialised(npz, tmp_path):
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), tmp_path / "w.pt")
    model = task(**npz).build(ModelSpec("timm:resnet10t", pretrained=str(tmp_path / "w.pt")))
    assert isinstance(model.module.fc, nn.Linear)
    assert model.module.fc.out_features == 3


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec("vit"), "no model 'vit'; known: cnn, mlp, linear, torchvision:NAME, timm:NAME"),
        (ModelSpec("jax:vit"), "no library 'jax'"),
        (ModelSpec("timm:nothing"), "timm cannot make 'nothing'"),
        (ModelSpec("torchvision:nothing"), "torchvision cannot make 'nothing'"),
        (
            ModelSpec("torchvision:resnet18", pretrained="NO_SUCH_TAG"),
            "torchvision cannot make 'resnet18'",
        ),
        (ModelSpec("cnn", options={"depth": 3}), "cnn takes width, got depth"),
        (ModelSpec("cnn", options={"width": 6}), "expected a multiple of 4, got 6"),
        (ModelSpec("linear", options={"width": 6}), "linear takes none, got width"),
    ],
)
def test_models_that_cannot_be_had(npz, spec, words):
    with pytest.raises(SteeringError, match=words):
        task(**npz).build(spec)


# ---- evaluation
# -------------------------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    # Bins (0.5, 0.6] and (0.8, 0.9] of ten: |0.5 − 0.55|·2/3 + |1 − 0.85|·1/3.
    probability = torch.tensor([[0.55, 0.45], [0.55, 0.45], [0.15, 0.85]])
    label = torch.tensor([0, 1, 1])
    assert calibration_error(probability, label, bins=10) == pytest.approx(
        0.05 * 2 / 3 + 0.15 / 3, abs=1e-6
    )
    shares, confidences, accuracies = reliability(probability, label, bins=10)
    assert shares.tolist() == pytest.approx([0, 0, 0, 0, 0, 2 / 3, 0, 0, 1 / 3, 0])
    assert (confidences[5].item(), accuracies[5].item()) == pytest.approx((0.55, 0.5))


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    assert reliability(torch.tensor([[0.5, 0.5]]), torch.tensor([0]), bins=10)[0].argmax() == 4


def test_certain_and_right_is_calibrated():
    eye = torch.eye(3)
    assert calibration_error(eye, torch.arange(3)) == 0
    assert calibration_error(eye, torch.tensor([1, 2, 0])) == 1


def test_accuracy_of_groups():
    probability = torch.eye(3)[[0, 1, 2, 0]]
    found = group_accuracies(probability, torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, 4, 4]))
    assert found == {0: 1.0, 4: 0.5}


def test_evaluation_sees_changed_weights(npz):
    found = task(**npz)
    model = found.build(ModelSpec("linear"))
    evaluation = found.evaluate(model, CPU)
    first = evaluation.values()
    assert found.evaluate(model, CPU).values() == first
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(-3)
    assert found.evaluate(model, CPU).values() != first
    assert {*evaluation.figures} == {"reliability", "confusion"}
    scores = evaluation.scores["test/accuracy"]
    assert scores.mean() == first["test/accuracy"]
    assert {*scores.values.tolist()} <= {0.0, 1.0}
    assert len(scores.values) == len(found.test_part.numbers)


# ---- runs
# -------------------------------------------------------------------------------------------------------------


def test_the_example_config_compares_every_valid_method(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = "configs/classification/digits.yaml"
    assert (
        main(
            [
                "compare",
                path,
                "smoke=true",
                f"output={tmp_path}",
                "train.samples=96",
                "train.eval_every=0",
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "digits-smoke/compare.json").read_text())
    assert [row["method"] for row in rows] == ["reference", *load_config(path).compare.methods]
    chosen = {section["name"] for section in load_config(path).compare.methods.values()}
    assert chosen == {
        "erm",
        "dro",
        "drrho",
        "rho_loss",
        "soft_rho",
        "group_dro",
        "doremi",
        "distillation",
    }
    by_name = {row["method"]: row for row in rows}
    assert (
        by_name["rho_loss"]["samples"],
        by_name["rho_loss"]["drawn"],
        by_name["rho_loss"]["scored"],
    ) == (
        96,
        480,
        480,
    )
    assert sum(by_name["doremi"]["summary"]["data_mix"].values()) == pytest.approx(1)
    text = (tmp_path / "digits-smoke/compare.md").read_text()
    assert "| method | accuracy | ECE ↓ | worst group accuracy |" in text
    assert "| trained on | drawn | scored | seconds |" in text
    (stored,) = (tmp_path / "digits-smoke/outputs").glob("*/outputs.json")
    assert json.loads(stored.read_text())["kinds"].keys() == {
        "losses",
        "logits",
    }  # distillation needs more than losses
    assert np.load(stored.parent / "loss.npy").ndim == 1  # one float per example


def test_one_folder_serves_losses_and_logits(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = [
        "configs/classification/digits.yaml",
        "smoke=true",
        f"output={tmp_path}",
        "task.data.label_noise=0",
    ]
    words += ["train.samples=64", "train.eval_every=0", f"reference.cache={tmp_path}/kept"]
    assert main(["train", *words]) == 0
    assert main(["train", *words, "method=distillation"]) == 0
    (stored,) = (tmp_path / "kept").glob("*/outputs.json")
    assert json.loads(stored.read_text())["kinds"].keys() == {"losses", "logits"}


def test_the_noisy_cifar_config_is_valid_but_for_its_data():
    config = load_config(ROOT / "configs/classification/cifar10n.yaml")
    assert {*config.compare.methods} == {
        "erm",
        "dro",
        "rho_loss",
        "drrho-kl",
        "drrho-chi2",
        "drrho-cvar",
    }
    with pytest.raises(SteeringError, match="cannot read torchvision's CIFAR10"):
        find_task(config.task.name)(config.task)
