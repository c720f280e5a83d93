"""The strength α: fixed, and estimated as the control-variate coefficient."""

import math

import numpy as np
import pytest
import torch
from adversaries import stochastic
from torch import Tensor

from steering.dro.online.strength import Auto, Strength
from steering.items import Units


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(target: Tensor, reference: Tensor | None, mask: Tensor | None = None) -> Units:
    rows = torch.arange(target[..., 0].numel()).reshape(target.shape[:-1])
    return Units(target, reference, rows, mask)


def slope(target: Tensor, reference: Tensor, mask: Tensor) -> float:
    """Least squares of ℓ on ℓ_ref with an intercept for each row, by numpy."""
    columns, wanted = [], []
    for number, (row, guide, kept) in enumerate(zip(target, reference, mask, strict=True)):
        intercepts = np.zeros((int(kept.sum()), len(target)))
        intercepts[:, number] = 1
        columns.append(np.column_stack([guide[kept].numpy(), intercepts]))
        wanted.append(row[kept].numpy())
    return float(np.linalg.lstsq(np.vstack(columns), np.concatenate(wanted), rcond=None)[0][0])


def test_the_worked_example():
    # docs/theory.md, section 8: Cov 5/3 over Var 2/3.
    loss, reference = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(Strength("auto")(units(loss, reference)), torch.tensor(2.5))


def test_rows_have_their_own_intercepts_and_masks():
    reference = random(5, 30) + 10 * random(
        5, 1, seed=1
    )  # a constant of each row, which would dominate
    target = 0.7 * reference + 0.3 * random(5, 30, seed=2) - 50 * random(5, 1, seed=1)
    mask = random(5, 30, seed=3) > -0.5
    found = Strength("auto")(units(target.masked_fill(~mask, math.nan), reference, mask))
    assert float(found) == pytest.approx(slope(target, reference, mask), rel=1e-10)
    assert abs(float(found) - 0.7) < 0.1


def test_known_coefficient_over_many_batches():
    # ℓ = 0.4 ℓ_ref + noise of Var 1 with Var ℓ_ref = 1: α* = 0.4; 400 batches of 32 at rate 0.01
    # average some 200 of them.
    strength = Strength(Auto(rate=0.01))
    for seed in range(400):
        reference = random(32, seed=2 * seed)
        alpha = strength(units(0.4 * reference + random(32, seed=2 * seed + 1), reference))
    assert float(alpha) == pytest.approx(0.4, abs=4 / math.sqrt(200 * 32))


def test_moments_are_smoothed_each_for_itself():
    strength = Strength(Auto(rate=0.25))
    first, second = torch.tensor([0.0, 2.0]).double(), torch.tensor([0.0, 4.0]).double()
    strength(units(first, first))  # covariance 1, variance 1
    found = strength(units(-second / 2, second))  # covariance −2, variance 4
    torch.testing.assert_close(found, torch.tensor((0.75 - 0.5) / (0.75 + 1)).double())


def test_a_first_batch_ignores_what_is_stored():
    strength = Strength("auto")
    strength.covariance.fill_(100.0)
    strength.variance.fill_(100.0)
    loss = random(50)
    torch.testing.assert_close(strength(units(3 * loss, loss)), torch.tensor(3.0).double())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_the_scale_of_the_reference_does_not_matter(scale: float):
    target, reference = random(64), random(64, seed=1)
    risks = [stochastic(1, tau=0.5, strength="auto") for _ in range(2)]
    for seed in range(3):
        target = random(64, seed=seed)
        reference = 0.5 * target + random(64, seed=seed + 9)
        found, expected = (
            risk(units(target, c * reference)) for risk, c in zip(risks, [scale, 1.0], strict=True)
        )
        torch.testing.assert_close(found.weights, expected.weights)
        torch.testing.assert_close(found.metrics["strength"] * scale, expected.metrics["strength"])


def test_least_variance_of_the_excess_loss():
    target, reference = random(40), random(40, seed=1) + random(40)
    alpha = float(Strength("auto")(units(target, reference)))
    best = (target - alpha * reference).var()
    for other in (alpha - 0.01, alpha + 0.01, 0.0, 1.0):
        assert (target - other * reference).var() > best


@pytest.mark.parametrize(
    ("target", "reference"),
    [
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0]),  # a constant says nothing
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]),  # anti-correlated: ignored
        ([1.0], [2.0]),  # one item has no variance
        ([1e200, -1e200], [1e200, -1e200]),  # moments leave float64
        ([0.0, 1e-200], [0.0, 1e-200]),
    ],
)
def test_a_reference_without_information_counts_nothing(
    target: list[float], reference: list[float]
):
    found = Strength("auto")(units(torch.tensor(target).double(), torch.tensor(reference).double()))
    assert float(found) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.1, math.log(10), 1e6 / 3])
def test_a_reference_that_is_constant_up_to_rounding_counts_nothing(
    dtype: torch.dtype, constant: float
):
    # Regression on noise of rounding would find slopes of 1e7 (1e16 in float64), and h would lose
    # all its digits.
    jitter = (random(3, 64) > 0).double() * torch.finfo(dtype).eps
    reference = (constant * (1 + jitter)).to(dtype)
    assert reference.unique().numel() > 1
    assert float(Strength("auto")(units(random(3, 64, seed=1).to(dtype), reference))) == 0


def test_a_small_variation_that_the_dtype_resolves_counts():
    loss = random(64, seed=1).float()
    found = Strength("auto")(units(loss, 1 + 1e-4 * loss))
    assert float(found) == pytest.approx(1e4, rel=0.01)


@pytest.mark.parametrize("scale", [1e200, math.inf, math.nan])
@pytest.mark.parametrize("before", [0, 1])
def test_one_broken_batch_leaves_no_trace(scale: float, before: int):
    strength, untouched = Strength("auto"), Strength("auto")
    good, later = (
        units(2 * random(9), random(9)),
        units(random(9, seed=1) + random(9, seed=2), random(9, seed=2)),
    )
    for _ in range(before):
        assert strength(good) == untouched(good)
    strength(units(scale * random(9), scale * random(9)))
    torch.testing.assert_close(strength(later), untouched(later), rtol=0, atol=0)


def test_finite_where_alpha_leaves_the_dtype():
    loss = random(9).float()
    tiny = torch.linspace(0, 1e-40, 9)  # α* near 1e40, beyond float32
    assert float(Strength("auto")(units(torch.linspace(0, 1, 9) + loss / 9, tiny))) == 0


def test_ranges_of_1e30():
    loss = 1e30 * random(40)
    torch.testing.assert_close(Strength("auto")(units(loss, loss / 4)), torch.tensor(4.0).double())


def test_fixed_strength_and_no_reference():
    assert Strength(0.3)(units(random(3), random(3))) == 0.3
    assert not Strength(0.3).state_dict()
    assert Strength("auto")(units(random(3), None)) == 0
    assert [Strength(value).uses_reference for value in ("auto", 0.1, 0, 0.0)] == [
        True,
        True,
        False,
        False,
    ]


def test_the_state_travels():
    whole, resumed = Strength("auto"), Strength("auto")
    whole(units(random(9), random(9, seed=1) + random(9)))
    resumed.load_state_dict(whole.state_dict())
    batch = units(random(9, seed=5), random(9, seed=6) + random(9, seed=5))
    assert torch.equal(torch.as_tensor(whole(batch)), torch.as_tensor(resumed(batch)))


@pytest.mark.parametrize("value", [-1, -0.1, math.nan, math.inf, "0.5", "Auto", None, True, [1.0]])
def test_wrong_values_are_named(value: object):
    with pytest.raises(ValueError, match="strength must be a number ≥ 0 or 'auto', got"):
        Strength(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [0.0, 1.1, math.nan])
def test_wrong_rates_are_named(rate: float):
    with pytest.raises(ValueError, match="rate must lie in"):
        Strength(Auto(rate))
