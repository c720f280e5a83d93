"""Divergences against hand-computed values, a dense grid for the conjugates, and the optimality of
each tilt."""

import math

import pytest
import torch

from steering.dro import (
    KL,
    ChiSquare,
    CressieRead,
    CVaR,
    Divergence,
    TotalVariation,
    distance,
    divergence,
)

ORDERS = [-1.0, 0.0, 0.5, 1.5, 3.0]
EVERY = [KL(), ChiSquare(), CVaR(0.3), TotalVariation(), *map(CressieRead, ORDERS)]
GRID = torch.linspace(0, 12, 240_001, dtype=torch.float64)


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_phi_by_hand():
    t = rows(0.0, 0.5, 1.0, 2.0)
    torch.testing.assert_close(
        KL().phi(t), rows(1.0, 0.5 * math.log(0.5) + 0.5, 0.0, 2 * math.log(2) - 1)
    )
    torch.testing.assert_close(ChiSquare().phi(t), rows(0.5, 0.125, 0.0, 0.5))
    torch.testing.assert_close(
        CVaR(0.5).phi(rows(0.0, 1.0, 2.0, 2.1)), rows(0.0, 0.0, 0.0, math.inf)
    )


@pytest.mark.parametrize("phi", EVERY)
def test_phi_is_infinite_below_zero_and_zero_at_one(phi: Divergence):
    torch.testing.assert_close(phi.phi(rows(-1e-3, 1.0)), rows(math.inf, 0.0))


@pytest.mark.parametrize("e", [1e-5, 1e-7, -1e-7])
def test_kl_keeps_its_digits_near_uniform(e: float):
    # φ(1 + e) = e²/2 − e³/6 + ...; t log t − t + 1 has lost every digit at e = 1e-8.
    t = rows(1.0) + e
    e = t.item() - 1
    torch.testing.assert_close(KL().phi(t), rows(e**2 / 2 - e**3 / 6), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_near_zero(dtype: torch.dtype):
    t = torch.tensor([1e-30, 1e-17, 1e-9, 1e-4], dtype=dtype)
    expected = torch.tensor([x * math.log(x) - x + 1 for x in t.tolist()], dtype=dtype)
    torch.testing.assert_close(KL().phi(t), expected)


@pytest.mark.parametrize("phi", EVERY)
def test_conjugate_is_the_supremum_on_a_grid(phi: Divergence):
    wall = {
        TotalVariation(): 0.5,
        CressieRead(-1.0): 0.5,
        CressieRead(0.0): 1.0,
        CressieRead(0.5): 2.0,
    }.get(phi, math.inf)
    for s in (-3.0, -1.0, -0.4, 0.0, 0.3, 0.7, 2.0):  # every maximiser lies inside the grid
        if s >= wall or (phi == CressieRead(0.5) and s > 1):
            continue
        sup = (GRID * s - phi.phi(GRID)).max()
        torch.testing.assert_close(phi.conjugate(rows(s))[0], sup, rtol=0, atol=1e-4)
        assert phi.conjugate(rows(s))[0] >= sup - 1e-12


@pytest.mark.parametrize(
    ("phi", "wall"), [(TotalVariation(), 0.5), *((CressieRead(k), 1 / (1 - k)) for k in ORDERS[:3])]
)
def test_conjugates_with_a_wall(phi: Divergence, wall: float):
    assert phi.conjugate(rows(wall + 1e-9))[0] == math.inf
    assert phi.conjugate(rows(wall - 1e-9))[0] < math.inf


@pytest.mark.parametrize("phi", EVERY)
def test_the_ratio_is_the_slope_of_the_conjugate(phi: Divergence):
    s = torch.linspace(-2.03, 0.46, 60, dtype=torch.float64)  # off the kinks at −1, −1/2 and 0
    slope = (phi.conjugate(s + 1e-6) - phi.conjugate(s - 1e-6)) / 2e-6
    torch.testing.assert_close(phi.ratio(s), slope, rtol=1e-5, atol=1e-6)


def test_the_family_contains_its_members():
    t, s = (
        torch.linspace(0.01, 6, 100, dtype=torch.float64),
        torch.linspace(-3, 0.4, 100, dtype=torch.float64),
    )
    for k, member, close in [
        (2.0, ChiSquare(), 1e-12),
        (1 + 1e-5, KL(), 1e-3),
        (1 - 1e-5, KL(), 1e-3),
    ]:
        torch.testing.assert_close(
            CressieRead(k).phi(t), member.phi(t), rtol=close, atol=close * 1e-2
        )
        torch.testing.assert_close(
            CressieRead(k).conjugate(s), member.conjugate(s), rtol=close, atol=close * 1e-2
        )
    reverse = -t.log() + t - 1
    torch.testing.assert_close(CressieRead(0.0).phi(t), reverse)
    torch.testing.assert_close(
        CressieRead(0.5).phi(t), 2 * (t.sqrt() - 1) ** 2
    )  # four times squared Hellinger


@pytest.mark.parametrize("k", [*ORDERS, 8.0, -4.0])
@pytest.mark.parametrize("e", [1e-9, -1e-7, 1e-4, 3e-3, -0.02, 0.049, 0.051])
def test_the_family_keeps_its_digits_near_uniform(k: float, e: float):
    # φ_k(1 + e) as a Taylor series in exact fractions: e²/2 Π_{j=3}^{…} (k − j + 1)/j e.
    t = rows(1.0) + e
    e = t.item() - 1
    term, expected = e * e / 2, 0.0
    for j in range(3, 60):
        expected += term
        term *= (k - j + 1) / j * e
    torch.testing.assert_close(CressieRead(k).phi(t).item(), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("phi", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_shape_stay(phi: Divergence, dtype: torch.dtype):
    t = torch.rand(2, 3, dtype=dtype)
    for out in (phi.phi(t), phi.conjugate(t)):
        assert out.dtype == dtype
        assert out.shape == t.shape
    assert distance(t / t.sum(-1, keepdim=True), phi).shape == (2,)


@pytest.mark.parametrize("phi", EVERY)
def test_tilt_is_stationary(phi: Divergence):
    # t ∈ ∂φ*(s − ν) is the equality t (s − ν) = φ(t) + φ*(s − ν) of Fenchel and Young; with mean(t)
    # = 1 it is optimal.
    scores = torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    mask = torch.rand(5, 11, generator=torch.Generator().manual_seed(1)) < 0.7
    t, nu = phi.tilt(scores.masked_fill(~mask, math.nan), mask)
    torch.testing.assert_close(t.sum(-1), mask.sum(-1).double())
    assert (t[~mask] == 0).all()
    assert (t >= 0).all()
    s = (scores - nu[:, None])[mask]
    torch.testing.assert_close(t[mask] * s, phi.phi(t[mask]) + phi.conjugate(s))


@pytest.mark.parametrize("phi", EVERY)
def test_tilt_ignores_a_shift(phi: Divergence):
    scores, mask = rows(0.3, -1.2, 0.8, 2.0, 1.9), torch.ones(5, dtype=torch.bool)
    t, nu = phi.tilt(scores, mask)
    shifted, nu_shifted = phi.tilt(scores + 700, mask)
    torch.testing.assert_close(shifted, t, rtol=1e-11, atol=0)
    torch.testing.assert_close(nu_shifted, nu + 700)


def test_chi_square_tilt_by_hand():
    # Two of three items above water: ν = (1 + 0.5 + 2 − 3)/2 = 1/4, and 1 − 3 − 1/4 is under it.
    t, nu = ChiSquare().tilt(rows(0.5, -3.0, 1.0), torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(t, rows(1.25, 0.0, 1.75))
    torch.testing.assert_close(nu, torch.tensor(0.25, dtype=torch.float64))


def test_cvar_tilt_shares_the_rest_among_ties():
    # k = 0.5 · 5 = 2.5 items: the 3 counts fully (ratio 2), the remaining 1.5 of them falls on
    # three ones.
    t, nu = CVaR(0.5).tilt(rows(1.0, 3.0, 1.0, 1.0, 0.0), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(t, rows(1.0, 2.0, 1.0, 1.0, 0.0))
    assert nu == 1


@pytest.mark.parametrize(
    ("level", "n", "k"), [(0.55, 100, 55), (0.28, 75, 21), (7 / 51, 51, 7), (1 / 49, 49, 1)]
)
def test_cvar_takes_whole_tails_whole(level: float, n: int, k: int):
    assert (
        CVaR(level).tilt(torch.arange(n).double(), torch.ones(n, dtype=torch.bool))[0] > 0
    ).sum() == k


def test_distance_by_hand():
    p = rows(0.5, 0.5, 0.0, 0.0)
    torch.testing.assert_close(distance(p, KL()).item(), math.log(2))
    torch.testing.assert_close(distance(p, ChiSquare()).item(), 0.5)  # (n Σp² − 1)/2
    assert distance(p, CVaR(0.5)) == 0
    assert distance(p, CVaR(0.6)) == math.inf


def test_distance_honours_the_mask():
    p, mask = rows(0.75, 0.25, math.nan), torch.tensor([True, True, False])
    torch.testing.assert_close(distance(p, KL(), mask), distance(p[:2], KL()))
    torch.testing.assert_close(
        distance(p.expand(2, 3), KL(), mask), distance(p[:2], KL()).expand(2)
    )
    torch.testing.assert_close(distance(p[:2], KL(), mask[:1]), distance(p[:2], KL()))


def test_names_resolve():
    assert divergence("kl") == KL()
    assert divergence("chi2") == ChiSquare()
    assert divergence("cvar", level=0.2) == CVaR(0.2)
    assert divergence(CVaR(0.2)) == CVaR(0.2)
    assert divergence("tv") == TotalVariation()
    assert divergence("cressie-read", order=0.5) == CressieRead(0.5)
    assert divergence("cressie-read", order=1) == KL()


def test_wrong_names_and_levels():
    with pytest.raises(
        ValueError,
        match=r"expected one of chi2, cressie-read, cvar, cvar-kl, .*kl, tv, got 'nonsense'",
    ):
        divergence("nonsense")
    with pytest.raises(ValueError, match=r"level: 'cvar' needs .* got None"):
        divergence("cvar")
    for other in ("kl", KL()):
        with pytest.raises(
            ValueError, match=r"level: belongs to 'cvar' and 'cvar-kl' only, got 0.5"
        ):
            divergence(other, level=0.5)
    for level in (0.0, -1.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="level: expected 0 < level <= 1"):
            CVaR(level)
