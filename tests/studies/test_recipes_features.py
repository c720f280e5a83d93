"""Random features as proxies and targets: closed forms, and the study from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from steering.analysis.ranks import spearman
from steering.cli import main
from steering.errors import SteeringError
from steering.studies.recipes_features import (
    Features,
    Points,
    judged,
    one_hot,
    ridge,
    sgd,
    top_eigenvalue,
)
from steering_tasks.classification.encoded import EncodedSource
from steering_tasks.classification.sources import arrays

CONFIG = Path(__file__).parents[2] / "configs/classification/recipes.yaml"


def points(n=200, d=6, classes=3, noise=0.0, seed=0):
    """Classes around their own centres; a share of the labels is drawn anew."""
    rng = np.random.default_rng([seed, n])
    y = rng.integers(classes, size=n)
    centres = np.random.default_rng(9).normal(size=(classes, d))
    x = (centres[y] + 0.7 * rng.normal(size=(n, d))).astype(np.float32)
    other = rng.integers(classes, size=n)
    return Points(x, np.where(rng.random(n) < noise, other, y))


def test_one_batch_is_one_step_against_the_gradient():
    train, test = points(), points(50, seed=1)
    features = Features.drawn(6, 16, 0)
    given = {"rate": 0.5, "batch": 200, "seed": 0}
    found, curve = sgd(features, train, test, 3, given)
    phi, seen = (torch.from_numpy(features(part.x)).double() for part in (train, test))
    a = torch.zeros(16, 3, dtype=torch.float64, requires_grad=True)
    loss = 0.5 * (phi @ a - torch.from_numpy(one_hot(train.y, 3))).square().sum(-1).mean()
    (gradient,) = torch.autograd.grad(loss, a)
    rate = 0.5 / top_eigenvalue(seen.numpy())
    torch.testing.assert_close(torch.from_numpy(found), seen @ (-rate * gradient))
    assert curve[0][1] == pytest.approx(loss.item())


def test_ridge_is_the_minimum_of_the_penalised_loss():
    train = points()
    phi, target = Features.drawn(6, 12, 1)(train.x).astype(np.float64), one_hot(train.y, 3)
    second, cross = phi.T @ phi / len(phi), phi.T @ target / len(phi)
    a, penalty = ridge(second, cross, 0.01), 0.01 * np.trace(second)
    stacked = np.vstack([phi / np.sqrt(len(phi)), np.sqrt(penalty) * np.eye(12)])
    wanted = np.vstack([target / np.sqrt(len(phi)), np.zeros((12, 3))])
    np.testing.assert_allclose(a, np.linalg.lstsq(stacked, wanted, rcond=None)[0], atol=1e-12)


def test_a_rate_beyond_two_over_the_largest_eigenvalue_diverges_and_counts_as_worst():
    train, test = points(), points(50, seed=1)
    features = Features.drawn(6, 16, 0)
    with np.errstate(over="ignore", invalid="ignore"):
        found, _ = sgd(features, train, test, 3, {"rate": 1e30, "batch": 1, "seed": 0})
    losses, _ = judged(found, test.y, 3)
    assert np.isfinite(losses).all()
    assert losses.mean() > 1e5
    losses, wrong = judged(one_hot(test.y, 3), test.y, 3)
    assert losses.max() == 0
    assert not wrong.any()


def test_at_a_small_rate_a_narrow_model_orders_recipes_as_a_wide_one():
    """METHODS 6, acceptance fact 4: recipes of rising noise; near the edge of stability with single
    examples the order need not hold."""
    recipes = [points(300, noise=noise, seed=2) for noise in (0.0, 0.15, 0.3, 0.45, 0.6, 0.8)]
    test = points(400, seed=3)

    def losses(width, rate):
        features = Features.drawn(6, width, 0)
        given = {"rate": rate, "batch": 1, "seed": 0}
        return np.array(
            [judged(sgd(features, r, test, 3, given)[0], test.y, 3)[0].mean() for r in recipes]
        )

    wide = losses(512, 0.01)
    assert spearman(losses(48, 0.01), wide) == 1.0
    assert spearman(losses(48, 2.0), wide) < 1.0


def test_the_same_recipe_rate_and_seed_make_no_difference():
    """METHODS 6, acceptance fact 5; another seed does."""
    recipe, test = points(200, noise=0.3, seed=2), points(100, seed=3)

    def losses(seed):
        features, given = Features.drawn(6, 32, seed), {"rate": 0.1, "batch": 1, "seed": seed}
        return judged(sgd(features, recipe, test, 3, given)[0], test.y, 3)[0]

    assert np.array_equal(losses(0), losses(0))
    assert not np.array_equal(losses(0), losses(1))


def test_a_misspelled_option_is_refused(tmp_path, capsys):
    words = ["smoke=true", f"output={tmp_path}", "studies.recipes.order0=false"]
    word = "studies.recipes.proxy={learner: sgd, widht: 8}"
    assert main(["study", "recipes", str(CONFIG), *words, word]) == 1
    assert "random features have no option 'widht'; known: learner" in capsys.readouterr().err


def test_pictures_in_their_files_bytes(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3)).astype(np.uint8)
    files = []
    for number, one in enumerate(image):
        Image.fromarray(one).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png").read_bytes())
    offset = np.cumsum([0, *map(len, files)])
    encoded = np.frombuffer(b"".join(files), np.uint8)
    for name in ("train", "test"):
        np.savez(tmp_path / f"{name}.npz", jpeg=encoded, offset=offset, label=np.arange(4) % 2)
    train, _ = arrays(str(tmp_path / "train.npz"), str(tmp_path / "test.npz"))
    assert isinstance(train, EncodedSource)
    assert train.classes == ["0", "1"]
    for number in range(4):
        np.testing.assert_array_equal(train.image(number), image[number])
    with pytest.raises(SteeringError, match="offset where each picture begins"):
        EncodedSource(encoded, offset[1:], np.arange(3))
    with pytest.raises(SteeringError, match="labels must be 4 class numbers"):
        EncodedSource(encoded, offset, np.arange(3))


def test_the_study_and_its_winner_from_the_command_line(tmp_path):
    words = ["smoke=true", f"output={tmp_path}", "task.data.part=[0.0, 0.3]"]
    words += ["studies.recipes.target.width=64", "studies.recipes.seeds=1"]
    words += ["studies.recipes.recipes={clean: {}, noise: {task.data.label_noise: 0.4}}"]
    assert main(["study", "recipes", str(CONFIG), *words]) == 0
    folder = tmp_path / "recipes-digits-smoke"
    rows = json.loads((folder / "recipes.json").read_text())
    assert len(rows) == 2 * (1 + 2 + 2)
    text = (folder / "recipes.md").read_text()
    assert "| 0.03" in text
    assert ", 1 of 1 |" in text
    winner = yaml.safe_load((folder / "recipes-winner.yaml").read_text())
    assert winner["target"]["name"] == "cnn"
    again = [str(folder / "recipes-winner.yaml"), "train.samples=64", f"output={tmp_path}/again"]
    assert main(["train", *again]) == 0
    wrong = [*words, "studies.recipes.proxy.learner=adam", "name=other"]
    assert main(["study", "recipes", str(CONFIG), *wrong]) == 1
