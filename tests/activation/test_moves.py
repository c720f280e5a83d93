"""Moves and directions against closed forms, the published form of the rotation, and scikit-learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from steering.activation import (
    DIRECTIONS,
    Householder,
    Logistic,
    MeanDifference,
    Principal,
    Rotation,
    Shift,
    mean_difference,
    principal_direction,
    probe_accuracy,
    probe_normal,
)

D = 6
NORMAL = torch.tensor([0.5, -1.0, 2.0, 0.1, -0.7, 1.3], dtype=torch.float64)


@pytest.fixture
def clouds():
    """Two Gaussian clouds, float64, of different sizes."""
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(n, D, generator=generator, dtype=torch.float64) for n in (40, 30))
    return up + torch.tensor([2.0, 0, 0, 0, 0, 1]), down


def fixed(angle, normal):
    share = angle / math.pi
    return Rotation(normal, (torch.tensor([math.log(share / (1 - share))], dtype=torch.float64),))


def published(a, v, t1):
    """The Householder pseudo-rotation as printed, row by row: a mirror image, then a mixture."""
    mirror = a - 2 * (a @ v)[:, None] / (v @ v) * v
    # The angle between a and its mirror image, of the same length, exact also where it is small.
    t2 = 2 * torch.atan2((a - mirror).norm(dim=-1), (a + mirror).norm(dim=-1))[:, None]
    moved = torch.sin(t1) / torch.sin(t2) * mirror + torch.sin(t2 - t1) / torch.sin(t2) * a
    return torch.where((a @ v > 0)[:, None], a, moved)


def test_mean_difference_moves_one_mean_onto_the_other(clouds):
    up, down = clouds
    move = Shift(mean_difference(up, down))
    moved = down + move.displacement(down, 1.0)
    torch.testing.assert_close(moved.mean(0), up.mean(0))
    torch.testing.assert_close(move.displacement(down, 0.5) * 2, move.displacement(down, 1.0))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_the_rotation_is_the_published_form(clouds, strength):
    up, down = clouds
    a, v = torch.cat([up, down]), NORMAL
    moved = a + fixed(1.1, v).displacement(a, strength)
    torch.testing.assert_close(
        moved, published(a, v, torch.tensor(1.1 * strength, dtype=torch.float64))
    )


def test_the_rotation_keeps_norms_and_the_positive_side(clouds):
    a, v = torch.cat(clouds), NORMAL
    for angle in (0.01, 1.0, 3.1):
        moved = a + fixed(angle, v).displacement(a, 1.0)
        torch.testing.assert_close(moved.norm(dim=-1), a.norm(dim=-1))
        assert torch.equal(moved[a @ v >= 0], a[a @ v >= 0])
        turned = F.cosine_similarity(moved, a, dim=-1).clamp(-1, 1).acos()[a @ v < 0]
        torch.testing.assert_close(turned, torch.full_like(turned, angle))


def test_the_rotation_reaches_the_positive_side_from_half_the_mirror_angle_on(clouds):
    a, v = clouds[1], NORMAL
    a = a[a @ v < 0]
    to_plane = torch.asin(
        (a @ v).abs() / (a.norm(dim=-1) * v.norm())
    )  # half the angle to the mirror
    for row, angle in zip(a, to_plane, strict=True):
        for factor, side in ((0.99, False), (1.01, True)):
            moved = row + fixed(float(angle) * factor, v).displacement(row, 1.0)
            assert bool(moved @ v > 0) == side


def test_a_turn_by_the_mirror_angle_is_the_reflection_and_two_are_nothing(clouds):
    a, v = clouds[1], NORMAL
    for row in a[a @ v < 0]:
        angle = 2 * math.asin(float(-(row @ v) / (row.norm() * v.norm())))
        moved = row + fixed(angle, v).displacement(row, 1.0)
        torch.testing.assert_close(moved, row - 2 * (row @ v) / (v @ v) * v)
        torch.testing.assert_close(moved + fixed(angle, -v).displacement(moved, 1.0), row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rotation_is_sound_where_the_published_form_divides_by_zero(dtype):
    v = torch.zeros(D, dtype=dtype)
    v[0] = 2.0
    near, opposite, zero = torch.zeros(3, D, dtype=dtype)
    near[0], near[1] = -1e-9, 3.0
    opposite[0] = -3.0
    a = torch.stack([near, opposite, zero])
    moved = a + fixed(0.5, v).displacement(a, 1.0)
    torch.testing.assert_close(moved.norm(dim=-1), a.norm(dim=-1))
    wanted = torch.tensor([3 * math.sin(0.5), 3 * math.cos(0.5)], dtype=dtype)
    torch.testing.assert_close(moved[0, :2], wanted)
    assert moved[1, 0].item() == pytest.approx(-3 * math.cos(0.5))


def test_the_probe_is_scikit_learns(clouds):
    up, down = clouds
    x, y = torch.cat([up, down]).numpy(), np.repeat([1, 0], [len(up), len(down)])
    scale = np.sqrt((x**2).mean())
    for bias in (True, False):
        # scikit-learn: C · Σ wᵢ lossᵢ + |v|²/2, with weights that make both sides count the same.
        weight = np.where(y == 1, 0.5 / len(up), 0.5 / len(down))
        twin = LogisticRegression(C=1 / 0.01, fit_intercept=bias, tol=1e-10, max_iter=10_000)
        twin.fit(x / scale, y, sample_weight=weight)
        normal, offset = probe_normal(up, down, ridge=0.01, bias=bias)
        np.testing.assert_allclose(normal.numpy() * scale, twin.coef_[0], atol=2e-4)
        assert offset == pytest.approx(float(np.ravel(twin.intercept_)[0]), abs=2e-4)


def test_the_probe_does_not_care_for_the_unit(clouds):
    up, down = clouds
    normal, offset = probe_normal(up, down)
    scaled, same = probe_normal(100 * up, 100 * down)
    torch.testing.assert_close(100 * scaled, normal, atol=1e-6, rtol=1e-6)
    assert same == pytest.approx(offset, abs=1e-6)
    assert probe_accuracy(normal, offset, up, down) == probe_accuracy(
        scaled, same, 100 * up, 100 * down
    )


def test_accuracy_counts_both_sides_the_same():
    normal, up, down = torch.tensor([1.0]), torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0]])
    assert probe_accuracy(normal, 0.0, up, down) == 0.75


def test_the_first_component_has_the_sign_of_the_gap(clouds):
    up, down = clouds
    component = principal_direction(up, down)
    assert component @ (up.mean(0) - down.mean(0)) > 0
    torch.testing.assert_close(principal_direction(down, up), -component)
    middle = (up.mean(0) + down.mean(0)) / 2
    values, vectors = torch.linalg.eigh(
        (torch.cat([up, down]) - middle).T @ (torch.cat([up, down]) - middle)
    )
    torch.testing.assert_close((component @ vectors[:, -1]).abs().item(), 1.0)
    assert values[-1] > values[-2]


def test_a_component_without_a_gap_is_refused():
    cloud = torch.tensor([[5.0, 0.0], [-5.0, 0.0]], dtype=torch.float64)
    shifted = torch.tensor([[5.0, 1.0], [-5.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="same mean along the first principal component"):
        principal_direction(cloud, shifted)


@pytest.mark.parametrize("name", ["mean_difference", "pca", "logistic"])
def test_strength_one_covers_the_gap_along_the_direction(clouds, name):
    up, down = clouds
    direction = DIRECTIONS.find(name)().fit(up, down).direction.double()
    unit = F.normalize(direction, dim=0)
    torch.testing.assert_close(
        direction.norm(), unit @ (up.mean(0) - down.mean(0)), rtol=1e-5, atol=1e-6
    )


def test_the_angle_network_learns_a_constant_angle():
    """Negatives lie at an angle of 2 to their partners, which the network does not know."""
    generator = torch.Generator().manual_seed(0)
    near = 0.05 * torch.randn(400, D, generator=generator)
    positive = F.normalize(torch.eye(D)[0] + near, dim=-1)
    turned = math.cos(2.0) * torch.eye(D)[0] + math.sin(2.0) * torch.eye(D)[1]
    negative = F.normalize(turned + near, dim=-1)
    move = Householder(epochs=10, lr=1e-2).fit(positive, negative)
    assert move.angle(negative).mean().item() == pytest.approx(2.0, abs=0.15)
    assert move.angle(positive).mean().item() < 0.3
    moved = negative + move.displacement(negative, 1.0)
    before = F.cosine_similarity(negative, positive, dim=-1).mean()
    assert F.cosine_similarity(moved, positive, dim=-1).mean() > before + 0.5
    again = Householder(epochs=10, lr=1e-2).fit(positive, negative)
    assert torch.equal(again.displacement(negative, 1.0), move.displacement(negative, 1.0))


def test_a_given_angle_is_that_angle(clouds):
    move = Householder(angle=0.4).fit(*clouds)
    torch.testing.assert_close(move.angle(torch.eye(D)), torch.full((D,), 0.4))


def test_a_random_move_has_the_same_size():
    like = Shift(torch.arange(1.0, 7))
    drawn = like.random(1)
    torch.testing.assert_close(drawn.direction.norm(), like.direction.norm())
    assert not torch.allclose(drawn.direction, like.random(2).direction)
    assert torch.equal(drawn.direction, like.random(1).direction)
    turn = fixed(1.0, NORMAL)
    assert turn.random(1).layers is turn.layers
    torch.testing.assert_close(turn.random(1).normal.norm(), NORMAL.norm())


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda up, down: mean_difference(up[:0], down), "positive: expected activations"),
        (lambda up, down: mean_difference(up, down[0]), "negative: expected activations"),
        (
            lambda up, down: mean_difference(up, down[:, :3]),
            "one width: got 6 positive, 3 negative",
        ),
        (lambda up, down: mean_difference(up / 0, down), "not finite"),
        (lambda up, down: probe_normal(up, down, ridge=0), "ridge: expected a positive number"),
        (lambda up, down: Householder().fit(up, down), "got 40 positive and 30 negative"),
        (lambda up, down: Householder(angle=4.0), "angle: expected a number in"),  # noqa: ARG005
    ],
)
def test_wrong_input_is_refused(clouds, act, message):
    with pytest.raises(ValueError, match=message):
        act(*clouds)


def test_parts_are_frozen_dataclasses_by_name():
    assert DIRECTIONS.names() == ["householder", "logistic", "mean_difference", "pca"]
    assert [DIRECTIONS.find(n)() for n in ("pca", "logistic")] == [Principal(), Logistic()]
    assert DIRECTIONS.name_of(MeanDifference()) == "mean_difference"
